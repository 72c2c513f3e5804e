"""What the commands share: ids as they are typed, and tables as they are printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asymrec.errors import UnknownIdError

EXAMPLES = 3  # ids that the message of an unknown one shows
SEARCHED = 200_000  # ids among which the nearest is looked for


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


def split_ids(text: str) -> list[str]:
    """`A,B,C` -> three; an id with a comma stands in double quotes."""
    import csv

    return [part.strip() for part in next(csv.reader([text], skipinitialspace=True), []) if part.strip()]


def listed_ids(text: str) -> list[str]:
    """Ids as `split_ids` takes them, or those of a file with one a line."""
    path = Path(text)
    if not path.is_file():
        return split_ids(text)
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UnknownIdError(f"cannot read ids from {path}: {error}") from None


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Columns side by side, numbers to the right."""
    from rich.cells import cell_len

    widths = [max(cell_len(line[at]) for line in (head, *rows)) for at in range(len(head))]
    right = [all(row[at][:1] in "+-0123456789" for row in rows) and name != "id" for at, name in enumerate(head)]
    for line in (head, *rows):
        cells = [(" " * (w - cell_len(cell)) + cell) if r else cell + " " * (w - cell_len(cell)) for cell, w, r in zip(line, widths, right)]
        print("  " + "  ".join(cells).rstrip())
