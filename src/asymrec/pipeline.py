"""Retrieve, then rank: a recommender finds `candidates` items, a ranker says of each how likely the user takes it next, and the list is
ordered by both.

In words: the final score of a candidate is log p(item | candidates) of retrieval + w * logit of the ranker. w is chosen on the
validation targets, items of the history taken out as `recommend` does, among WEIGHTS, where 0 is retrieval alone and infinity the
ranker alone, so ranking cannot do harm that validation shows. What was not retrieved keeps retrieval's order behind the candidates.
The ranker learns from the training part alone (ranking/asked.py); the test is looked at once.

A pipeline is a folder:

    retrieval/      an ordinary run folder
    ranker/         weights, vocabularies, schema, settings
    users.parquet   what is known of users, in their rows' order
    pipeline.json   weight, settings, metrics; written last
    checkpoint/     all that a fit works on, while it does

A fit works in checkpoint/ alone and goes on from there; the finished folder takes its place in one step.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from asymrec.config import Recipe
from asymrec.data import Dataset, Sequences
from asymrec.errors import AsymrecError, ConfigError, DataError, RunError
from asymrec.evaluation import Evaluation, evaluate, paired_bootstrap
from asymrec.evaluation.protocol import PROTOCOLS
from asymrec.files import atomic, checksum, recover
from asymrec.models import Recommender
from asymrec.ranking import Ranker, Schema, Tables
from asymrec.ranking.asked import Asked, actions_of, schema_of, training_impressions, with_nobody
from asymrec.ranking.ranker import find_ranker
from asymrec.results import split_of
from asymrec.retrieval.exact import top_k
from asymrec.runs import find_model, fit_run, locked
from asymrec.training.listener import Listener
from asymrec.training.loop import QUIET
from asymrec.version import __version__

FORMAT = 1
CHECKPOINT = "checkpoint"
PARTS = {"retrieval", "ranker", "users.parquet", "pipeline.json", CHECKPOINT}
RANKER, CANDIDATES = "tokenformer", 100
WEIGHTS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, math.inf)
VALIDATED = 2_000  # users whose candidates choose the ranker's epoch
TUNED = 5_000  # users on whom the weight is chosen
FILES = ("users.parquet", "ranker/ranker.json", "ranker/model.safetensors")  # the run folder has checksums of its own
STAGES = ("retrieval", "ranker", "both")


class Pipeline:
    """retrieval: a fitted model. ranker: fitted behind it. users: what is known of users, a line each and one of nulls at the end.
    weight: of the ranker. candidates: how many items are retrieved to be ranked."""

    def __init__(self, retrieval: Recommender, ranker: Ranker, users: pa.Table, weight: float, candidates: int):
        self.retrieval, self.ranker, self.users, self.weight, self.candidates = retrieval, ranker, users, weight, candidates

    @property
    def dataset(self) -> Dataset:
        return self.retrieval.dataset

    @classmethod
    def load(cls, folder: str | Path) -> Pipeline:
        """Raises RunError: not a pipeline, unfinished, damaged, of another format."""
        facts = read_pipeline(folder)
        for name in FILES:
            if not (Path(folder) / name).exists() or facts.get("files", {}).get(name) != checksum(Path(folder) / name):
                raise RunError(f"{Path(folder) / name} is missing or damaged")
        retrieval, ranker = Recommender.load(Path(folder) / "retrieval"), Ranker.load(Path(folder) / "ranker")
        try:
            users = pq.read_table(Path(folder) / "users.parquet")
            return cls(retrieval, ranker, users, float(facts["weight"]), int(facts["candidates"]))
        except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
            raise RunError(f"cannot read the pipeline in {folder}: {' '.join(str(error).split())[:200]}") from None

    def logits(
        self,
        histories: Sequences,
        rows: np.ndarray,
        users: np.ndarray | None = None,
        own: np.ndarray | None = None,
        items: pa.Table | None = None,
    ) -> np.ndarray:
        """The ranker's logit of each candidate.

        Args:
            histories: n sequences.
            rows: int [n, C], candidates; -1 where there is none.
            users: int [n], rows of the data set's users, -1 of whom nothing is known; None: of nobody.
            own: int [n], so many first items of a history are the data set's first of that user; by default all.
            items: another table of the items, by rows, where the catalogue has changed.
        Returns: float32 [n, C], -inf where there is no candidate.
        """
        n, dataset = len(histories), self.dataset
        users = np.full(n, -1) if users is None else np.asarray(users)
        who = np.where(users < 0, self.users.num_rows - 1, users)
        actions = actions_of(dataset, self.ranker.schema, histories, users, own)
        asked = Asked(dataset.items if items is None else items, self.users, histories, who, actions)
        there = rows >= 0
        owners = np.repeat(np.arange(n), rows.shape[1]).reshape(rows.shape)[there]
        found = np.full(rows.shape, -np.inf, np.float32)
        if there.any():
            probability = self.ranker.predict(asked.impressions(owners, rows[there])).astype(np.float64).clip(1e-7, 1 - 1e-7)
            found[there] = np.log(probability / (1 - probability))
        return found

    def blend(self, scores: np.ndarray, logits: np.ndarray, weight: float | None = None) -> np.ndarray:
        """Final scores float32 [n, C] from retrieval's and the ranker's; -inf stays."""
        weight = self.weight if weight is None else weight
        if math.isinf(weight):
            return logits
        there = np.isfinite(scores)
        known = scores.astype(np.float64) if self.retrieval.logits else np.log(np.where(there, np.maximum(scores, 0), 0) + 1e-9)
        known = np.where(there, known, -np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):  # of a line without candidates
            known = known - known.max(1, keepdims=True, initial=-np.inf)
            known = known - np.log(np.exp(known).sum(1, keepdims=True))
        return np.where(there, known + weight * np.where(there, logits, 0), -np.inf).astype(np.float32)

    def rank(
        self, histories: Sequences, k: int, barred: np.ndarray | None = None, exclude_seen: bool = True, users: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The k best items: rows int32 [n, k], -1 where fewer are allowed; final scores; retrieval's; the ranker's logits [n, k].

        Where k is larger than `candidates`, as many are ranked. barred: bool [n_items], items that nobody may get.
        """
        rows, scores = self.retrieval.best(histories, min(max(k, self.candidates), self.dataset.n_items), barred, exclude_seen)
        logits = self.logits(histories, rows, users)
        final = self.blend(np.where(rows >= 0, scores, -np.inf), logits)
        order = np.argsort(-final, axis=1, kind="stable")[:, :k]
        return tuple(np.take_along_axis(each, order, 1) for each in (rows, final, scores, logits))

    def recommend(
        self,
        histories: Sequence[Sequence[Any]] | None = None,
        k: int = 10,
        *,
        users: Sequence[Any] | None = None,
        exclude_seen: bool = True,
        only: Sequence[Any] | None = None,
        exclude: Sequence[Any] | None = None,
    ) -> list[list[dict[str, Any]]]:
        """The k best items for each history, or for each user of the data set, best first.

        Arguments and errors as of `Recommender.recommend`. Returns for each a list of {"id", "score", "retrieval", "ranker"}: the final
        score, retrieval's, and the ranker's probability.
        """
        if k < 1:
            raise ConfigError(f"k must be at least 1, not {k}")
        dataset = self.dataset
        sequences = self.retrieval._histories(histories, users, None)
        who = None if users is None else dataset.user_rows(users)
        barred = self.retrieval.barred(only, exclude)
        shown = []
        for rows, final, scores, logits in zip(*self.rank(sequences, k, barred, exclude_seen, who)):
            shown.append(
                [
                    {"id": dataset.item_ids[int(row)].as_py(), "score": float(f), "retrieval": float(s), "ranker": 1 / (1 + math.exp(-g))}
                    for row, f, s, g in zip(rows, final, scores, logits)
                    if row >= 0
                ]
            )
        return shown


