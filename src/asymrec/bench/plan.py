"""A benchmark's plan: one YAML file, and the cells that it spells out.

A cell is one fit in a process of its own. For every data set, protocol, model and seed there is one that is evaluated on the test,
once. A tuned model has trials before it: cells that are evaluated on the validation part alone. Trial 1 is the model as the plan has
it, the others take values out of the model's `space`, drawn by seed without repetition, as many for one model as for any other. The
trial with the best validation NDCG@10 (history kept) says what the cells of the test are fitted with.

A data set says how its tables are read and what describes its items (READING). There is no place in the file for other settings of
one data set: what is good for it, a model must find on its validation part.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from asymrec.config import PRESETS, DataConfig, Recipe
from asymrec.errors import ConfigError
from asymrec.runs import find_model
from asymrec.vectors.columns import SUFFIXES

SPLITS = {"standard": "leave-last-out", "untied": "untied", "time": "time"}
OURS = {"seed": "seeds", "split": "protocols"}  # settings that the plan gives by keys of its own
AXES = ("data", "protocol", "model", "seed")
COLUMNS = tuple(leaf for leaf in DataConfig.model_fields if leaf not in ("split", "validation_share", "test_share"))
READING = (*COLUMNS, "text", "views")  # what a data set may say of itself: how it is read, nothing that tunes
Protocol = Literal["standard", "untied", "time"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]*$")]  # a folder of that name is made
WORDS = {  # pydantic's kinds of error in words of the file
    "string_pattern_mismatch": "expected a name of letters, digits, . + - _, a letter or a digit first",
    "tuple_type": "expected a list",
    "list_type": "expected a list",
    "dict_type": "expected a mapping",
    "too_short": "is empty",
    "missing": "is missing",
}


def _listed(value: Any) -> Any:
    """A scalar where a list is wanted is a list of one."""
    return [value] if isinstance(value, (str, int, float)) else value


Listed = BeforeValidator(_listed)
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), Listed]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Tables(Part):
    """A data set: its folder, and what it says of itself, by the names in READING. In the file a bare folder, or a mapping of all."""

    path: Path
    reading: dict[str, Any] = {}


class Entry(Part):
    """A row of the table: a model with settings. A bare name in the file is an entry of that name."""

    name: Name
    model: str = ""  # by default the name
    preset: str | None = None
    settings: dict[str, Any] = {}
    tune: bool = True
    space: dict[str, Annotated[list[Any], Listed]] | None = None  # by default the model's own

    def recipe(self, **more: Any) -> Recipe:
        """All settings, the model's own defaults among them. Raises ConfigError."""
        return find_model(self.model)(Recipe.read(self.preset, **self.settings | more)).recipe

    @property
    def columns(self) -> bool:
        """Whether it says itself how tables are read, so that nothing is known of a data set before it is tried."""
        return any(_leaf(name) in COLUMNS for name in self.settings)

    def searched(self) -> dict[str, list[Any]]:
        """What is tuned, leaf name -> values: what the entry fixes by its settings is not."""
        space = find_model(self.model).space if self.space is None else self.space
        fixed = {_leaf(name) for name in self.settings}
        return {_leaf(name): values for name, values in space.items() if _leaf(name) not in fixed} if self.tune else {}


class Tuning(Part):
    """The budget, the same for every model. `seed` draws the values and is the seed of the trials' fits."""

    trials: int = Field(4, ge=1)
    seed: int = Field(0, ge=0)
    epochs: int | None = Field(None, ge=1)  # of every trial, instead of the model's own
    minutes: float | None = Field(None, gt=0)  # of a trial; one that needs more is stopped and cannot be chosen
    protocol: Literal["standard", "untied", "time", "each"] = "standard"  # where trials are; what they choose holds for all protocols


class Headline(Part):
    """Mean relative gain of a model over the best of its rivals, over the data sets."""

    model: str
    rivals: Annotated[tuple[str, ...], Listed] = Field(min_length=1)
    data: Annotated[tuple[str, ...] | None, Listed] = None  # by default all
    metric: Literal["ndcg@5", "ndcg@10", "ndcg@20", "recall@5", "recall@10", "recall@20"] = "ndcg@10"
    history: Literal["kept", "removed"] = "kept"


