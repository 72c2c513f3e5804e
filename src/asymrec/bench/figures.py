"""What the finished cells of a plan say: means and spread over seeds, and whether differences are real.

Differences are paired by user. A row's figure of a user is the mean over its seeds, so that the bootstrap over users speaks of the
model as it is trained on average, not of one lucky seed; the spread over seeds stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from asymrec.bench.plan import Cell, Entry, Headline, Plan
from asymrec.bench.run import command, facts, outcome, read, settled
from asymrec.errors import EvaluationError, RunError
from asymrec.evaluation import Comparison, Evaluation, paired_bootstrap

SAMPLES = 5000  # of every bootstrap
HISTORIES = ("kept", "removed")

# What is read of a model's metrics; one that is not there (no cold target, no codes) is none
METRICS: dict[str, tuple[str, ...]] = {
    **{f"{metric} {history}": (history, metric) for history in HISTORIES for metric in ("recall@10", "ndcg@10")},
    **{f"{name} ndcg@10": ("slices", "popularity", name, "kept", "ndcg@10") for name in ("head", "mid", "tail")},
    **{f"{name} ndcg@10": ("slices", "warmth", name, "kept", "ndcg@10") for name in ("warm", "cold")},
    "cold recall@10": ("slices", "warmth", "cold", "kept", "recall@10"),
    "cold among cold recall@10": ("slices", "warmth", "cold_only", "kept", "recall@10"),
    "cold users": ("slices", "warmth", "cold", "users"),
    "code-level ndcg@10": ("code_level", "kept", "ndcg@10"),
    "scoring seconds": ("scoring_seconds",),
}
AROUND = ("read", "note:", "vectors", "resume", "evaluate", "baseline", "write")  # stages of a run that do not make the model
COLUMNS = (*METRICS, "validation ndcg@10", "parameters", "training seconds", "peak memory MiB")


@dataclass(frozen=True)
class Spread:
    """Mean, least and greatest over `n` seeds."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        known = [float(value) for value in values if value is not None]
        return cls(float(np.mean(known)), min(known), max(known), len(known)) if known else None


@dataclass(frozen=True)
class Row:
    """A model on a data set by a protocol. `cells`: of its finished seeds; `against`: history -> (best other model, comparison)."""

    data: str
    protocol: str
    entry: Entry
    cells: list[Cell]
    planned: int
    values: dict[str, Spread | None]
    users: Averaged
    against: dict[str, tuple[str, Comparison]]

    @property
    def command(self) -> str:
        """What makes the first of its cells."""
        return command(self.cells[0])


@dataclass(frozen=True)
class Averaged:
    """Several evaluations of the same users as one: a user's figure is its mean over them. Stands in for an `Evaluation`."""

    parts: list[Evaluation]

    def __post_init__(self) -> None:
        first = self.parts[0]
        for part in self.parts[1:]:
            if len(part.users) != len(first.users) or (part.users != first.users).any():
                raise EvaluationError(f"seeds of one model have other users: {len(first.users):,} and {len(part.users):,}")
            if not (np.array_equal(part.offsets, first.offsets) and np.array_equal(part.targets, first.targets)):
                raise EvaluationError("seeds of one model have other targets: their data are not the same")

    @property
    def users(self) -> np.ndarray:
        return self.parts[0].users

    @property
    def offsets(self) -> np.ndarray:
        return self.parts[0].offsets

    @property
    def targets(self) -> np.ndarray:
        return self.parts[0].targets

    def per_user(self, metric: str, history: str = "kept") -> np.ndarray:
        return np.mean([part.per_user(metric, history) for part in self.parts], axis=0)


@dataclass(frozen=True)
class Gain:
    """A headline by one protocol: (data, model's mean, best rival, its mean, relative gain, low, high) and the mean over the data."""

    headline: Headline
    protocol: str
    parts: list[tuple[str, float, str, float, float, float, float]]
    mean: float
    low: float
    high: float
    missing: list[str]


