"""Fit a pipeline: a fit works in checkpoint/ alone and goes on from there; the finished folder takes its place in one step."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from asymrec.config import Recipe
from asymrec.data import Dataset
from asymrec.errors import AsymrecError, ConfigError, DataError, RunError
from asymrec.files import atomic, checksum, locked, recover
from asymrec.models import Recommender
from asymrec.pipeline.pipeline import CHECKPOINT, FILES, FORMAT, Pipeline, read_pipeline
from asymrec.pipeline.stages import evaluated, measured
from asymrec.ranking import Ranker, Schema, Tables
from asymrec.ranking.asked import Asked, actions_of, schema_of, training_impressions, with_codes, with_nobody
from asymrec.ranking.ranker import find_ranker
from asymrec.results import split_of
from asymrec.runs import find_model, fit_run
from asymrec.training.listener import Listener
from asymrec.training.loop import QUIET
from asymrec.version import __version__

PARTS = {"retrieval", "ranker", "users.parquet", "pipeline.json", CHECKPOINT}
RANKER, CANDIDATES = "tokenformer", 100
WEIGHTS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, math.inf)
VALIDATED = 2_000  # users whose candidates choose the ranker's epoch
TUNED = 5_000  # users on whom the weight is chosen


def fit_pipeline(
    data: str | Path | None,
    folder: str | Path,
    recipe: Recipe | None = None,
    *,
    model: str | None = None,
    ranker: str | None = None,
    settings: dict[str, Any] | None = None,
    candidates: int | None = None,
    codes: bool | None = None,
    schema: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener = QUIET,
) -> dict[str, Any]:
    """Fit retrieval and a ranker behind it, choose how much either counts, measure both, leave a pipeline's folder.

    Args:
        data: folder with interactions.*, items.* and, where there is one, users.*; with `resume` not needed.
        recipe, model: of retrieval, as `fit_run` takes them. ranker: a name in `RANKERS`, by default tokenformer. settings: of the ranker.
        candidates: items that are retrieved to be ranked, by default 100. codes: the ranker reads the codes that retrieval gives items;
            by default not. schema: YAML file of what the ranker reads, without context and labels; by default inferred. With `resume`
            what is given must be what was begun with, and a schema is not.
        resume: go on with the interrupted fit in `folder`; where nothing was begun, begin. overwrite: replace what is there, at the end.
    Returns the facts of `pipeline.json`.
    Raises RunError: the folder is in the way or damaged. ConfigError, DataError: nothing of what was there is lost.
    """
    folder = Path(folder)
    if resume and overwrite:
        raise ConfigError("--resume goes on with a fit, --overwrite begins anew: give one of them")
    with locked(folder, f"another process is fitting in {folder}"):
        asked = {"model": model, "ranker": ranker, "candidates": candidates, "codes": codes, "settings": settings or None}
        return _fit(data, folder, recipe, asked, schema, resume, overwrite, listener)


def _fit(
    data: str | Path | None,
    folder: Path,
    recipe: Recipe | None,
    asked: dict[str, Any],
    schema: str | Path | None,
    resume: bool,
    overwrite: bool,
    listener: Listener,
) -> dict[str, Any]:
    """`fit_pipeline` of who has the folder to himself. asked: the other arguments, None where nothing is asked for."""
    work = folder / CHECKPOINT
    recover(folder)
    finished, begun = (folder / "pipeline.json").exists(), (work / "pipeline.json").exists()
    if resume and finished and not begun:
        facts, model = read_pipeline(folder), asked.pop("model")
        _same(facts, asked | {"retrieval": model, "data": None if data is None else Path(data).resolve().name}, "pipeline")
        fit_run(data, folder / "retrieval", recipe, model=model, resume=True)  # is there: its settings are compared
        listener.stage(f"{folder} is finished: nothing to resume")
        return facts
    if folder.exists() and not (finished or begun) and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is there and is no pipeline: choose another")
    if begun and not (resume or overwrite):
        raise RunError(f"{folder} holds an unfinished fit: go on with --resume, or begin anew with --overwrite")
    if finished and not (resume or overwrite):
        raise RunError(f"{folder} holds a pipeline already: choose another folder, or replace it with --overwrite")
    if folder.exists() and (strange := sorted({path.name for path in folder.iterdir()} - PARTS)):
        raise RunError(f"{folder} holds {strange[0]}, which is no part of a pipeline: move it first")
    if resume and begun:
        if schema is not None:
            raise ConfigError("the interrupted fit has its schema: leave it out to resume")
        given = recipe.model_dump(mode="json", exclude_unset=True) if recipe else {}
        _same(
            _about(work), asked | {"data": None if data is None else str(Path(data).resolve()), "recipe": given or None}, "interrupted fit"
        )
    else:
        if data is None:
            raise RunError("DATA is missing: the folder to fit on")
        count = CANDIDATES if asked["candidates"] is None else asked["candidates"]
        chosen = asked["model"], asked["ranker"] or RANKER, asked["settings"] or {}, count, bool(asked["codes"])
        _begin(data, work, recipe or Recipe(), *chosen, schema)
    return _finish(folder, work, listener)


def _same(about: dict[str, Any], asked: dict[str, Any], what: str) -> None:
    """Raises ConfigError: something asked for (not None) is not what is there."""
    for name, value in asked.items():
        if value is not None and about.get(name) != json.loads(json.dumps(value)):
            raise ConfigError(f"{name} is {value!r} here and {about.get(name)!r} in the {what}: leave it out to resume")


def _about(work: Path) -> dict[str, Any]:
    try:
        about = {"codes": False} | json.loads((work / "pipeline.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise RunError(f"{work} was begun in format {about['format']}; this version reads {FORMAT}: begin anew with --overwrite")
        return about
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(f"{work / 'pipeline.json'} is damaged: begin anew with --overwrite") from None


def _begin(
    data: str | Path,
    work: Path,
    recipe: Recipe,
    model: str | None,
    ranker: str,
    settings: dict,
    candidates: int,
    codes: bool,
    asked: str | Path | None,
) -> None:
    """Check what can be checked before hours of work, and keep what a fit needs to go on."""
    kind = find_ranker(ranker)
    if candidates < 2:
        raise ConfigError(f"candidates must be at least 2, not {candidates}")
    if recipe.data.split == "untied":
        raise ConfigError("a pipeline needs histories in the data's own order: split must be leave-last-out or time")
    if not Path(data).is_dir():
        raise DataError(f"{data}: no such folder")
    if not find_model(model or "asymrec")(recipe).has_codes() and codes:
        raise ConfigError(f"codes: model '{model}' gives items none; asymrec, asymrec+collaborative, rpg, tiger and flexcode do")
    tables = Tables.beside(Dataset.read(data, config=recipe.data), data)
    schema = schema_of(tables, codes, None if asked is None else Schema.read(asked))
    if codes:  # any will do to see whether all goes together
        tables = Tables(tables.dataset.over(with_codes(tables.dataset.items, np.zeros((tables.dataset.n_items, 1)))), tables.users)
    kind(schema, **settings).check(tables)
    about = {"format": FORMAT, "data": str(Path(data).resolve()), "model": model, "ranker": ranker, "settings": settings}
    about |= {"candidates": candidates, "codes": codes, "recipe": recipe.model_dump(mode="json", exclude_unset=True)}
    with atomic(work) as temporary:
        temporary.mkdir()
        pq.write_table(with_nobody(tables.users), temporary / "users.parquet")
        (temporary / "schema.yaml").write_text(schema.yaml(), encoding="utf-8")
        (temporary / "pipeline.json").write_text(json.dumps(about), encoding="utf-8")


def _finish(folder: Path, work: Path, listener: Listener) -> dict[str, Any]:
    about = _about(work)
    try:
        recipe, schema, users = Recipe.of(about["recipe"]), Schema.read(work / "schema.yaml"), pq.read_table(work / "users.parquet")
    except (OSError, ValueError, KeyError, pa.ArrowException, AsymrecError) as error:
        raise RunError(f"{work} is damaged ({' '.join(str(error).split())[:100]}): begin anew with --overwrite") from None
    kept = work / "retrieval"
    begun = any((kept / name).exists() for name in ("manifest.json", "checkpoint/run.json"))  # then the data are there as well
    fit_run(None if begun else about["data"], kept, recipe, model=about["model"], resume=True, listener=listener)
    retrieval = Recommender.load(work / "retrieval")
    dataset = retrieval.dataset
    split = split_of(dataset, retrieval.recipe)
    seed = retrieval.recipe.training.seed
    ranker = find_ranker(about["ranker"])(schema, **{"seed": seed} | about["settings"])
    pipeline = Pipeline(retrieval, ranker, users, 1.0, min(about["candidates"], dataset.n_items))
    if not (work / "ranker").exists():
        listener.stage("candidates to learn from")
        made = training_impressions(dataset, pipeline.items, users, schema, split.train, split.train_users, _retriever(pipeline), seed)
        listener.stage(f"fit {about['ranker']} on {len(made):,} impressions")
        pipeline.ranker.fit(made, _validation(pipeline, schema, split.validation), listener)
        pipeline.ranker.save(work / "ranker")
    pipeline.ranker = Ranker.load(work / "ranker")

    some = split.validation
    if len(some) > TUNED:
        some = some.take(np.sort(np.random.default_rng(seed).permutation(len(some))[:TUNED]))
    counts = split.train_counts(dataset.n_items)
    listener.stage(f"choose the weight on {len(some):,} users of the validation")
    stages: dict[int, tuple[np.ndarray, ...]] = {}
    tried = {weight: evaluated(pipeline, some, weight, counts, "removed", stages)["ndcg@10"] for weight in WEIGHTS}
    pipeline.weight = max(tried, key=tried.get)  # the first of equals: the one that leans on retrieval
    weight = pipeline.weight if math.isfinite(pipeline.weight) else "inf"  # JSON has no infinity
    listener.stage(f"evaluate on {len(split.test):,} users of the test")
    facts = {
        **{"format": FORMAT, "asymrec": __version__, "weight": weight, "candidates": pipeline.candidates},
        **{"retrieval": retrieval.name, "data": Path(about["data"]).name},
        **{name: about[name] for name in ("ranker", "settings", "codes")},
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


def _retriever(pipeline: Pipeline):
    return lambda histories: pipeline.retrieval.best(histories, pipeline.candidates, None, False)[0]


def _validation(pipeline: Pipeline, schema: Schema, examples: Any):
    """Impressions that choose the ranker's epoch: the targets and what is retrieved for some validation users."""
    dataset = pipeline.dataset
    some = examples.take(np.unique(np.linspace(0, len(examples) - 1, min(len(examples), VALIDATED)).astype(np.int64)))
    rows = _retriever(pipeline)(some.histories)
    actions = actions_of(dataset, schema, some.histories, some.users)
    asked = Asked(pipeline.items, pipeline.users, some.histories, some.users, actions)
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