class _Stage:
    """A pipeline as `evaluate` reads a model, at one weight; it is asked for the examples in their order.

    exclude_seen: whether items of the history are retrieved. kept: what stages of other weights found before, by the first example.
    """

    def __init__(self, pipeline: Pipeline, examples: Any, weight: float, exclude_seen: bool, kept: dict[int, tuple[np.ndarray, ...]]):
        self.pipeline, self.users, self.weight, self.kept, self.at = pipeline, examples.users, weight, kept, 0
        self.exclude_seen = exclude_seen

    def scores(self, histories: Sequences) -> np.ndarray:
        """Retrieval's scores, and above them the candidates, by the rank of their final score; equal ones stay equal.

        A candidate whose score an item that was left out has too is none: the order of rows must not favour it.
        """
        start, self.at = self.at, self.at + len(histories)
        pipeline = self.pipeline
        scores = np.array(pipeline.retrieval.scores(histories), np.float32)
        if self.exclude_seen:
            scores[histories.owners, histories.items] = -np.inf
        if self.weight == 0:
            return scores
        if start not in self.kept:
            rows, values = top_k(scores, min(pipeline.candidates + 1, scores.shape[1]))
            if rows.shape[1] > pipeline.candidates:
                rows = np.where(values > values[:, -1:], rows, -1)
            self.kept[start] = rows, values, pipeline.logits(histories, rows, self.users[start : self.at])
        rows, values, logits = self.kept[start]
        final = pipeline.blend(np.where(rows >= 0, values, -np.inf), logits, self.weight)
        order = np.argsort(final, axis=1, kind="stable")
        ranked = np.take_along_axis(final, order, 1)
        place = np.zeros(final.shape, np.float32)
        steps = np.concatenate([np.ones((len(final), 1), bool), ranked[:, 1:] != ranked[:, :-1]], 1).cumsum(1)
        np.put_along_axis(place, order, steps.astype(np.float32), 1)
        finite = np.where(np.isfinite(scores), scores, -np.inf).max(1, keepdims=True)
        owners, at = np.nonzero(rows >= 0)
        scores[owners, rows[owners, at]] = (np.maximum(finite, 0) + place)[owners, at]
        return scores