@dataclass(frozen=True)
class Findings:
    """rows: (data, protocol) -> rows in the plan's order; failed, impossible: cells with their records; broken: (data, protocol) -> why its
    cells cannot be compared; environments: versions and machines."""

    plan: Plan
    rows: dict[tuple[str, str], list[Row]]
    gains: list[Gain]
    open_cells: list[Cell]
    failed: list[tuple[Cell, dict[str, Any]]]
    impossible: list[tuple[Cell, dict[str, Any]]]
    broken: dict[tuple[str, str], str]
    trials: list[tuple[Cell, dict[str, Any], float | None, bool]]  # trial, record, validation NDCG@10, chosen
    datasets: dict[str, dict[str, Any]]
    environments: list[str]


def findings(plan: Plan) -> Findings:
    """All that the finished cells say. Raises RunError: damaged."""
    groups: dict[tuple[str, str], dict[str, list[Cell]]] = {}
    open_cells, failed, impossible, datasets, environments = [], [], [], {}, []
    for before in plan.cells():
        cell, record = outcome(plan, before)
        if record["state"] == "finished":
            groups.setdefault((cell.data, cell.protocol), {}).setdefault(cell.entry.name, []).append(cell)
            found = facts(plan, cell)
            datasets.setdefault(cell.data, found["dataset"])
            environments.append(_environment(found))
        elif record["state"] in ("failed", "not possible"):
            (failed if record["state"] == "failed" else impossible).append((cell, record))
        else:
            open_cells.append(before)
    trials, chosen = [], {}
    for before in plan.cells():
        if plan.trials(before) and (cell := settled(plan, before)) is not None:
            chosen[plan.trials(before)[0].place.parent] = cell.tuned
    for trial in plan.trials_of(plan.cells()):
        record = read(plan, trial)
        figure = facts(plan, trial)["metrics"][trial.entry.model]["kept"]["ndcg@10"] if record["state"] == "finished" else None
        trials.append((trial, record, figure, figure is not None and chosen.get(trial.place.parent) == trial.tuned))
        if record["state"] == "failed":
            failed.append((trial, record))
    places = [(data, protocol) for data in plan.data for protocol in plan.protocols]
    rows, broken = {}, {}
    for place in places:
        try:
            if place in groups:
                rows[place] = _rows(plan, place, groups[place])
        except EvaluationError as error:
            folder = "/".join(place)
            broken[place] = f"its cells cannot be compared: {error}; remove the folder {folder} of the output and run the bench again"
    gains = [gain for headline in plan.headline for protocol in plan.protocols if (gain := _gain(plan, headline, protocol, rows))]
    return Findings(plan, rows, gains, open_cells, failed, impossible, broken, trials, datasets, list(dict.fromkeys(environments)))


def _rows(plan: Plan, place: tuple[str, str], groups: dict[str, list[Cell]]) -> list[Row]:
    bare = []
    for entry in plan.models:
        if cells := groups.get(entry.name):
            known = [facts(plan, cell) for cell in cells]
            ranks = [_ranks(plan, cell) for cell in cells]
            bare.append((entry, cells, _values(plan, cells, known), Averaged(ranks)))
    rows = []
    for entry, cells, values, users in bare:
        against = {}
        for history in HISTORIES:
            others = [(other[2][f"ndcg@10 {history}"].mean, -at, other) for at, other in enumerate(bare) if other[0] is not entry]
            if others:
                _, _, (rival, _, _, theirs) = max(others, key=lambda other: other[:2])
                against[history] = (rival.name, paired_bootstrap(users, theirs, "ndcg@10", SAMPLES, history=history))
        rows.append(Row(*place, entry, cells, len(plan.seeds_of(place[1])), values, users, against))
    return rows


def _ranks(plan: Plan, cell: Cell) -> Evaluation:
    """Raises RunError: damaged."""
    folder = plan.output / cell.place
    try:
        return Evaluation.load(folder / "ranks" / f"{cell.entry.model}.parquet")
    except EvaluationError as error:
        raise RunError(f"{error}: remove the folder {folder} and run the bench again") from None


