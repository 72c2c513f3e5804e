"""A plan read from its file: every key known, every setting and every trial checked, before anything is fitted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from asymrec.bench.plan import OURS, READING, Entry, Headline, Part, Plan, Tuning, draws, leaf_of, listed, nearest
from asymrec.config import PRESETS, Recipe
from asymrec.errors import ConfigError

WORDS = {  # pydantic's kinds of error in words of the file
    "string_pattern_mismatch": "expected a name of letters, digits, . + - _, a letter or a digit first",
    "tuple_type": "expected a list",
    "list_type": "expected a list",
    "dict_type": "expected a mapping",
    "too_short": "is empty",
    "missing": "is missing",
}


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
            raise ConfigError(f"--data {name}: {path} has no data set of that name{nearest(name, plan.data)}")
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
            raise ConfigError(f"{path}: 'data.{name}' {why}: not '{key}'{nearest(str(key), ('path', *READING))}")
    if not isinstance(given.get("path"), str):
        raise ConfigError(f"{path}: 'data.{name}.path': expected a folder (got {given.get('path')!r})")
    reading = {key: value for key, value in given.items() if key != "path"}
    reading |= {key: listed(reading[key]) for key in ("text", "views") if key in reading}
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
            raise ConfigError(f"{path}: unknown key '{where}{key}'{nearest(str(key), part.model_fields)}")


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
    if files := [name for name in plan.data if name in ("table.md", "table.csv", "table.html")]:
        raise ConfigError(f"{path}: 'data.{files[0]}': a file of that name is written beside the data sets' folders")
    for entry in plan.models:
        try:
            _check_entry(entry, plan.tuning or Tuning(trials=1))
        except ConfigError as error:
            raise ConfigError(f"{path}: model '{entry.name}': {error}") from None
    for headline in plan.headline:
        for name in (headline.model, *headline.rivals):
            if name not in names:
                raise ConfigError(f"{path}: headline: there is no model '{name}'{nearest(name, names)}")
        for name in headline.data or ():
            if name not in plan.data:
                raise ConfigError(f"{path}: headline: there is no data set '{name}'{nearest(name, plan.data)}")


def _check_entry(entry: Entry, tuning: Tuning) -> None:
    if entry.preset is not None and entry.preset not in PRESETS:
        raise ConfigError(f"there is no preset '{entry.preset}'{nearest(entry.preset, PRESETS)}")
    given = Recipe.read(entry.preset, **entry.settings)
    set_here = {leaf for section in given.model_dump(exclude_unset=True).values() for leaf in section}
    fixed = {leaf_of(name) for name in entry.settings}
    for name, values in (entry.space or {}).items():
        if not values or len({repr(value) for value in values}) < len(values):
            raise ConfigError(f"space of '{name}': expected different values, found {values}")
        if leaf_of(name) == "epochs" and tuning.epochs is not None:
            raise ConfigError("'epochs' is in its space, and `tuning` sets it for every trial")
        if leaf_of(name) in fixed:
            raise ConfigError(f"'{name}' is in its settings and in its space")
        set_here.add(leaf_of(name))
    for leaf in OURS:
        if leaf in set_here:
            raise ConfigError(f"'{leaf}' is not a setting of one model: the plan has `{OURS[leaf]}` for all")
    for drawn in draws(entry, tuning):
        entry.recipe(**drawn)