def fit_pipeline(
    data: str | Path | None,
    folder: str | Path,
    recipe: Recipe | None = None,
    *,
    model: str | None = None,
    ranker: str | None = None,
    settings: dict[str, Any] | None = None,
    candidates: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener = QUIET,
) -> dict[str, Any]:
    """Fit retrieval and a ranker behind it, choose how much either counts, measure both, leave a pipeline's folder.

    Args:
        data: folder with interactions.*, items.* and, where there is one, users.*; with `resume` not needed.
        recipe, model: of retrieval, as `fit_run` takes them. ranker: a name in `RANKERS`, by default tokenformer. settings: of the ranker.
        candidates: items that are retrieved to be ranked, by default 100. With `resume` what is given must be what was begun with.
        resume: go on with the interrupted fit in `folder`; where nothing was begun, begin. overwrite: replace what is there, at the end.
    Returns the facts of `pipeline.json`.
    Raises RunError: the folder is in the way or damaged. ConfigError, DataError: nothing of what was there is lost.
    """
    folder = Path(folder)
    work = folder / CHECKPOINT
    recover(folder)
    if resume and overwrite:
        raise ConfigError("--resume goes on with a fit, --overwrite begins anew: give one of them")
    finished, begun = (folder / "pipeline.json").exists(), (work / "pipeline.json").exists()
    if resume and finished and not begun:
        listener.stage(f"{folder} is finished: nothing to resume")
        return read_pipeline(folder)
    if folder.exists() and not (finished or begun) and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is there and is no pipeline: choose another")
    if begun and not (resume or overwrite):
        raise RunError(f"{folder} holds an unfinished fit: go on with --resume, or begin anew with --overwrite")
    if finished and not (resume or overwrite):
        raise RunError(f"{folder} holds a pipeline already: choose another folder, or replace it with --overwrite")
    if folder.exists() and (strange := sorted({path.name for path in folder.iterdir()} - PARTS)):
        raise RunError(f"{folder} holds {strange[0]}, which is no part of a pipeline: move it first")
    given = recipe.model_dump(mode="json", exclude_unset=True) if recipe else {}
    asked = {"model": model, "ranker": ranker, "settings": settings or None, "candidates": candidates, "recipe": given or None}
    if resume and begun:
        _same(work, asked)
    else:
        if data is None:
            raise RunError("DATA is missing: the folder to fit on")
        with locked(folder):
            _begin(
                data, work, recipe or Recipe(), model, ranker or RANKER, settings or {}, CANDIDATES if candidates is None else candidates
            )
    with locked(folder):
        return _finish(folder, work, listener)


def _same(work: Path, asked: dict[str, Any]) -> None:
    """Raises ConfigError: something asked for (not None) is not what the interrupted fit was begun with."""
    about = _about(work)
    for name, value in asked.items():
        if value is not None and about.get(name) != json.loads(json.dumps(value)):
            raise ConfigError(f"{name} is {value!r} here and {about.get(name)!r} in the interrupted fit: leave it out to resume")


