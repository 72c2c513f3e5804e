"""Run folders: fit into one, go on after an interruption, evaluate, compare.

A fit works in `RUN/checkpoint/` and nowhere else: its settings, its data set and how far it has come. A process that is killed at
any moment leaves either that folder, from which `resume` goes on, or the finished run. When the fit is done the whole of RUN is
built beside it and put in its place in one step; a run that was there before stays readable until then.

`manifest.json` covers the model's files. What is derived from them (metrics, ranks, report) is written anew by `evaluate_run`.

Torch is imported where it is needed: a folder in the way is told before it is loaded.
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from asymrec.config import Recipe
from asymrec.data import Dataset
from asymrec.errors import AsymrecError, ConfigError, DataError, EvaluationError, RunError
from asymrec.evaluation import Evaluation, paired_bootstrap
from asymrec.files import atomic, locked, recover
from asymrec.progress import Clock
from asymrec.training.listener import Listener
from asymrec.version import __version__

if TYPE_CHECKING:
    from asymrec.models import Recommender

QUIET = Listener()
CHECKPOINT = "checkpoint"
PARTS = {
    *("config.yaml", "model.safetensors", "catalogue.parquet", "vectors.safetensors", "dataset", "manifest.json"),
    *("metrics.json", "log.jsonl", "report.html", "ranks", CHECKPOINT),
}


def fit_run(
    data: Any,
    folder: str | Path,
    recipe: Recipe | None = None,
    *,
    items: Any = None,
    model: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on: str | None = None,
    listener: Listener = QUIET,
) -> dict[str, Any]:
    """Fit a model, evaluate it beside the baselines, and leave a run folder.

    Args:
        data, items: as `Dataset.read` takes them.
        folder: of the run; new, empty, or with `resume` or `overwrite` one that a fit has made.
        recipe: all settings; only what differs from the defaults need be set.
        model: a name in `MODELS`; `asymrec` when not given.
        resume: go on with the interrupted fit in `folder`, with the data and settings kept there; where nothing was begun, begin.
        overwrite: replace the run in `folder`, which stays as it is until the new one is finished.
        on: the part that is evaluated: `test`, or `validation`, which leaves the test alone, for tuning. By default the test, and
            with `resume` what the interrupted fit was to be evaluated on.
    Returns:
        The facts of `metrics.json`.
    Raises:
        RunError: the folder is in the way, damaged, or cannot be written. ConfigError: with `resume`, a setting that differs from
        the interrupted fit's; another `on`. DataError, VectorError, QuantizerError: nothing was written.
    """
    folder, recipe = Path(folder), recipe or Recipe()
    if resume and overwrite:
        raise ConfigError("--resume goes on with a fit, --overwrite begins anew: give one of them")
    _check_part(on)
    state = _state(folder)
    if resume and state == "finished":
        facts = read_facts(folder)
        about = facts["model"], facts["dataset"].get("name"), facts["dataset"].get("part", "test")
        _same(folder, "run", about, Recipe.read(folder / "config.yaml"), (model, data, on), recipe)
        listener.stage(f"{folder} is finished: nothing to resume")
        return facts
    _refuse_unwritable(folder)
    with locked(folder, f"another process is fitting in {folder}"):
        return _fit(data, folder, recipe, items, model, resume, overwrite, on, listener)


def evaluate_run(folder: str | Path, listener: Listener = QUIET, *, on: str | None = None) -> dict[str, Any]:
    """Evaluate a run again and rewrite what is derived from it: metrics.json, ranks/, report.html.

    on: `test` or `validation`; by default the part that `metrics.json` names, else the test.
    Returns the facts of `metrics.json`. Raises RunError: see `Recommender.load`. ConfigError: another `on`.
    """
    from asymrec.models import Recommender
    from asymrec.results import codebook, evaluate_all, facts_of, write_results

    _check_part(on)
    folder = Path(folder)
    clock = Clock(listener)
    clock.stage(f"load {folder}")
    recommender = Recommender.load(folder)
    try:
        facts = _read_metrics(folder)
    except RunError:
        facts = {"codebook": codebook(recommender)}
    log = _read_log(folder)
    before = facts.get("dataset") or {}
    facts = facts_of(recommender, before.get("name") or folder.resolve().name, log) | facts
    evaluations = evaluate_all(recommender, facts, clock, on or before.get("part", "test"))
    facts["seconds"] = (facts.get("seconds") or {}) | {name: value for name, value in clock.seconds.items() if name == "evaluate"}
    write_results(folder, recommender, facts, evaluations, log)
    return facts


def compare_runs(folder: str | Path, other: str | Path) -> list[dict[str, Any]]:
    """The run in `folder` minus the run in `other`, user by user: NDCG@10 and Recall@10 with both protocols.

    Returns `Comparison.dict()` of each. Raises EvaluationError: other users, items, part or targets. RunError: see `Recommender.load`.
    """
    from asymrec.results import COMPARED

    (data_a, ranks_a), (data_b, ranks_b) = (_ranks(Path(each)) for each in (folder, other))
    parts = [_read_metrics(Path(each))["dataset"].get("part", "test") for each in (folder, other)]
    if parts[0] != parts[1]:
        raise EvaluationError(f"{folder} and {other} cannot be compared: one is evaluated on its {parts[0]}, the other on its {parts[1]}")
    for noun, a, b in (("users", data_a.user_ids, data_b.user_ids), ("items", data_a.item_ids, data_b.item_ids)):
        if not _equal(a, b):
            raise EvaluationError(f"{folder} and {other} cannot be compared: their {noun} differ ({len(a):,} and {len(b):,})")
    if len(ranks_a.users) != len(ranks_b.users) or (ranks_a.users != ranks_b.users).any():
        raise EvaluationError(
            f"{folder} and {other} cannot be compared: their {parts[0]} users differ ({len(ranks_a.users):,} and {len(ranks_b.users):,})"
        )
    return [paired_bootstrap(ranks_a, ranks_b, metric, history=history).dict() for metric, history in COMPARED]


def read_facts(folder: str | Path) -> dict[str, Any]:
    """What a finished run's `metrics.json` holds. Raises RunError: not a finished run, or no metrics there."""
    from asymrec.models.base import read_manifest

    read_manifest(Path(folder))
    return _read_metrics(Path(folder))


