"""What ranking adds to retrieval: a pipeline fitted on a data folder.

    python benchmarks/pipeline.py DATA --out FILE
    python benchmarks/pipeline.py DATA --work FOLDER --set epochs=10 --rank-set epochs=5 --out FILE     # FOLDER keeps the pipeline

Retrieval alone, the ranker alone on what was retrieved, and both, test, with 95 % intervals (paired bootstrap over users).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from asymrec import machine
from asymrec.config import Recipe, parse_settings
from asymrec.pipeline import fit_pipeline
from asymrec.progress import Progress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="data folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of retrieval")
    parser.add_argument("--rank-set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the ranker")
    parser.add_argument("--ranker", default="tokenformer")
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--codes", action="store_true", help="the ranker reads retrieval's codes")
    parser.add_argument("--work", type=Path, help="keep the pipeline here; an interrupted fit goes on")
    parser.add_argument("--out", type=Path, help="JSON log")
    arguments = parser.parse_args()
    recipe, begun = Recipe.of(None, **parse_settings(arguments.set)), time.process_time()
    with tempfile.TemporaryDirectory() as spare, Progress() as progress:
        facts = fit_pipeline(
            arguments.data,
            (arguments.work or Path(spare)) / "pipeline",
            recipe,
            ranker=arguments.ranker,
            settings=parse_settings(arguments.rank_set),
            candidates=arguments.candidates,
            codes=arguments.codes or None,
            resume=True,
            listener=progress,
        )
    log = facts | {"set": arguments.set, "cpu_seconds": time.process_time() - begun, "machine": machine.facts()}
    print(json.dumps({stage: {h: {m: found[h][m] for m in ("recall@10", "ndcg@10")} for h in ("kept", "removed")}
                      for stage, found in facts["metrics"].items()}, indent=1))  # fmt: skip
    if arguments.out:
        arguments.out.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
