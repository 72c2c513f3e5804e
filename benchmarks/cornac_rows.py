"""Rows of another project on our split and by our evaluation: SASRec, RPG and TIGER of cornac 3.0.1 (github.com/PreferredAI/cornac).

It runs in an environment of its own:

    python -m venv CORNAC && CORNAC/bin/pip install -c constraints/ci.txt cornac==3.0.1 torch transformers faiss-cpu scikit-learn
    CORNAC/bin/pip install -c constraints/ci.txt -e .
    OMP_NUM_THREADS=1 CORNAC/bin/python benchmarks/cornac_rows.py DATA sasrec --out FILE      # or rpg, tiger

cornac trains by its own code on the training part of our leave-last-out split, one session a user. Then its `score` is asked for all
items for every user of validation and test, and `asymrec.evaluation` ranks them, with the history kept and with it removed; on the
first 2,000 test users cornac's own evaluator is asked too, and must agree with ours but for ties. cornac keeps the weights of the best
epoch by its own NDCG@10 on 2,000 validation users.

Settings are the best that cornac documents for Beauty: SASRec's from the tuning table in its cornac/models/tiger/README.md, RPG's are
RPG_BEAUTY_CONFIG, TIGER's PAISCHER_CONFIG. RPG and TIGER get the item vectors that our models get. On a CPU most of this is out of
reach: what `--set` changes stands in the log as "changed". `--steps N` makes N training steps alone, and logs
the time that the whole recipe would take instead of figures.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from cornac.data import FeatureModality
from cornac.eval_methods import NextItemEvaluation
from cornac.metrics import NDCG, Recall
from cornac.models import RPG, TIGER, SASRec
from cornac.models.rpg import RPG_BEAUTY_CONFIG
from cornac.models.sasrec import recom_sasrec
from cornac.models.tiger import PAISCHER_CONFIG
from torch.optim.optimizer import register_optimizer_step_post_hook

from asymrec import machine
from asymrec.config import VectorsConfig
from asymrec.data.dataset import Dataset
from asymrec.data.sequences import Sequences
from asymrec.data.splits import Examples, Split
from asymrec.evaluation.protocol import evaluate
from asymrec.vectors import item_vectors

BEST = {"model_selection": "best", "val_eval_every": 1, "val_metric": "ndcg", "val_k": 10}
SASREC_TUNED = {"loss": "bce", "embedding_dim": 128, "learning_rate": 5e-4, "dropout": 0.2, "max_len": 50, "n_epochs": 50}
MODELS = {
    "sasrec": (SASRec, SASREC_TUNED | BEST),  # the table does not say how many epochs
    # exact: all items have a score. The recipe's 512 components are more than our vectors are wide, and cornac then does not whiten.
    "rpg": (RPG, RPG_BEAUTY_CONFIG | {"scoring": "exact", "pca_dim": 352}),
    "tiger": (TIGER, PAISCHER_CONFIG | {"n_beams": 50}),  # items outside the beam share the last place
}
FEW = 2000  # users whom cornac validates on and whom its evaluator is asked about
PACKAGES = ("cornac", "torch", "numpy", "transformers", "faiss-cpu", "scikit-learn")


class Scores:
    """cornac's model as our evaluation wants it: scores of all items, in the order of our rows."""

    def __init__(self, model: Any, index: np.ndarray):
        self.model, self.index = model, index

    def scores(self, histories: Sequences) -> np.ndarray:
        return np.stack([self.model.score(None, self.index[history])[self.index] for history in histories]).astype(np.float32)


def sessions(users: np.ndarray, *parts: Sequences) -> list[tuple[int, int, int, int]]:
    """(user, session, item, time): a session a user; the parts of a user follow each other, and the place stands for the time."""
    lines = []
    for row, user in enumerate(users.tolist()):
        items = np.concatenate([part[row] for part in parts]).tolist()
        lines += [(user, user, item, place) for place, item in enumerate(items)]
    return lines


def splits(split: Split, vectors: np.ndarray | None) -> NextItemEvaluation:
    """Our split as cornac's."""
    features = {} if vectors is None else {"item_feature": FeatureModality(features=vectors, ids=list(range(len(vectors))))}
    warm = np.flatnonzero(
        np.isin(split.validation.targets.items, split.train.items)
    )  # cornac's NDCG of a target it has not trained on is NaN
    chosen = np.random.default_rng(0).permutation(warm)[:FEW]
    held = [
        sessions(examples.users, examples.histories, examples.targets) for examples in (split.validation.take(np.sort(chosen)), split.test)
    ]
    train = sessions(split.train_users, split.train)
    return NextItemEvaluation.from_splits(train, held[1], held[0], fmt="USIT", exclude_unknowns=False, mode="last", **features)