def _read_metrics(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return {name: facts[name] for name in ("model", "dataset", "metrics", "environment", "seconds")} | facts
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(f"{folder / 'metrics.json'} is missing or damaged: `asymrec evaluate {folder}` writes it anew") from None


def read_codebook(folder: str | Path) -> dict[str, Any]:
    """The report of the quantizer that a run keeps, as `quantize.report.report` gives it. Raises RunError: the model has no codes."""
    facts = read_facts(folder)
    if not facts.get("codebook"):
        raise RunError(f"{folder} holds a model '{facts['model']}', which has no codes")
    return facts["codebook"]


def find_model(name: str) -> type[Recommender]:
    """Raises ConfigError with the nearest name."""
    from asymrec.models import MODELS

    if name not in MODELS:
        near = difflib.get_close_matches(name.replace("-", ""), MODELS, n=1)
        raise ConfigError(f"unknown model '{name}'; " + (f"did you mean '{near[0]}'?" if near else f"there are {', '.join(MODELS)}"))
    return MODELS[name]


# What a fit works on, and where it keeps it


@dataclass(frozen=True)
class _Work:
    model: str
    recipe: Recipe
    dataset: Dataset
    vectors: np.ndarray | None
    name: str
    part: str


def _fit(
    data: Any,
    folder: Path,
    recipe: Recipe,
    items: Any,
    model: str | None,
    resume: bool,
    overwrite: bool,
    on: str | None,
    listener: Listener,
) -> dict[str, Any]:
    """`fit_run` of who has the folder to himself."""
    state, clock = _state(folder), Clock(listener)
    if resume and state == "unfinished":
        work = _take_up(folder, recipe, model, data, on)
        clock.keep_at(folder / CHECKPOINT / "seconds.json")
        clock.stage(f"resume the fit in {folder}, with its data and settings")
        return _finish(work, folder, clock)

    _refuse(folder, state, overwrite)

    from asymrec.device import choose_device, choose_precision
    from asymrec.results import split_of
    from asymrec.vectors import item_vectors

    # what needs no data is told before they are read, which may take minutes
    recommender = find_model(model or "asymrec")(recipe)
    recommender.has_codes()  # makes the quantizer, which looks at its settings
    for name in recommender.passed_over():
        listener.stage(f"note: setting '{name}' means nothing to model '{recommender.name}'")
    recipe = recommender.recipe  # with the model's own defaults
    # `auto` is measured: what was chosen is kept, so that a fit that goes on elsewhere or later computes the same
    precision = str(choose_precision(recipe.training.precision, choose_device(recipe.training.device))).removeprefix("torch.")

    clock.stage("read the tables")
    dataset = Dataset.read(data, items, config=recipe.data)
    for note in dataset.notes:
        listener.stage(f"note: {note}")
    split = split_of(dataset, recipe)
    if left_out := split.left_out:
        untied = recipe.data.split == "untied"
        why = "fewer than three times: trained on, not tested" if untied else "too few interactions for the split: only recommended to"
        listener.stage(f"note: {left_out:,} of {dataset.n_users:,} users have {why}")
    vectors = None
    if recommender.reads_vectors():
        clock.stage(f"vectors of {dataset.n_items:,} items")
        vectors = item_vectors(dataset, recipe.vectors, split.train)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"precision": precision})})
    work = _Work(recommender.name, recipe, dataset, vectors, _name(data), on or "test")
    _begin(folder, work)
    try:
        clock.keep_at(folder / CHECKPOINT / "seconds.json")
        return _finish(work, folder, clock)
    except AsymrecError as error:
        if not isinstance(error, RunError):  # the input is at fault and going on would not help
            shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
            for path in missing:
                with suppress(OSError):
                    path.rmdir()
        raise