class Plan(Part):
    title: str
    output: Path = Path("results")
    data: dict[Name, Tables] = Field(min_length=1)
    models: tuple[Entry, ...] = Field(min_length=1)
    protocols: Annotated[tuple[Protocol, ...], Listed] = Field(("standard",), min_length=1)
    seeds: Seeds | dict[Protocol, Seeds] = (0,)  # of every protocol, or each protocol's
    tuning: Tuning | None = None
    jobs: int = Field(1, ge=1)  # cells at once, each on one thread where there are several
    keep: bool = False  # the whole run folder of every cell, weights and all
    headline: tuple[Headline, ...] = ()

    def seeds_of(self, protocol: str) -> tuple[int, ...]:
        return self.seeds[protocol] if isinstance(self.seeds, dict) else self.seeds

    def trials(self, cell: Cell) -> list[Cell]:
        """The cells that decide what `cell`, one of the test, is fitted with; none where nothing is tuned."""
        tuning, entry = self.tuning, cell.entry
        if tuning is None or not entry.tune:
            return []
        protocol = cell.protocol if tuning.protocol == "each" else tuning.protocol
        more = {} if tuning.epochs is None else {"epochs": tuning.epochs}
        drawn = self.draws[entry.name]
        known = (cell.data, protocol, entry, tuning.seed, cell.reading)
        return [Cell(*known, settings, more, at) for at, settings in enumerate(drawn, 1)]

    @cached_property
    def draws(self) -> dict[str, list[dict[str, Any]]]:
        """Model -> the settings that each of its trials tries."""
        return {entry.name: draws(entry, self.tuning) for entry in self.models if self.tuning and entry.tune}

    def cells(self, only: Iterable[str] = ()) -> list[Cell]:
        """The cells of the test, those of the first seed first, as they are before tuning. `only`: see `chosen`."""
        wanted = chosen(self, only)
        seeds = sorted({seed for protocol in self.protocols for seed in self.seeds_of(protocol)})
        every = itertools.product(self.data, seeds, self.protocols, self.models)
        cells = [
            Cell(data, protocol, entry, seed, self.data[data].reading)
            for data, seed, protocol, entry in every
            if seed in self.seeds_of(protocol)
        ]
        return [cell for cell in cells if all(not wanted[axis] or cell.axis(axis) in wanted[axis] for axis in AXES)]

    def trials_of(self, cells: Iterable[Cell]) -> list[Cell]:
        """All trials that these cells of the test wait for, each once."""
        return list({trial.place: trial for cell in cells for trial in self.trials(cell)}.values())


@dataclass(frozen=True)
class Cell:
    """One fit.

    reading: what its data set says of itself. tuned: settings that tuning chose or tries. more: settings of a trial alone.
    trial: its number, None for the test.
    """

    data: str
    protocol: str
    entry: Entry
    seed: int
    reading: dict[str, Any] = field(default_factory=dict)
    tuned: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    trial: int | None = None

    def axis(self, name: str) -> str:
        return {"data": self.data, "protocol": self.protocol, "model": self.entry.name, "seed": str(self.seed)}[name]

    @property
    def place(self) -> Path:
        """Its folder, in the plan's output."""
        return Path(self.data, self.protocol, self.entry.name, f"seed-{self.seed}" if self.trial is None else f"trial-{self.trial}")

    @property
    def settings(self) -> dict[str, Any]:
        """All that differs from the preset, or the model's defaults; the model's own go over the data set's."""
        return self._settings("")

    def _settings(self, folder: str) -> dict[str, Any]:
        """`settings`, the data set's files of vectors in this folder."""
        own = {_leaf(name) for name in self.entry.settings}
        reading = {name: value for name, value in self.reading.items() if name not in own}
        if folder and "views" in reading:
            reading["views"] = [str(Path(folder, view)) if is_file(view) else view for view in reading["views"]]
        return reading | self.entry.settings | self.tuned | self.more | {"split": SPLITS[self.protocol], "seed": self.seed}

    def vector_files(self, folder: Path) -> list[Path]:
        """Files of vectors that its fit reads; the data set's own lie in its folder."""
        views = (view for name, value in self._settings(str(folder)).items() if _leaf(name) == "views" for view in value)
        return [Path(view).expanduser() for view in views if is_file(view)]

    def recipe(self) -> Recipe:
        return self.entry.recipe(**self.settings)

    def arguments(self, data: str, run: str) -> list[str]:
        """`fit DATA -o RUN ...`, which makes the cell."""
        preset = [] if self.entry.preset is None else ["--config", self.entry.preset]
        part = [] if self.trial is None else ["--on", "validation"]
        options = [part for name, value in self._settings(data).items() for part in ("--set", f"{name}={_text(value)}")]
        return ["fit", data, "-o", run, "--model", self.entry.model, *preset, *options, *part]

    def __str__(self) -> str:
        return f"{self.data} {self.protocol} {self.entry.name} " + (f"seed {self.seed}" if self.trial is None else f"trial {self.trial}")


def is_file(view: str) -> bool:
    """Whether a view is a file, not a column of the item table."""
    return view.lower().endswith(SUFFIXES)


