"""What a run tells about its model: metrics beside the baselines, ranks, examples, the report page, neighbours by codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from asymrec import machine
from asymrec.config import Recipe
from asymrec.data import Dataset, Split
from asymrec.errors import ConfigError, RunError
from asymrec.evaluation import Evaluation, evaluate, paired_bootstrap
from asymrec.evaluation.report import write_report
from asymrec.files import atomic
from asymrec.models import MODELS, Recommender
from asymrec.progress import Clock
from asymrec.retrieval.exact import top_k
from asymrec.version import __version__

BASELINES = ("itemknn", "popularity")
COMPARED = (("ndcg@10", "kept"), ("recall@10", "kept"), ("ndcg@10", "removed"), ("recall@10", "removed"))
SAMPLES = 2000  # of the bootstrap behind the report; `compare_runs` takes its own default
EXAMPLES, EXAMPLE_HISTORY, EXAMPLE_K = 5, 30, 10


def split_of(dataset: Dataset, recipe: Recipe) -> Split:
    return dataset.split(recipe.data.split, recipe.data.validation_share, recipe.data.test_share, recipe.training.seed)


def facts_of(recommender: Recommender, name: str, log: list[dict]) -> dict[str, Any]:
    """What is known of a fitted model before it is evaluated; `validation` where its log tells of epochs."""
    dataset, best = recommender.dataset, best_validation(log)
    return {
        "asymrec": __version__,
        "model": recommender.name,
        "dataset": {
            "name": name,
            "users": dataset.n_users,
            "items": dataset.n_items,
            "interactions": len(dataset.sequences.items),
            "split": recommender.recipe.data.split,
            "notes": dataset.notes,
        },
        "parameters": parameters(recommender),
        "environment": machine.facts(recommender.recipe.training.device),
    } | ({"validation": best} if best else {})


def parameters(recommender: Recommender) -> int:
    """Learned numbers: the network's, where there is one, else all that the model keeps but indices; of a fusion, its parts' sum."""
    if parts := getattr(recommender, "parts", None):
        return sum(map(parameters, parts))
    if (network := getattr(recommender, "network", None)) is not None:
        return sum(tensor.numel() for tensor in network.parameters())
    return sum(tensor.numel() for tensor in recommender.tensors().values() if tensor.is_floating_point())


def best_validation(log: list[dict]) -> dict[str, Any] | None:
    """The validation figures of the epoch that was kept: {"epoch", "ndcg@10", "recall@10", ...}; None without epochs."""
    known = [entry for entry in log if "ndcg@10" in entry and "part" not in entry]  # a fusion's parts speak for themselves alone
    best = max(known, key=lambda entry: entry["ndcg@10"], default=None)
    return best and {"epoch": best["epoch"]} | {name: value for name, value in best.items() if "@" in name}


def evaluate_all(
    recommender: Recommender, facts: dict[str, Any], clock: Clock, part: Literal["test", "validation"] = "test"
) -> dict[str, Evaluation]:
    """Metrics of the model and, fitted on the same, the baselines; into `facts` and as evaluations by model name.

    part: whose examples are ranked; with `validation`, for tuning, nothing of the test is looked at.
    """
    dataset = recommender.dataset
    split = split_of(dataset, recommender.recipe)
    counts = split.train_counts(dataset.n_items)
    ranked = split.test if part == "test" else split.validation
    about = {label: value for label, value in facts["dataset"].items() if label not in ("test users", "validation users")}
    facts["dataset"] = about | {"part": part, f"{part} users": len(ranked.users), "left out": split.left_out}

    def evaluated(model: Recommender) -> Evaluation:
        return evaluate(model, ranked, dataset.n_items, counts, groups=model.code_groups())

    clock.stage(f"evaluate on {len(ranked.users):,} users of the {part}")
    evaluations = {recommender.name: evaluated(recommender)}
    for name in BASELINES:
        if name not in evaluations:
            clock.stage(f"baseline {name}")
            evaluations[name] = evaluated(MODELS[name](Recipe(data=recommender.recipe.data)).fit(dataset, split))
    facts["metrics"] = {name: evaluation.metrics for name, evaluation in evaluations.items()}
    own = evaluations[recommender.name]
    facts["comparisons"] = [
        {"model": recommender.name, "baseline": name} | paired_bootstrap(own, other, metric, SAMPLES, history=history).dict()
        for name, other in evaluations.items()
        if name != recommender.name
        for metric, history in COMPARED
    ]
    return evaluations


def write_results(folder: Path, recommender: Recommender, facts: dict, evaluations: dict[str, Evaluation], log: list[dict]) -> None:
    with atomic(folder / "ranks") as temporary:
        temporary.mkdir()
        for name, evaluation in evaluations.items():
            evaluation.save(temporary / f"{name}.parquet")
    for name, text in (
        ("metrics.json", json.dumps(facts, indent=1, ensure_ascii=False)),
        ("log.jsonl", "".join(json.dumps(entry) + "\n" for entry in log)),
    ):
        with atomic(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    curves = [{"epoch": one["epoch"], "loss": one["loss"], "ndcg": one.get("ndcg@10"), "seconds": one.get("seconds")} for one in log]
    memory = {"peak memory": f"{facts['peak_memory_mib']:,} MiB"} if facts.get("peak_memory_mib") else {}
    page = {
        "title": f"{facts['model']} on {facts['dataset']['name']}",
        "subtitle": f"asymrec {facts['asymrec']}",
        "model": facts["model"],
        "dataset": facts["dataset"],
        "metrics": facts["metrics"],
        "comparisons": facts["comparisons"],
        "curves": curves,
        "codebook": facts.get("codebook"),
        "examples": examples(recommender, facts["dataset"]["part"]),
        "config": recommender.recipe.model_dump(mode="json"),
        "environment": facts["environment"] | memory,
        "seconds": facts["seconds"],
    }
    write_report(folder / "report.html", page)


def examples(recommender: Recommender, part: Literal["test", "validation"] = "test") -> list[dict[str, Any]]:
    """A few users of the part, drawn by a fixed seed: what they had, what is recommended, what they took."""
    dataset, split = recommender.dataset, split_of(recommender.dataset, recommender.recipe)
    ranked = split.test if part == "test" else split.validation
    chosen = ranked.take(np.sort(np.random.default_rng(0).permutation(len(ranked.users))[:EXAMPLES]))
    scores = np.array(recommender.scores(chosen.histories), np.float32)
    scores[chosen.histories.owners, chosen.histories.items] = -np.inf
    titles, users = dataset.titles(), dataset.user_ids
    shown = []
    for at, (rows, values) in enumerate(zip(*top_k(scores, min(EXAMPLE_K, dataset.n_items)))):
        targets = set(chosen.targets[at].tolist())
        shown.append(
            {
                "user": str(users[int(chosen.users[at])].as_py()),
                "history": [titles[row] for row in chosen.histories[at][-EXAMPLE_HISTORY:]],
                "recommended": [{"title": titles[r], "score": float(v), "hit": int(r) in targets} for r, v in zip(rows, values) if r >= 0],
                "targets": [titles[row] for row in targets],
            }
        )
    return shown


def codebook(recommender: Recommender) -> dict[str, Any] | None:
    vectors, codes = recommender.catalogue()
    return None if codes is None or vectors is None else recommender.quantizer.report(vectors, codes)


def nearest_by_codes(recommender: Recommender, item: Any, k: int = 10) -> dict[str, Any]:
    """An item's codes [facets][levels], and the k items that have most codes in common with it; equal ones in order of the item table.

    Returns {"id", "title", "codes", "n_codes", "nearest": [{"id", "title", "shared"}]}. Raises UnknownIdError, ConfigError: k below 1.
    RunError: the model has no codes.
    """
    _, codes = recommender.catalogue()
    if codes is None:
        raise RunError(f"model '{recommender.name}' has no codes")
    if k < 1:
        raise ConfigError(f"k must be at least 1, not {k}")
    dataset = recommender.dataset
    row = int(dataset.item_rows([item])[0])
    shared = (codes == codes[row]).sum(axis=1)
    shared[row] = -1
    nearest = (-shared).argsort(kind="stable")[: min(k, len(codes) - 1)]
    titles, ids = dataset.titles(), dataset.item_ids
    return {
        "id": ids[row].as_py(),
        "title": titles[row],
        "codes": codes[row].reshape(recommender.quantizer.code_shape).tolist(),
        "n_codes": codes.shape[1],
        "nearest": [{"id": ids[int(near)].as_py(), "title": titles[near], "shared": int(shared[near])} for near in nearest],
    }