def _state(folder: Path) -> str:
    """`nothing`, `unfinished`, `finished` or `foreign`. An overwrite that was interrupted is unfinished."""
    recover(folder)
    if not folder.exists():
        return "nothing"
    if not folder.is_dir():
        return "foreign"
    recover(folder / CHECKPOINT)
    names = {path.name for path in folder.iterdir() if not (path.name.startswith(".") and path.name.endswith(".tmp"))}
    if (folder / CHECKPOINT / "run.json").exists():
        return "unfinished"
    if "manifest.json" in names:
        return "finished"
    return "foreign" if names else "nothing"


def _refuse(folder: Path, state: str, overwrite: bool) -> None:
    if state == "foreign":
        raise RunError(f"{folder} is there and is not a run folder: choose another")
    if state == "unfinished" and not overwrite:
        raise RunError(f"{folder} holds an unfinished fit: go on with --resume, or begin anew with --overwrite")
    if state == "finished" and not overwrite:
        raise RunError(f"{folder} holds a run already: choose another folder, or replace it with --overwrite")
    if state in ("unfinished", "finished"):
        strange = sorted(path.name for path in folder.iterdir() if path.name not in PARTS and not path.name.startswith("."))
        if strange:
            raise RunError(f"{folder} holds {strange[0]}, which is no part of a run: move it before overwriting")


