"""Public data sets as the two tables, from the user's own download: nothing is shipped with the project.

A module a source; `raw` is what they share. Each says where its files come from and under which terms, and writes that into the folder.
"""

from __future__ import annotations

import csv
import difflib
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from asymrec.data.sources import amazon, movielens
from asymrec.data.sources.frappe import frappe
from asymrec.data.sources.steam import steam
from asymrec.errors import DataError

DAMAGE = (ValueError, LookupError, TypeError, OverflowError, RecursionError, csv.Error, zlib.error)  # what parsers raise of other content


@dataclass(frozen=True)
class Source:
    """make(folder, files, core) -> the notice to show. files: what it is made of, in words. core: which k-core by default, 0 for all."""

    make: Callable[[str | Path, list[Path], int], str]
    files: str
    core: int = 0


SOURCES: dict[str, Source] = {
    "movielens-100k": Source(movielens.movielens_100k, "nothing, it is fetched; or ml-100k.zip"),
    "movielens": Source(movielens.movielens, "ml-1m.zip, or another release's archive from grouplens.org/datasets/movielens"),
    "amazon-2014": Source(amazon.MAKERS["amazon-2014"], "reviews_CATEGORY_5.json.gz and meta_CATEGORY.json.gz", 5),
    "amazon-2018": Source(amazon.MAKERS["amazon-2018"], "CATEGORY_5.json.gz and meta_CATEGORY.json.gz", 5),
    "amazon-2023": Source(amazon.MAKERS["amazon-2023"], "CATEGORY.jsonl.gz or its CSV, and meta_CATEGORY.jsonl.gz", 5),
    "steam": Source(steam, "steam_reviews.json.gz and steam_games.json.gz", 5),
    "frappe": Source(frappe, "Mobile_Frappe.zip"),
}


def fetch(name: str, folder: str | Path, files: Iterable[str | Path] = (), core: int | None = None) -> str:
    """Make the data set `name` (one of SOURCES) in `folder` out of these files; returns the notice to show.

    core: users and items with fewer interactions are left out, until none has; by default the source's own.
    Raises DataError: unknown name, a file that is missing or is something else; RunError: the folder cannot be written.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), SOURCES, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(SOURCES)}"
        raise DataError(f"unknown data set '{name}'; {hint}")
    paths = [Path(file) for file in files]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; {name} is made of {SOURCES[name].files}")
    if core is not None and core < 0:
        raise DataError(f"core must be at least 0, not {core}")
    try:
        return SOURCES[name].make(folder, paths, SOURCES[name].core if core is None else core)
    except DAMAGE as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        files = ", ".join(map(str, paths)) or "the download"
        raise DataError(f"{files}: damaged, or something else than {name} is made of ({told})") from error