def draws(entry: Entry, tuning: Tuning) -> list[dict[str, Any]]:
    """The settings of each trial: none for the first, then other values than the default's. Fewer where the space has no more."""
    names, lists = list(entry.searched()), list(entry.searched().values())
    default = [_value(entry.recipe(), name) for name in names]
    lists = [[_value(entry.recipe(**{name: value}), name) for value in values] for name, values in zip(names, lists)]
    others = [list(values) for values in itertools.product(*lists) if list(values) != default]
    order = np.random.default_rng(tuning.seed).permutation(len(others))[: tuning.trials - 1]
    return [{}, *(dict(zip(names, others[at])) for at in order)]


def read_plan(
    path: str | Path,
    *,
    output: str | Path | None = None,
    root: str | Path | None = None,
    folders: dict[str, str] | None = None,
    jobs: int | None = None,
) -> Plan:
    """The plan in a file, every setting and every trial checked.

    Args:
        output: instead of the file's. root: what the folders of `data` are relative to; by default the file's own folder, as `output`.
        folders: data name -> folder, instead of the file's; how it is read stays the file's. jobs: instead of the file's.
    Raises:
        ConfigError: not YAML, unknown key (the nearest is named), impossible value, settings for one data set.
    """
    path = Path(path)
    tree = _read(path)
    home = path.absolute().parent
    tree.setdefault("title", path.stem)
    if jobs is not None:
        tree["jobs"] = jobs
    try:
        plan = Plan.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_fault(error)}") from None
    for name in folders or {}:
        if name not in plan.data:
            raise ConfigError(f"--data {name}: {path} has no data set of that name{_nearest(name, plan.data)}")
    base = home if root is None else Path(root).absolute()
    places = {name: base / tables.path for name, tables in plan.data.items()} | {
        name: Path(folder).absolute() for name, folder in (folders or {}).items()
    }
    data = {name: tables.model_copy(update={"path": places[name]}) for name, tables in plan.data.items()}
    target = home / plan.output if output is None else Path(output).absolute()
    plan = plan.model_copy(update={"data": data, "output": target})
    _check(path, plan)
    return plan


def parse_folders(pairs: Iterable[str]) -> dict[str, str]:
    """`["beauty=../data/beauty"]` -> `{"beauty": "../data/beauty"}`. Raises ConfigError."""
    folders = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not (equals and name and folder):
            raise ConfigError(f"--data takes NAME=FOLDER, not '{pair}'")
        folders[name] = folder
    return folders


def chosen(plan: Plan, only: Iterable[str]) -> dict[str, set[str]]:
    """`["model=asymrec,data=beauty"]` -> the values of each axis; an axis that is not named is not narrowed. Raises ConfigError."""
    known = {
        "data": list(plan.data),
        "protocol": list(plan.protocols),
        "model": [entry.name for entry in plan.models],
        "seed": sorted({str(seed) for protocol in plan.protocols for seed in plan.seeds_of(protocol)}),
    }
    wanted: dict[str, set[str]] = {axis: set() for axis in AXES}
    for pair in (pair for text in only for pair in text.split(",")):
        axis, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or axis not in AXES:
            raise ConfigError(f"--only takes {', '.join(f'{name}=...' for name in AXES)}, not '{pair}'")
        if value not in known[axis]:
            raise ConfigError(f"--only {pair}: the plan has no such {axis}{_nearest(value, known[axis])}")
        wanted[axis].add(value)
    return wanted


def _read(path: Path) -> dict[str, Any]:
    """The file as a tree in which every model and every data set is a mapping, its keys known."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    _known(path, "", tree, Plan)
    if "data" in tree:
        if not isinstance(tree["data"], dict):
            raise ConfigError(f"{path}: 'data': expected a mapping of names to folders (got {tree['data']!r})")
        tree["data"] = {str(name): _tables(path, name, given) for name, given in tree["data"].items()}
    if isinstance(tree.get("models"), (str, dict)):
        tree["models"] = [tree["models"]]
    if isinstance(tree.get("models"), list):
        tree["models"] = [{"name": one} if isinstance(one, str) else one for one in tree["models"]]
        for at, one in enumerate(tree["models"]):
            _known(path, f"models.{at}.", one, Entry)
            one["model"] = one.get("model") or one.get("name")
    if tree.get("tuning") is not None:
        _known(path, "tuning.", tree["tuning"], Tuning)
    if tree.get("headline") and not isinstance(tree["headline"], list):
        tree["headline"] = [tree["headline"]]
    for at, one in enumerate(tree.get("headline") or []):
        _known(path, f"headline.{at}.", one, Headline)
    return tree


def _tables(path: Path, name: str, given: Any) -> dict[str, Any]:
    """A data set's folder, or its mapping, as `Tables` has it."""
    given = {"path": given} if isinstance(given, str) else given
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: 'data.{name}' takes a folder, or a mapping with its `path` (got {given!r})")
    for key in given:
        if key not in ("path", *READING):
            why = "takes a folder and how its tables are read, for settings are the same for every data set"
            raise ConfigError(f"{path}: 'data.{name}' {why}: not '{key}'{_nearest(str(key), ('path', *READING))}")
    if not isinstance(given.get("path"), str):
        raise ConfigError(f"{path}: 'data.{name}.path': expected a folder (got {given.get('path')!r})")
    reading = {key: value for key, value in given.items() if key != "path"}
    reading |= {key: _listed(reading[key]) for key in ("text", "views") if key in reading}
    try:
        Recipe.of(None, **reading)
    except ConfigError as error:
        raise ConfigError(f"{path}: 'data.{name}': {error}") from None
    return {"path": given["path"], "reading": reading}