def _refuse_unwritable(folder: Path) -> None:
    """Said before the work, not after it."""
    above = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise RunError(f"cannot write {folder}: {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise RunError(f"cannot write {folder}: no permission in {above}")
    if os.path.ismount(folder):  # what is built beside it could not take its place
        raise RunError(f"cannot write {folder}: it is a mount; name a folder in it")


def _check_part(on: str | None) -> None:
    if on not in (None, "test", "validation"):
        raise ConfigError(f"a run is evaluated on test or validation, not on '{on}'")


def _begin(folder: Path, work: _Work) -> None:
    from asymrec.models.base import FORMAT

    about = {"format": FORMAT, "asymrec": __version__, "model": work.model, "data": work.name, "on": work.part}
    with atomic(folder / CHECKPOINT) as temporary:
        temporary.mkdir()
        (temporary / "config.yaml").write_text(work.recipe.yaml(), encoding="utf-8")
        work.dataset.save(temporary / "dataset")
        if work.vectors is not None:
            np.save(temporary / "vectors.npy", work.vectors, allow_pickle=False)
        (temporary / "run.json").write_text(json.dumps(about), encoding="utf-8")


def _same(
    folder: Path, what: str, about: tuple[str, str, str], old: Recipe, asked: tuple[str | None, Any, str | None], recipe: Recipe
) -> None:
    """Raises ConfigError: a model, data, part or setting that is given is not that of what is there. DataError: data that are not there.

    about, old: model, data's name, part and settings of what is there. asked, recipe: what is given.
    """
    (kept_model, name, part), (model, data, on) = about, asked
    instead = "leave it out to resume, or begin anew with --overwrite"
    if model not in (None, kept_model):
        raise ConfigError(f"the {what} in {folder} is of model '{kept_model}', not '{model}': {instead}")
    if isinstance(data, (str, Path)):
        if not Path(data).exists():
            raise DataError(f"{data}: no such folder")
        if _name(data) != name:
            raise ConfigError(f"the {what} in {folder} is of the data '{name}', not '{_name(data)}': {instead}")
    if on not in (None, part):
        raise ConfigError(f"the {what} in {folder} is evaluated on the {part}, not on the {on}: {instead}")
    before = old.model_dump(mode="json")
    for section, values in recipe.model_dump(mode="json", exclude_unset=True).items():
        for leaf, value in values.items():
            if before[section][leaf] != value and not (leaf == "precision" and value == "auto"):
                raise ConfigError(f"setting '{section}.{leaf}' is {value!r} here and {before[section][leaf]!r} in the {what}: {instead}")


def _take_up(folder: Path, recipe: Recipe, model: str | None, data: Any, on: str | None) -> _Work:
    from asymrec.models.base import check_format

    kept = folder / CHECKPOINT
    try:
        about = json.loads((kept / "run.json").read_text(encoding="utf-8"))
        form, version, kept_model, name = about["format"], about["asymrec"], about["model"], about["data"]
        part = about.get("on", "test")
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(f"{kept / 'run.json'} is damaged: begin anew with --overwrite") from None
    check_format(f"{folder} was begun", form, version)
    old = Recipe.read(kept / "config.yaml")
    _same(folder, "interrupted fit", (kept_model, name, part), old, (model, data, on), recipe)
    try:
        vectors = np.load(kept / "vectors.npy", allow_pickle=False) if (kept / "vectors.npy").exists() else None
    except (OSError, ValueError, EOFError):
        raise RunError(f"{kept / 'vectors.npy'} is damaged: begin anew with --overwrite") from None
    return _Work(kept_model, old, Dataset.load(kept / "dataset", mmap=False), vectors, name, part)


def _finish(work: _Work, folder: Path, clock: Clock) -> dict[str, Any]:
    """Fit from where the checkpoint is, evaluate, and put the run in place."""
    from asymrec import machine
    from asymrec.results import evaluate_all, facts_of, split_of, write_results

    kept, kind = folder / CHECKPOINT, find_model(work.model)
    options: dict[str, Any] = {"vectors": work.vectors, "checkpoint": str(kept), "resume": True, "listener": clock}
    known = inspect.signature(kind._fit).parameters
    recommender = kind(work.recipe)
    clock.stage(f"fit {work.model}")
    recommender.fit(work.dataset, split_of(work.dataset, work.recipe), **{name: value for name, value in options.items() if name in known})
    log = getattr(recommender, "log", [])
    facts = facts_of(recommender, work.name, log)
    evaluations = evaluate_all(recommender, facts, clock, work.part)
    facts["codebook"] = getattr(recommender, "report", None)
    clock.stage(f"write {folder}")
    facts["seconds"] = clock.seconds
    facts["peak_memory_mib"] = machine.peak_memory()
    with atomic(folder) as temporary:
        temporary.mkdir()
        recommender.write(temporary)
        write_results(temporary, recommender, facts, evaluations, log)
    return facts


def _ranks(folder: Path) -> tuple[Dataset, Evaluation]:
    from asymrec.models.base import read_manifest

    model = read_manifest(folder)["model"]
    path = folder / "ranks" / f"{model}.parquet"
    if not path.exists():
        raise RunError(f"{path} is missing: `asymrec evaluate {folder}` writes it anew")
    return Dataset.load(folder / "dataset"), Evaluation.load(path)


def _equal(a: pa.Array, b: pa.Array) -> bool:
    """Whether ids are the same, whatever type their file had for them: text of a CSV file is another than that of Parquet."""
    try:
        return a.equals(b if a.type == b.type else b.cast(a.type))
    except pa.ArrowException:  # text that is no number, beside numbers
        return False


def _read_log(folder: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []


def _name(data: Any) -> str:
    if not isinstance(data, (str, Path)):
        return "data"
    path = Path(data).resolve()
    return path.name if path.is_dir() else path.parent.name
