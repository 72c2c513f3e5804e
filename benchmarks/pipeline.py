"""What ranking adds to retrieval: a pipeline fitted on a data folder.

    python benchmarks/pipeline.py DATA --out FILE
    python benchmarks/pipeline.py DATA --work FOLDER --set epochs=10 --rank-set epochs=5 --out FILE     # FOLDER keeps the pipeline
    python benchmarks/pipeline.py --pool PIPELINE --out FILE                                            # what anything else could add

Retrieval alone, the ranker alone on what was retrieved, and both, test, with 95 % intervals (paired bootstrap over users).
`--pool`, validation: each of some models without training orders what the pipeline's retrieval found, alone and with it, log p + w log of
its own score (as the sum of them over the candidates is 1, a thousandth of the best score added). The history is taken out.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from asymrec import machine
from asymrec.config import Recipe, parse_settings
from asymrec.pipeline import Pipeline, fit_pipeline, read_pipeline
from asymrec.progress import Progress
from asymrec.results import split_of
from asymrec.runs import find_model

OTHERS = ("popularity", "itemknn", "ease", "counts")
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, math.inf)


def pool(folder: Path, others: list[str]) -> dict[str, Any]:
    """NDCG@10 of retrieval's candidates of the validation users, in the order of other models' scores, by their weight."""
    pipeline = Pipeline.load(folder)
    dataset, recipe = pipeline.dataset, pipeline.retrieval.recipe
    some = split_of(dataset, recipe).validation
    rows, scores = pipeline.retrieval.best(some.histories, pipeline.candidates, None, True)
    there = rows >= 0
    wanted = np.zeros((len(some), dataset.n_items), bool)
    wanted[some.targets.owners, some.targets.items] = True
    hits = there & np.take_along_axis(wanted, np.maximum(rows, 0), 1)
    ideal = np.array([sum(1 / math.log2(place + 2) for place in range(min(10, count))) for count in np.bincount(some.targets.owners)])

    def ndcg(final: np.ndarray) -> float:
        place = (final[:, None, :] >= final[:, :, None]).sum(2) - 1  # of equal scores the last place
        return float((np.where(hits & (place < 10), 1 / np.log2(place + 2), 0).sum(1) / ideal).mean())

    found: dict[str, dict[str, float]] = {}
    for name in [pipeline.ranker.name, *others]:
        if name in others:
            model = find_model(name)(recipe)
            model.fit(dataset)
            given = np.take_along_axis(model.scores(some.histories), np.maximum(rows, 0), 1).clip(0)
            given = np.log(given + 1e-3 * given.max(1, keepdims=True) + 1e-12)
        else:
            given = pipeline.logits(some.histories, rows, some.users)
        known = np.where(there, scores, -np.inf)
        found[name] = {str(weight): ndcg(pipeline.blend(known, np.where(there, given, -np.inf), weight)) for weight in WEIGHTS}
        print(name, {weight: round(value, 4) for weight, value in found[name].items()}, flush=True)
    return {"data": read_pipeline(folder)["data"], "users": len(some), "retrieved": float(hits.any(1).mean()), "ndcg@10": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", help="data folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of retrieval")
    parser.add_argument("--rank-set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the ranker")
    parser.add_argument("--ranker", default="tokenformer")
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--codes", action="store_true", help="the ranker reads retrieval's codes")
    parser.add_argument("--work", type=Path, help="keep the pipeline here; an interrupted fit goes on")
    parser.add_argument("--out", type=Path, help="JSON log")
    parser.add_argument("--pool", type=Path, metavar="PIPELINE", help="what other models would add to its retrieval")
    parser.add_argument("--others", default=",".join(OTHERS), help="with --pool: models without training")
    arguments = parser.parse_args()
    if arguments.pool:
        log = pool(arguments.pool, arguments.others.split(",")) | {"machine": machine.facts()}
    elif arguments.data:
        log = fitted(arguments)
    else:
        parser.error("give DATA, or --pool PIPELINE")
    if arguments.out:
        arguments.out.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")


def fitted(arguments: argparse.Namespace) -> dict[str, Any]:
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
    return log


if __name__ == "__main__":
    main()