def _about(work: Path) -> dict[str, Any]:
    try:
        about = json.loads((work / "pipeline.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise RunError(f"{work} was begun in format {about['format']}; this version reads {FORMAT}: begin anew with --overwrite")
        return about
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(f"{work / 'pipeline.json'} is damaged: begin anew with --overwrite") from None


def is_pipeline(folder: str | Path) -> bool:
    """Whether a folder holds a pipeline, finished or not."""
    recover(Path(folder))
    return (Path(folder) / "pipeline.json").exists() or (Path(folder) / CHECKPOINT / "pipeline.json").exists()


def read_pipeline(folder: str | Path) -> dict[str, Any]:
    """What `pipeline.json` holds. Raises RunError."""
    folder = Path(folder)
    recover(folder)
    try:
        facts = json.loads((folder / "pipeline.json").read_text(encoding="utf-8"))
        form, version = facts["format"], facts["asymrec"]
    except FileNotFoundError:
        begun = (folder / CHECKPOINT / "pipeline.json").exists()
        raise RunError(f"{folder} holds an unfinished pipeline: go on with --resume" if begun else f"{folder} is no pipeline") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(f"{folder / 'pipeline.json'} is damaged: fit the pipeline again") from None
    if form != FORMAT:
        raise RunError(f"{folder} was written by asymrec {version} in format {form}; this version reads {FORMAT}")
    return facts


def _begin(data: str | Path, work: Path, recipe: Recipe, model: str | None, ranker: str, settings: dict, candidates: int) -> None:
    """Check what can be checked before hours of work, and keep what a fit needs to go on."""
    kind = find_ranker(ranker)
    if candidates < 2:
        raise ConfigError(f"candidates must be at least 2, not {candidates}")
    if recipe.data.split == "untied":
        raise ConfigError("a pipeline needs histories in the data's own order: split must be leave-last-out or time")
    if not Path(data).is_dir():
        raise DataError(f"{data}: no such folder")
    find_model(model or "asymrec")(recipe)
    tables = Tables.beside(Dataset.read(data, config=recipe.data), data)
    kind(schema_of(tables), **settings)
    about = {"format": FORMAT, "data": str(Path(data).resolve()), "model": model, "ranker": ranker, "settings": settings}
    with atomic(work) as temporary:
        temporary.mkdir()
        pq.write_table(with_nobody(tables.users), temporary / "users.parquet")
        (temporary / "schema.yaml").write_text(schema_of(tables).yaml(), encoding="utf-8")
        given = recipe.model_dump(mode="json", exclude_unset=True)
        (temporary / "pipeline.json").write_text(json.dumps(about | {"candidates": candidates, "recipe": given}), encoding="utf-8")


def _finish(folder: Path, work: Path, listener: Listener) -> dict[str, Any]:
    about = _about(work)
    try:
        recipe, schema, users = Recipe.of(about["recipe"]), Schema.read(work / "schema.yaml"), pq.read_table(work / "users.parquet")
    except (OSError, ValueError, KeyError, pa.ArrowException, AsymrecError) as error:
        raise RunError(f"{work} is damaged ({' '.join(str(error).split())[:100]}): begin anew with --overwrite") from None
    fit_run(about["data"], work / "retrieval", recipe, model=about["model"], resume=True, listener=listener)
    retrieval = Recommender.load(work / "retrieval")
    dataset = retrieval.dataset
    split = split_of(dataset, retrieval.recipe)
    seed = retrieval.recipe.training.seed
    pipeline = Pipeline(retrieval, None, users, 1.0, min(about["candidates"], dataset.n_items))
    if not (work / "ranker").exists():
        listener.stage("candidates to learn from")
        made = training_impressions(dataset, users, schema, split.train, split.train_users, _retriever(pipeline), seed)
        listener.stage(f"fit {about['ranker']} on {len(made):,} impressions")
        pipeline.ranker = find_ranker(about["ranker"])(schema, **{"seed": seed} | about["settings"])
        pipeline.ranker.fit(made, _validation(pipeline, schema, split.validation), listener)
        pipeline.ranker.save(work / "ranker")
    pipeline.ranker = Ranker.load(work / "ranker")

    some = split.validation
    if len(some) > TUNED:
        some = some.take(np.sort(np.random.default_rng(seed).permutation(len(some))[:TUNED]))
    counts = split.train_counts(dataset.n_items)
    listener.stage(f"choose the weight on {len(some):,} users of the validation")
    stages: dict[int, tuple[np.ndarray, ...]] = {}
    tried = {weight: _evaluated(pipeline, some, weight, counts, "removed", stages)["ndcg@10"] for weight in WEIGHTS}
    pipeline.weight = max(tried, key=tried.get)  # the first of equals: the one that leans on retrieval
    weight = pipeline.weight if math.isfinite(pipeline.weight) else "inf"  # JSON has no infinity
    listener.stage(f"evaluate on {len(split.test):,} users of the test")
    facts = {
        **{"format": FORMAT, "asymrec": __version__, "weight": weight, "candidates": pipeline.candidates},
        **{"retrieval": retrieval.name, "ranker": about["ranker"], "settings": about["settings"], "data": Path(about["data"]).name},
        "validation": {str(weight): value for weight, value in tried.items()},
    } | measured(pipeline, split.test, counts)
    with atomic(folder) as temporary:
        temporary.mkdir()
        for part in ("retrieval", "ranker"):
            shutil.copytree(work / part, temporary / part, copy_function=_linked)
        shutil.copy(work / "users.parquet", temporary / "users.parquet")
        facts["files"] = {name: checksum(temporary / name) for name in FILES}
        (temporary / "pipeline.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return facts


def measured(pipeline: Pipeline, examples: Any, counts: np.ndarray) -> dict[str, Any]:
    """Retrieval alone, the ranker alone on what was retrieved, and both: metrics of each and what ranking adds, with intervals."""
    weights = dict(zip(STAGES, (0.0, math.inf, pipeline.weight)))
    found: dict[str, dict[str, Evaluation]] = {stage: {} for stage in STAGES}
    for history in PROTOCOLS:
        stages: dict[int, tuple[np.ndarray, ...]] = {}
        for stage, weight in weights.items():
            found[stage][history] = _evaluated(pipeline, examples, weight, counts, history, stages, (5, 10, 20), whole=True)
    compared = [
        {"model": stage, "baseline": "retrieval"}
        | paired_bootstrap(found[stage][history], found["retrieval"][history], metric, 2000, history=history).dict()
        for stage in STAGES[1:]
        for metric in ("ndcg@10", "recall@10")
        for history in PROTOCOLS
    ]
    metrics = {stage: {history: each.metrics[history] for history, each in own.items()} for stage, own in found.items()}
    return {"users": len(examples), "metrics": metrics, "comparisons": compared}


def _evaluated(pipeline, examples, weight, counts, history, stages, ks=(10,), whole=False) -> Any:
    """One stage's Evaluation (`whole`), or its metrics, with the history in the ranking or taken out before anything is retrieved."""
    stage = _Stage(pipeline, examples, weight, history == "removed", stages)
    found = evaluate(stage, examples, pipeline.dataset.n_items, counts, ks=ks, history=history)
    return found if whole else found.metrics[history]


def evaluate_pipeline(folder: str | Path) -> dict[str, Any]:
    """The test's figures again, from the folder alone. Raises RunError."""
    pipeline = Pipeline.load(folder)
    split = split_of(pipeline.dataset, pipeline.retrieval.recipe)
    return read_pipeline(folder) | measured(pipeline, split.test, split.train_counts(pipeline.dataset.n_items))


def _retriever(pipeline: Pipeline):
    return lambda histories: pipeline.retrieval.best(histories, pipeline.candidates, None, False)[0]


def _validation(pipeline: Pipeline, schema: Schema, examples: Any):
    """Impressions that choose the ranker's epoch: the targets and what is retrieved for some validation users."""
    dataset = pipeline.dataset
    some = examples.take(np.unique(np.linspace(0, len(examples) - 1, min(len(examples), VALIDATED)).astype(np.int64)))
    rows = _retriever(pipeline)(some.histories)
    actions = actions_of(dataset, schema, some.histories, some.users)
    asked = Asked(dataset.items, pipeline.users, some.histories, some.users, actions)
    owners = np.repeat(np.arange(len(some)), rows.shape[1])
    pairs = np.concatenate([owners * dataset.n_items + rows.reshape(-1), some.targets.owners * dataset.n_items + some.targets.items])
    pairs = np.unique(pairs[np.concatenate([rows.reshape(-1) >= 0, np.ones(len(some.targets.items), bool)])])
    wanted = np.isin(pairs, some.targets.owners * dataset.n_items + some.targets.items)
    return asked.impressions(pairs // dataset.n_items, pairs % dataset.n_items, wanted)


def _linked(source: str, target: str) -> None:
    """A file under a second name, where the disk can, else a copy: the checkpoint stays whole until the new folder is in place."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
