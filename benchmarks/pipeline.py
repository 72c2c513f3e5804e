"""What ranking adds to retrieval: a pipeline fitted on a data folder.

    python benchmarks/pipeline.py DATA --out FILE
    python benchmarks/pipeline.py DATA --work FOLDER --set epochs=10 --rank-set epochs=5 --out FILE     # FOLDER keeps the pipeline
    python benchmarks/pipeline.py --pool PIPELINE --out FILE                                            # what anything else could add

Retrieval alone, the ranker alone on what was retrieved, and both, test, with 95 % intervals (paired bootstrap over users).
`--pool`, validation, the history taken out: the ranker, and models without training, order what retrieval found, alone and with it by
log p + w x, where x is the ranker's logit, or the log of a model's score, to which a thousandth of the best is added.
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
from asymrec.evaluation.metrics import per_user, ranks
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
    owners, at = np.nonzero(there)
    known, whole = np.where(there, scores, -np.inf), np.full((len(some), dataset.n_items), -np.inf, np.float32)

    def mean(final: np.ndarray, metric: str, k: int) -> float:
        whole[owners, rows[owners, at]] = final[owners, at]  # what was not retrieved stays missed
        return float(per_user(ranks(whole, some.targets), some.targets.offsets, (k,))[f"{metric}@{k}"].mean())

    found: dict[str, dict[str, float]] = {}
    for name in [pipeline.ranker.name, *others]:
        if name in others:
            model = find_model(name)(recipe)
            model.fit(dataset)
            given = np.take_along_axis(model.scores(some.histories), np.maximum(rows, 0), 1).clip(0)
            given = np.log(given + 1e-3 * given.max(1, keepdims=True) + 1e-12)
        else:
            given = pipeline.logits(some.histories, rows, some.users)
        found[name] = {str(w): mean(pipeline.blend(known, given, w), "ndcg", 10) for w in WEIGHTS}
        print(name, {w: round(value, 4) for w, value in found[name].items()}, flush=True)
    return {
        "data": read_pipeline(folder)["data"],
        "users": len(some),
        "retrieved": mean(known, "recall", pipeline.candidates),
        "ndcg@10": found,
    }


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