def _values(plan: Plan, cells: list[Cell], known: list[dict[str, Any]]) -> dict[str, Spread | None]:
    model = cells[0].entry.model
    values = {name: Spread.of(_pick(one["metrics"][model], path) for one in known) for name, path in METRICS.items()}
    values["validation ndcg@10"] = Spread.of(_pick(one, ("validation", "ndcg@10")) for one in known) or _of_trials(plan, cells[0])
    values["parameters"] = Spread.of(one.get("parameters") for one in known)
    values["training seconds"] = Spread.of(_training(one["seconds"]) for one in known)
    values["peak memory MiB"] = Spread.of(one.get("peak_memory_mib") for one in known)
    return values


def _of_trials(plan: Plan, cell: Cell) -> Spread | None:
    """The validation figure of a model that keeps no log of epochs: that of the trial that was chosen, where it is of this protocol."""
    for trial in plan.trials(cell):
        if trial.protocol == cell.protocol and trial.tuned == cell.tuned and read(plan, trial)["state"] == "finished":
            return Spread.of([facts(plan, trial)["metrics"][cell.entry.model]["kept"]["ndcg@10"]])
    return None


def _pick(tree: Any, path: tuple[str, ...]) -> float | None:
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _training(seconds: dict[str, float]) -> float:
    """Codes and all else that is fitted among it; the items' vectors, which all models share and a cache may hold, are not."""
    return sum(value for stage, value in seconds.items() if stage not in AROUND)


def _environment(found: dict[str, Any]) -> str:
    about = found["environment"]
    return f"asymrec {found['asymrec']}, torch {about['torch']}, {about['device']}, {about['processor']}, {about['threads']} threads a cell"


def _gain(plan: Plan, headline: Headline, protocol: str, rows: dict[tuple[str, str], list[Row]]) -> Gain | None:
    """None where the model and a rival are finished on no data set.

    Users are drawn with replacement, on each data set on its own, the same for the model and its rival; the rival is the one with the
    best mean, chosen once.
    """
    parts, samples, missing = [], [], []
    for number, data in enumerate(headline.data or plan.data):
        named = {row.entry.name: row for row in rows.get((data, protocol), [])}
        if headline.model not in named or not any(name in named for name in headline.rivals):
            missing.append(data)
            continue
        per_user = {
            name: named[name].users.per_user(headline.metric, headline.history)
            for name in (headline.model, *headline.rivals)
            if name in named
        }
        ours = per_user[headline.model]
        rival = max((name for name in headline.rivals if name in named), key=lambda name: per_user[name].mean())
        theirs = per_user[rival]
        if not theirs.mean():
            missing.append(data)
            continue
        drawn = _ratios(ours, theirs, np.random.default_rng((0, number))) - 1
        gain = ours.mean() / theirs.mean() - 1
        parts.append((data, ours.mean(), rival, theirs.mean(), gain, *np.percentile(drawn, (2.5, 97.5))))
        samples.append(drawn)
    if not parts:
        return None
    low, high = np.percentile(np.mean(samples, axis=0), (2.5, 97.5))
    return Gain(headline, protocol, parts, float(np.mean([part[4] for part in parts])), float(low), float(high), missing)


def _ratios(ours: np.ndarray, theirs: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Sums of `ours` over sums of `theirs`, float64 [SAMPLES], in draws of the users with replacement: how often each distinct pair
    occurs is a multinomial, see `evaluation.compare`. Infinite where a draw has only users of whom `theirs` is 0."""
    pairs, counts = np.unique(np.stack([ours, theirs], axis=1), axis=0, return_counts=True)
    step = max(1, (1 << 22) // len(pairs))
    sums = np.concatenate(
        [generator.multinomial(len(ours), counts / len(ours), size=min(step, SAMPLES - at)) @ pairs for at in range(0, SAMPLES, step)]
    )
    return np.divide(sums[:, 0], sums[:, 1], out=np.full(SAMPLES, np.inf), where=sums[:, 1] > 0)
