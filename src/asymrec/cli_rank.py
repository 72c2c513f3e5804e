"""`asymrec rank`: fit, measure and ask a ranker."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from asymrec.cli_shared import (
    DropDuplicates,
    DropIncomplete,
    DropUnknown,
    ItemColumn,
    PositionColumn,
    TimeColumn,
    UserColumn,
    listed_ids,
    own_ids,
    print_table,
    reading,
)
from asymrec.errors import ConfigError

rank = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The ranker alone: fit on impressions, evaluate, score items for a user."
)

Data = Annotated[Path, typer.Argument(metavar="DATA", help="Folder with interactions.*, items.* and perhaps users.*.", show_default=False)]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a ranker, made by `asymrec rank fit`.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@rank.command()
def schema(
    data: Data,
    user_column: UserColumn = None,
    item_column: ItemColumn = None,
    time_column: TimeColumn = None,
    position_column: PositionColumn = None,
    drop_unknown: DropUnknown = False,
    drop_duplicates: DropDuplicates = False,
    drop_incomplete: DropIncomplete = False,
) -> None:
    """Print what a ranker would read of DATA, as YAML to edit and give to `rank fit --schema`."""
    from asymrec.ranking import Schema, Tables

    read = reading(
        user=user_column, item=item_column, time=time_column, position=position_column,
        drop_unknown=drop_unknown, drop_duplicates=drop_duplicates, drop_incomplete=drop_incomplete,
    )  # fmt: skip
    print(Schema.infer(Tables.read(data, **read)).yaml(), end="")


@rank.command()
def fit(
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write.", show_default=False)],
    ranker: Annotated[
        str, typer.Option(metavar="NAME", help="tokenformer, transformer, hstu, onetrans, din, dcnv2, deepfm, linear, ...")
    ] = ("tokenformer"),
    schema: Annotated[Path | None, typer.Option(metavar="FILE", help="Schema as YAML; by default inferred.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the ranker.")] = None,
    examples: Annotated[
        list[str] | None, typer.Option("--examples", metavar="KEY=VALUE", help="How impressions are made: split_by, negatives, ...")
    ] = None,
    codes: Annotated[Path | None, typer.Option(metavar="RUN", help="Read the codes that this run gave the items as well.")] = None,
    user_column: UserColumn = None,
    item_column: ItemColumn = None,
    time_column: TimeColumn = None,
    position_column: PositionColumn = None,
    drop_unknown: DropUnknown = False,
    drop_duplicates: DropDuplicates = False,
    drop_incomplete: DropIncomplete = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the ranker in FOLDER, once the new one is finished.")] = False,
) -> None:
    """Fit a ranker on the impressions of DATA, measure it on their latest part, write a folder."""
    from asymrec.config import parse_settings
    from asymrec.progress import Progress
    from asymrec.ranking.folders import fit_ranker

    given = {"settings": parse_settings(settings or []), "examples": parse_settings(examples or [])}
    given["read"] = reading(
        user=user_column, item=item_column, time=time_column, position=position_column,
        drop_unknown=drop_unknown, drop_duplicates=drop_duplicates, drop_incomplete=drop_incomplete,
    )  # fmt: skip
    with Progress() as progress:
        facts = fit_ranker(data, output, ranker=ranker, schema=schema, codes=codes, overwrite=overwrite, listener=progress, **given)
    _print(facts["metrics"])
    print(output)


@rank.command()
def evaluate(folder: Folder, as_json: Json = False) -> None:
    """Measure the ranker of FOLDER again."""
    from asymrec.ranking.folders import evaluate_ranker

    found = evaluate_ranker(folder)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        _print(found)


@rank.command()
def score(
    folder: Folder,
    user: Annotated[str, typer.Option(metavar="U", help="User id.", show_default=False)],
    items: Annotated[str | None, typer.Option(metavar="A,B|FILE", help="Item ids, or a file with one a line; by default all.")] = None,
    context: Annotated[list[str] | None, typer.Option("--context", metavar="FIELD=VALUE", help="A field of the context.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many are shown.")] = 10,
    as_json: Json = False,
) -> None:
    """The probability that a user takes each of some items, best first."""
    import numpy as np

    from asymrec.ranking.folders import load_ranker, score_items

    ranker, tables, _ = load_ranker(folder)
    dataset = tables.dataset
    (row,) = dataset.user_rows(own_ids(dataset, "user", [user]))
    rows = np.arange(dataset.n_items) if items is None else dataset.item_rows(own_ids(dataset, "item", listed_ids(items)))
    if not len(rows):
        raise ConfigError("there is no item to score")
    found = score_items(ranker, tables, int(row), rows, dict(_pair(given) for given in context or []))
    best = np.argsort(-found, kind="stable")[:k]
    titles = dataset.titles()
    shown: list[dict[str, Any]] = [
        {"id": dataset.item_ids[int(rows[at])].as_py(), "title": titles[rows[at]], "probability": float(found[at])} for at in best
    ]
    if as_json:
        print(json.dumps(shown, indent=1, ensure_ascii=False, default=str))
        return
    print_table(
        ["", "id", "title", "probability"], [[str(n), str(i["id"]), i["title"], f"{i['probability']:.4f}"] for n, i in enumerate(shown, 1)]
    )


def _pair(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not equals:
        raise ConfigError(f"--context wants FIELD=VALUE, not '{given}'")
    return name.strip(), value


def _print(found: dict[str, float | None]) -> None:
    for name, value in found.items():
        shown = "not defined" if value is None else f"{value:.4f}" if isinstance(value, float) else f"{value:,}"
        print(f"{name:<18} {shown}", file=sys.stdout)
