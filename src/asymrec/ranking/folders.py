"""A fitted ranker in a folder of its own, with the tables it was fitted on: what `asymrec rank` writes and reads.

    ranker/         weights, vocabularies, schema, settings
    dataset/ users.parquet      the tables
    metrics.json    how impressions were made, figures of the test part, environment; written last

The folder takes its place in one step; one that was there before stays until then.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from asymrec import machine
from asymrec.errors import AsymrecError, ConfigError, RunError, one_line
from asymrec.files import atomic, recover
from asymrec.ranking.asked import tables_with_codes, with_code_field
from asymrec.ranking.examples import ExamplesConfig, Impressions, make
from asymrec.ranking.metrics import measure
from asymrec.ranking.ranker import Ranker, find_ranker
from asymrec.ranking.schema import Schema, Tables, checked
from asymrec.training.listener import Listener
from asymrec.training.loop import QUIET
from asymrec.version import __version__

FORMAT = 1


def fit_ranker(
    data: str | Path,
    folder: str | Path,
    *,
    ranker: str = "tokenformer",
    schema: str | Path | None = None,
    settings: dict[str, Any] | None = None,
    examples: dict[str, Any] | None = None,
    codes: str | Path | None = None,
    read: dict[str, Any] | None = None,
    overwrite: bool = False,
    listener: Listener = QUIET,
) -> dict[str, Any]:
    """Fit a ranker on the impressions of a data folder, measure it on their test part, keep it.

    Args:
        data: folder with interactions.*, items.* and, where there is one, users.*.
        ranker: a name in `RANKERS`. schema: YAML file; inferred when None. settings: of the ranker. examples: of `ExamplesConfig`.
        codes: run folder whose items' codes are read as one more field of the item. read: how the tables are read, as `Dataset.read`
            takes it: `user`, `item`, `time`, `position`, `drop_unknown`, `drop_duplicates`.
    Returns the facts of `metrics.json`.
    Raises RunError: the folder is in the way. ConfigError: an unknown name (the nearest is named), an impossible value. DataError.
    """
    folder = Path(folder)
    recover(folder)
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file: choose another folder")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "ranker" / "ranker.json").exists():
            raise RunError(f"{folder} is there and holds no ranker: choose another")
        if not overwrite:
            raise RunError(f"{folder} holds a ranker already: choose another folder, or replace it with --overwrite")
    kind = find_ranker(ranker)
    config = checked(ExamplesConfig, examples or {}, "examples")
    listener.stage("read the tables")
    tables = Tables.read(data, **read or {})
    for note in tables.dataset.notes:
        listener.stage(f"note: {note}")
    found = Schema.infer(tables) if schema is None else Schema.read(schema)
    if codes is not None:
        tables, known = tables_with_codes(tables, codes)
        found = with_code_field(found)
        listener.stage(f"codes of {known:,} of {tables.dataset.n_items:,} items from {codes}")
    model = kind(found, **settings or {})
    parts = make(tables, found, config)
    listener.stage(f"fit {ranker} on {len(parts.train):,} impressions")
    begun = time.process_time()
    model.fit(parts.train, parts.validation, listener)
    facts = {
        **{"format": FORMAT, "asymrec": __version__, "ranker": ranker, "data": Path(data).resolve().name},
        **{"examples": config.model_dump(mode="json"), "parameters": sum(each.numel() for each in model.network.parameters())},
        **{"log": model.log, "cpu_seconds": time.process_time() - begun, "environment": machine.facts(model.config.device)},
        "metrics": plain(measure(parts.test.labels[:, 0], model.predict(parts.test), parts.test.users)),
    }
    with atomic(folder) as temporary:
        temporary.mkdir()
        model.save(temporary / "ranker")
        tables.save(temporary)
        (temporary / "metrics.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return facts


def load_ranker(folder: str | Path) -> tuple[Ranker, Tables, dict[str, Any]]:
    """What `fit_ranker` left: the ranker, its tables, the facts. Raises RunError: not there, damaged, of another format."""
    folder = Path(folder)
    recover(folder)
    if not (folder / "ranker").is_dir():
        kind = "a run of `asymrec fit`" if (folder / "manifest.json").exists() else "no ranker's folder" if folder.is_dir() else "not there"
        raise RunError(f"{folder} is {kind}: give one that `asymrec rank fit` made")
    try:
        facts = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise RunError(f"{folder} was written by asymrec {facts['asymrec']} in format {facts['format']}; this version reads {FORMAT}")
        return Ranker.load(folder / "ranker"), Tables.load(folder), facts
    except RunError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AsymrecError) as error:
        raise RunError(f"cannot read the ranker in {folder}: {one_line(error)}") from None


def evaluate_ranker(folder: str | Path) -> dict[str, Any]:
    """The test part's figures again, from the folder alone; raises as `load_ranker`."""
    ranker, tables, facts = load_ranker(folder)
    test = make(tables, ranker.schema, ExamplesConfig(**facts["examples"])).test
    return plain(measure(test.labels[:, 0], ranker.predict(test), test.users))


def score_items(ranker: Ranker, tables: Tables, user: int, items: np.ndarray, context: dict[str, Any] | None = None) -> np.ndarray:
    """float32 [n]: the probability of each item (int rows) for a user (a row), after all that the tables hold of the user.

    context: a value for each context field of the schema, or its text. Raises ConfigError: one is missing, or not known.
    """
    wanted, given = [field.name for field in ranker.schema.context], context or {}
    if missing := [name for name in wanted if name not in given]:
        raise ConfigError(f"this ranker reads {', '.join(wanted)} of the context: {missing[0]} is missing")
    if unknown := [name for name in given if name not in wanted]:
        raise ConfigError(f"this ranker reads no context '{unknown[0]}'" + (f"; it reads {', '.join(wanted)}" if wanted else ""))
    table = None
    if wanted:
        table = pa.table({name: _one(name, given[name], tables.column("context", name).type) for name in wanted})
    return ranker.predict(Impressions.of(tables, np.array([user]), [np.asarray(items)], table))


def _one(name: str, value: Any, kind: pa.DataType) -> pa.Array:
    """A value, or the text of one, as a column. Raises ConfigError."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    try:
        if isinstance(value, str) and pa.types.is_nested(kind):
            value = yaml.safe_load(value)
        return pa.array([value]).cast(kind) if isinstance(value, str) else pa.array([value], kind)
    except (pa.ArrowException, TypeError, ValueError, NotImplementedError, yaml.YAMLError):
        raise ConfigError(f"context: {name}={value!r} is no {kind}") from None


def plain(found: dict[str, float]) -> dict[str, float | None]:
    """Figures for JSON, which knows no NaN: what is not defined is null."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in found.items()}
