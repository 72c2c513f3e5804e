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
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from asymrec.config import DataConfig, Recipe
from asymrec.errors import ConfigError
from asymrec.runs import find_model
from asymrec.vectors.columns import SUFFIXES

if TYPE_CHECKING:
    from asymrec.models.base import Recommender

SPLITS = {"standard": "leave-last-out", "untied": "untied", "time": "time"}
OURS = {"seed": "seeds", "split": "protocols"}  # settings that the plan gives by keys of its own
AXES = ("data", "protocol", "model", "seed")
COLUMNS = tuple(leaf for leaf in DataConfig.model_fields if leaf not in ("split", "validation_share", "test_share"))
READING = (*COLUMNS, "text", "views")  # what a data set may say of itself: how it is read, nothing that tunes
Protocol = Literal["standard", "untied", "time"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]*$")]  # a folder of that name is made


def listed(value: Any) -> Any:
    """A scalar where a list is wanted is a list of one."""
    return [value] if isinstance(value, (str, int, float)) else value


Listed = BeforeValidator(listed)
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
        return self._model(**more).recipe

    def passed_over(self) -> list[str]:
        """What it sets or tunes and its model does not use."""
        model = self._model()
        return [*model.passed_over(), *(name for name in self.searched() if name not in model.uses)]

    def uses(self) -> frozenset[str]:
        """Settings that mean something to its model, by leaf name."""
        return self._model().uses

    def _model(self, **more: Any) -> Recommender:
        return find_model(self.model)(Recipe.read(self.preset, **self.settings | more))

    @property
    def columns(self) -> bool:
        """Whether it says itself how tables are read, so that nothing is known of a data set before it is tried."""
        return any(leaf_of(name) in COLUMNS for name in self.settings)

    def searched(self) -> dict[str, list[Any]]:
        """What is tuned, leaf name -> values: what the entry fixes by its settings is not."""
        space = find_model(self.model).space if self.space is None else self.space
        fixed = {leaf_of(name) for name in self.settings}
        return {leaf_of(name): values for name, values in space.items() if leaf_of(name) not in fixed} if self.tune else {}


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
        own = {leaf_of(name) for name in self.entry.settings}
        reading = {name: value for name, value in self.reading.items() if name not in own}
        if folder and "views" in reading:
            reading["views"] = [str(Path(folder, view)) if is_file(view) else view for view in reading["views"]]
        return reading | self.entry.settings | self.tuned | self.more | {"split": SPLITS[self.protocol], "seed": self.seed}

    def vector_files(self, folder: Path) -> list[Path]:
        """Files of vectors that its fit reads; the data set's own lie in its folder."""
        views = (view for name, value in self._settings(str(folder)).items() if leaf_of(name) == "views" for view in value)
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
    lists = [[_value(entry.recipe(**{name: value}), name) for value in values] for name, values in zip(names, lists)]
    default = [_value(entry.recipe(), name) for name in names]  # by now the names are known to be settings
    others = [list(values) for values in itertools.product(*lists) if list(values) != default]
    others = [values for at, values in enumerate(others) if values not in others[:at]]  # .5 and 0.50 are one
    order = np.random.default_rng(tuning.seed).permutation(len(others))[: tuning.trials - 1]
    return [{}, *(dict(zip(names, others[at])) for at in order)]


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
            raise ConfigError(f"--only {pair}: the plan has no such {axis}{nearest(value, known[axis])}")
        wanted[axis].add(value)
    return wanted


def _text(value: Any) -> str:
    """A value as `--set` reads it."""
    plain = isinstance(value, str) and re.fullmatch(r"[a-z][\w-]*", value) and yaml.safe_load(value) == value
    return value if plain else json.dumps(value)


def leaf_of(name: str) -> str:
    return name.rpartition(".")[2]


def _value(recipe: Recipe, leaf: str) -> Any:
    return recipe.model_dump(mode="json")[Recipe.leaves()[leaf]][leaf]


def nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else f"; known are {', '.join(known)}"
