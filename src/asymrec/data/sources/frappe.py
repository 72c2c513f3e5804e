"""Frappe: apps used on phones, with the context of each use.

L. Baltrunas, K. Church, A. Karatzoglou, N. Oliver, "Frappe: Understanding the usage and perception of mobile app recommendations
in-the-wild", arXiv 1505.03014. The archive `Mobile_Frappe.zip` holds `frappe.csv` and `meta.csv`, separated by tabs.
"""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import pyarrow as pa

from asymrec.data.sources.raw import k_core, plain, refuse_full, sentences, sizes, write
from asymrec.errors import DataError

TERMS = (
    "Frappe's own terms: research use with acknowledgement; no redistribution without separate permission; no attempt to undo the "
    "anonymity; no commercial use without permission."
)
CONTEXT = ("daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city")
DESCRIBED = ("package", "category", "downloads", "developer", "language", "price", "rating")
DESCRIPTION = 1500  # characters of it


def frappe(folder: str | Path, files: list[Path], core: int) -> str:
    """Write interactions.parquet and items.parquet to a new or empty folder.

    There is no time: a row is an app used by a user in a context, with how often (`count`), in the order of the file. interactions:
    user_id, item_id, position, count and CONTEXT. items: item_id, title, DESCRIBED, short_description, description, text; null for unknown.
    Returns the notice to show. Raises DataError: not that archive; RunError: the folder cannot be written.
    """
    import numpy as np

    refuse_full(Path(folder))
    if len(files) != 1:
        raise DataError(f"one file is needed, Mobile_Frappe.zip: {len(files)} are given")
    uses, apps = _tables(files[0])
    try:
        user, item, count = (np.array([int(row[name]) for row in uses], np.int64) for name in ("user", "item", "cnt"))
        context = {name: [row[name] for row in uses] for name in CONTEXT}
        rows = [_row(app) for app in apps]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{files[0]}: not the tables of Frappe: {error!r}") from None
    kept = np.flatnonzero(k_core(user, item, core))
    if not len(kept):
        raise DataError(f"of {len(user):,} interactions none is left in the {core}-core")
    user, item, count = user[kept], item[kept], count[kept]
    order = np.argsort(user, kind="stable")
    begins = np.searchsorted(user[order], user[order])
    position = np.empty(len(user), np.int64)
    position[order] = np.arange(len(user)) - begins
    columns = {"user_id": user, "item_id": item, "position": position, "count": count}
    interactions = pa.table(columns | {name: [values[at] for at in kept] for name, values in context.items()})
    used = set(item.tolist())
    known = {row["item_id"]: row for row in rows}
    items = pa.Table.from_pylist([known.get(name, {"item_id": name}) for name in sorted(used)], ITEMS)
    tables = {"interactions": interactions, "items": items}
    return write(folder, tables, "Frappe", [sizes(tables, core), TERMS])


def _tables(archive: Path) -> list[list[dict[str, str]]]:
    """The rows of the two files. Raises DataError."""
    found = []
    try:
        with zipfile.ZipFile(archive) as opened:
            for name in ("frappe.csv", "meta.csv"):
                member = next(one for one in opened.namelist() if one.split("/")[-1] == name and not one.startswith("__"))
                text = io.TextIOWrapper(opened.open(member), encoding="utf-8", errors="replace", newline="")
                found.append(list(csv.DictReader(text, delimiter="\t")))
    except (OSError, zipfile.BadZipFile, StopIteration) as error:
        raise DataError(f"{archive}: not the archive of Frappe, with frappe.csv and meta.csv ({type(error).__name__})") from None
    return found


def _row(app: dict[str, str]) -> dict[str, str | int | None]:
    known = {name: None if (value := plain(app[name])) == "unknown" else value for name in DESCRIBED}
    title, short, long = (None if (value := plain(app[name])) == "unknown" else value for name in ("name", "short desc", "description"))
    parts = [sentences(title, category=known["category"], developer=known["developer"]), short]
    about = {"title": title, "short_description": short, "description": long and long[:DESCRIPTION]}
    return {"item_id": int(app["item"])} | known | about | {"text": " ".join(filter(None, parts)) or None}


ITEMS = pa.schema(
    [("item_id", pa.int64()), *((name, pa.string()) for name in ("title", *DESCRIBED, "short_description", "description", "text"))]
)