def watch(model: Any) -> list[float]:
    """cornac keeps no curve: the list gets every validation figure of the fit."""
    curve: list[float] = []

    def noted(validate: Callable[..., float]) -> Callable[..., float]:
        def call(*arguments: Any, **options: Any) -> float:
            curve.append(validate(*arguments, **options))
            print(f" validation ndcg@10 {curve[-1]:.4f}", flush=True)
            return curve[-1]

        return call

    if isinstance(model, SASRec):
        recom_sasrec.val_score = noted(recom_sasrec.val_score)
    else:
        model._validate = noted(model._validate)
    return curve


def own_figures(model: Any, method: NextItemEvaluation, test: Examples) -> dict[str, float]:
    """What cornac's evaluator says of these users."""
    data = method.test_set.build(
        sessions(test.users, test.histories, test.targets),
        fmt="USIT",
        global_uid_map=method.global_uid_map,
        global_iid_map=method.global_iid_map,
        global_sid_map=method.global_sid_map,
    )
    metrics = [Recall(k=10), NDCG(k=10)]
    found = method.eval(model, method.train_set, data, exclude_unknowns=False, ranking_metrics=metrics, mode="last")
    return {name.lower(): float(value) for name, value in found.metric_avg_results.items()}


class Enough(Exception):
    """The steps that were asked for are made."""


def projection(model: Any, method: NextItemEvaluation, split: Split, steps: int) -> dict[str, Any]:
    """CPU hours of the whole recipe from so many of its training steps after a first one; making codes is not in it."""
    lengths = split.train.lengths[split.train.lengths > 1]
    # RPG trains on rows of `max_len` targets, the others on every prefix
    examples = int(np.maximum(lengths - model.max_len, 1).sum() if isinstance(model, RPG) else (lengths - 1).sum())
    clock: list[float] = []

    def after(*_: Any) -> None:
        clock.append(time.process_time())
        if len(clock) > steps:
            raise Enough

    if isinstance(model, TIGER):
        model.tokenizer = "rkmeans"  # no steps of its own, and codes of the same shape
    handle = register_optimizer_step_post_hook(after)
    with suppress(Enough):
        model.fit(method.train_set)
    handle.remove()
    step, of = (clock[-1] - clock[0]) / steps, math.ceil(examples / model.batch_size)
    found = {"steps": steps, "step_cpu_seconds": step, "epoch_steps": of, "epoch_cpu_seconds": step * of}
    return found | {"recipe_epochs": model.n_epochs, "recipe_cpu_hours": step * of * model.n_epochs / 3600}


def run(name: str, folder: Path, changed: dict[str, Any], steps: int | None) -> dict[str, Any]:
    data = Dataset.read(folder)
    build, recipe = MODELS[name]
    settings = recipe | {"device": "cpu", "seed": 0, "verbose": True} | changed
    split = data.split()
    vectors = item_vectors(data, VectorsConfig()) if build is not SASRec else None
    log = {"model": f"cornac {name}", "data": folder.name, "settings": settings, "recipe": recipe, "changed": changed}
    log |= {"packages": dict(versions()), "machine": machine.facts("cpu")}
    method = splits(split, vectors)
    model = build(**settings)
    if steps:
        return log | {"projection": projection(model, method, split, steps)}

    curve = watch(model)
    cpu, wall = time.process_time(), time.perf_counter()
    model.fit(method.train_set, method.val_set)
    log |= {"fit_cpu_seconds": time.process_time() - cpu, "fit_seconds": time.perf_counter() - wall, "epochs": len(curve)}
    log["validation_curve"] = curve
    index = np.array([method.global_iid_map[row] for row in range(data.n_items)])
    scorer, counts = Scores(model, index), split.train_counts(data.n_items)
    for part, examples in (("validation", split.validation), ("test", split.test)):
        log[part] = evaluate(scorer, examples, data.n_items, counts).metrics
    few = split.test.take(np.arange(min(FEW, len(split.test))))
    ours = evaluate(scorer, few, data.n_items, counts, history="kept").metrics["kept"]
    own = own_figures(model, method, few)
    log["own_evaluator"] = {"users": len(few), "cornac": own, "ours": {metric: ours[metric] for metric in own}}
    return log


def versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        yield package, importlib.metadata.version(package)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an argument of cornac's constructor")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="how long would the recipe take? From N training steps; nothing is evaluated"
    )
    parser.add_argument("--note", help="words for the log, such as what was cut for want of time")
    parser.add_argument("--out", type=Path, help="JSON log")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    changed = {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in arguments.set)}
    log = run(arguments.model, arguments.data.resolve(), changed, arguments.steps)
    log |= {"note": arguments.note} if arguments.note else {}
    text = json.dumps(log, indent=1, ensure_ascii=False)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    for part in (part for part in ("validation", "test") if part in log):
        for history in ("kept", "removed"):
            print(part, f"history {history}", *(f"{metric} {log[part][history][metric]:.4f}" for metric in ("recall@10", "ndcg@10")))
    print(json.dumps(log.get("own_evaluator", log.get("projection")), indent=1))


if __name__ == "__main__":
    main()