def _fault(error: ValidationError) -> str:
    """The first fault: where in the file, what was expected, what is there."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if not re.search(r"[\[\]]", str(part)))  # `[key]`, and the kinds that were tried
    got = "" if first["type"] == "missing" else f" (got {first['input']!r})"
    return f"'{where}': {WORDS.get(first['type'], first['msg'])}{got}"


def _known(path: Path, where: str, tree: Any, part: type[Part]) -> None:
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values{f' in {where[:-1]!r}' if where else ''}, found {type(tree).__name__}")
    for key in tree:
        if key not in part.model_fields:
            raise ConfigError(f"{path}: unknown key '{where}{key}'{_nearest(str(key), part.model_fields)}")


def _check(path: Path, plan: Plan) -> None:
    """What can be known of every cell before anything is fitted."""
    names = [entry.name for entry in plan.models]
    if isinstance(plan.seeds, dict) and set(plan.seeds) != set(plan.protocols):
        raise ConfigError(f"{path}: 'seeds' has {', '.join(plan.seeds)}, 'protocols' {', '.join(plan.protocols)}: give seeds for each")
    seeds = [(f"seeds of {protocol}", plan.seeds_of(protocol)) for protocol in plan.protocols]
    for key, values in (("models", names), ("protocols", plan.protocols), *seeds):
        if twice := [value for value in values if values.count(value) > 1]:
            hint = ": give each a `name` of its own" if key == "models" else ""
            raise ConfigError(f"{path}: '{key}' has {twice[0]} twice{hint}")
    for entry in plan.models:
        try:
            _check_entry(entry, plan.tuning or Tuning(trials=1))
        except ConfigError as error:
            raise ConfigError(f"{path}: model '{entry.name}': {error}") from None
    for headline in plan.headline:
        for name in (headline.model, *headline.rivals):
            if name not in names:
                raise ConfigError(f"{path}: headline: there is no model '{name}'{_nearest(name, names)}")
        for name in headline.data or ():
            if name not in plan.data:
                raise ConfigError(f"{path}: headline: there is no data set '{name}'{_nearest(name, plan.data)}")


def _check_entry(entry: Entry, tuning: Tuning) -> None:
    if entry.preset is not None and entry.preset not in PRESETS:
        raise ConfigError(f"there is no preset '{entry.preset}'{_nearest(entry.preset, PRESETS)}")
    given = Recipe.read(entry.preset, **entry.settings)
    set_here = {leaf for section in given.model_dump(exclude_unset=True).values() for leaf in section}
    fixed = {_leaf(name) for name in entry.settings}
    for name, values in (entry.space or {}).items():
        if not values or len({repr(value) for value in values}) < len(values):
            raise ConfigError(f"space of '{name}': expected different values, found {values}")
        if _leaf(name) in fixed:
            raise ConfigError(f"'{name}' is in its settings and in its space")
        set_here.add(_leaf(name))
    for leaf in OURS:
        if leaf in set_here:
            raise ConfigError(f"'{leaf}' is not a setting of one model: the plan has `{OURS[leaf]}` for all")
    for drawn in draws(entry, tuning):
        entry.recipe(**drawn)


def _text(value: Any) -> str:
    """A value as `--set` reads it."""
    plain = isinstance(value, str) and re.fullmatch(r"[a-z][\w-]*", value) and yaml.safe_load(value) == value
    return value if plain else json.dumps(value)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _value(recipe: Recipe, leaf: str) -> Any:
    return recipe.model_dump(mode="json")[Recipe.leaves()[leaf]][leaf]


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else f"; known are {', '.join(known)}"
