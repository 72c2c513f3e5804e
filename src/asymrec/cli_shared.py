"""What the commands share: ids as they are typed, and tables as they are printed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from asymrec.errors import UnknownIdError

# The options of `recommend`, of a run and of a pipeline
UserIds = Annotated[list[str] | None, typer.Option("--user", metavar="U", help="User id; may be repeated.")]
Histories = Annotated[
    list[str] | None, typer.Option("--history", metavar="A,B,C", help="Item ids instead of a user, oldest first; may be repeated.")
]
Times = Annotated[
    list[str] | None,
    typer.Option(
        "--times",
        metavar="T,U,V",
        help="When the items of each --history were taken: unix time or ISO 8601; for models that read times.",
    ),
]
IncludeSeen = Annotated[bool, typer.Option("--include-seen", help="Items of the history may be recommended again.")]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="A,B|FILE", help="Recommend only these items; a file has one id a line. May be repeated."),
]
Exclude = Annotated[list[str] | None, typer.Option("--exclude", metavar="A,B|FILE", help="Never these items; may be repeated.")]

# How tables are read, of every command that reads them
UserColumn = Annotated[str | None, typer.Option("--user-column", metavar="C", help="Column of the user id.")]
ItemColumn = Annotated[str | None, typer.Option("--item-column", metavar="C", help="Column of the item id.")]
TimeColumn = Annotated[str | None, typer.Option("--time-column", metavar="C", help="Column of the timestamp.")]
PositionColumn = Annotated[str | None, typer.Option("--position-column", metavar="C", help="Column of the place in the user's sequence.")]
DropUnknown = Annotated[bool, typer.Option("--drop-unknown", help="Drop interactions with items not in the item table.")]
DropDuplicates = Annotated[bool, typer.Option("--drop-duplicates", help="Drop interactions that repeat user, item and time of another.")]
DropIncomplete = Annotated[bool, typer.Option("--drop-incomplete", help="Drop interactions without a user, an item, a time or a position.")]

EXAMPLES = 3  # ids that the message of an unknown one shows
SEARCHED = 200_000  # ids among which the nearest is looked for


def reading(**given: str | bool | None) -> dict[str, Any]:
    """What of these options is given, by the name of its setting."""
    return {name: value for name, value in given.items() if value not in (None, False)}


def own_ids(dataset: Any, noun: str, texts: list[str]) -> list[Any]:
    """Ids given as text in the type they have in the data. Raises UnknownIdError with the nearest, or with examples."""
    known = dataset.user_ids if noun == "user" else dataset.item_ids
    find = dataset.user_rows if noun == "user" else dataset.item_rows
    try:
        return [known[int(row)].as_py() for row in find(texts)]
    except UnknownIdError as error:
        hint = f"there are for example {', '.join(map(str, known[:EXAMPLES].to_pylist()))}"
        for text in texts if len(known) <= SEARCHED else []:
            try:
                find([text])
            except UnknownIdError:
                import difflib

                if near := difflib.get_close_matches(text, map(str, known.to_pylist()), n=1, cutoff=0.75):
                    hint = f"the nearest is '{near[0]}'; {hint}"
                break
        raise UnknownIdError(f"{error}; {hint}") from None


def asked_ids(dataset: Any, user: list[str] | None, history: list[str] | None, only: list[str] | None, exclude: list[str] | None) -> tuple:
    """What these options name, in the data's own ids: users, histories, only, exclude; None where one is not given."""
    allowed, denied = (None if given is None else _listed(dataset, given) for given in (only, exclude))
    users = None if user is None else own_ids(dataset, "user", user)
    return users, None if history is None else [own_ids(dataset, "item", split_ids(given)) for given in history], allowed, denied


def _listed(dataset: Any, given: list[str]) -> list[Any]:
    """What `--only` or `--exclude` names. Raises UnknownIdError."""
    found = [(part, listed_ids(part)) for part in given]
    try:
        return own_ids(dataset, "item", [each for _, ids in found for each in ids])
    except UnknownIdError as error:
        alone = next((part for part, ids in found if ids == [part] and (Path(part).suffix or Path(part).name != part)), None)
        raise UnknownIdError(f"{error}; nor is there a file {alone}" if alone and not Path(alone).is_file() else str(error)) from None


def asked_times(dataset: Any, history: list[str] | None, times: list[str] | None) -> list[list[int]] | None:
    """`--times`, one for each `--history`, in the data's unit. Raises ConfigError: there are no histories, or of another number; DataError:
    no times."""
    import pyarrow as pa

    from asymrec.data.columns import times_in
    from asymrec.data.tables import Source
    from asymrec.errors import ConfigError

    if times is None:
        return None
    if len(times) != len(history or []):
        raise ConfigError(f"--times goes with --history, one for each: {len(times)} for {len(history or [])}")
    tables = [pa.table({"times": pa.array(split_ids(given), pa.string())}) for given in times]
    return [times_in(dataset.time_unit, Source("--times", table), "times").tolist() for table in tables]


def split_ids(text: str) -> list[str]:
    """`A,B,C` -> three; an id with a comma stands in double quotes."""
    import csv

    return [part.strip() for part in next(csv.reader([text], skipinitialspace=True), []) if part.strip()]


def listed_ids(text: str) -> list[str]:
    """Ids as `split_ids` takes them, or those of a file with one a line."""
    path = Path(text)
    if not path.is_file():
        found = split_ids(text)
    else:
        try:
            found = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UnknownIdError(f"cannot read ids from {path}: {error}") from None
    if not found:
        raise UnknownIdError(f"{path} holds no ids" if path.is_file() else f"no ids are given: '{text}'")
    return found


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Columns side by side, numbers to the right."""
    from rich.cells import cell_len

    widths = [max(cell_len(line[at]) for line in (head, *rows)) for at in range(len(head))]
    right = [all(row[at][:1] in "+-0123456789" for row in rows) and name != "id" for at, name in enumerate(head)]
    for line in (head, *rows):
        cells = [(" " * (w - cell_len(cell)) + cell) if r else cell + " " * (w - cell_len(cell)) for cell, w, r in zip(line, widths, right)]
        print("  " + "  ".join(cells).rstrip())


def print_list(columns: list[str], lines: list[list[str]], whom: str) -> None:
    """The items that are recommended to somebody; on stderr where none is left, all that are allowed being of the history."""
    if lines:
        print_table(columns, lines)
    else:
        print(f"note: no item is left to recommend to {whom}; --include-seen recommends those of the history too", file=sys.stderr)
