"""Amazon's reviews by category, from the releases of J. McAuley's group: the reviews and the metadata of one category.

2014: J. McAuley et al., "Image-based recommendations on styles and substitutes", SIGIR 2015. 2018: J. Ni, J. Li, J. McAuley, "Justifying
recommendations using distantly-labeled reviews and fine-grained aspects", EMNLP 2019. 2023: Y. Hou et al., "Bridging language and items
for retrieval and recommendation", arXiv 2403.03952.

The reviews of 2014 and 2018 stand in order of item number, and a day is their finest time: a user's reviews of one day come out in order
of item number, as in the files that the literature uses. `split=untied` is the protocol that this cannot help; see docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from asymrec.data.sources.raw import Log, chosen, described, number, plain, records, refuse_full, sentences, sizes, write
from asymrec.errors import DataError

TERMS = (
    "No licence is stated for Amazon's review data; it is given out for research, with a request to cite. Titles and categories are "
    "Amazon's and its sellers' words. Do not publish these files."
)


@dataclass(frozen=True)
class Release:
    """Names of one release. scale: units of its time in a second. paths: its categories are lists of paths, not one path."""

    year: int
    user: str = "reviewerID"
    item: str = "asin"
    time: str = "unixReviewTime"
    rating: str = "overall"
    scale: int = 1
    brand: str = "brand"
    categories: str = "category"
    paths: bool = False

    def row(self, about: dict[str, Any]) -> dict[str, Any]:
        """An item's columns."""
        found = about.get(self.categories) or []
        paths = found if self.paths else [found]
        # the first of each path is the category that the whole file is of
        names = [plain(name) for path in paths if isinstance(path, list) for name in path[1:] if not str(name).startswith("<")]
        categories = list(dict.fromkeys(filter(None, names)))
        title, brand = plain(about.get("title")), plain(about.get(self.brand))
        text = sentences(title, brand=brand, categories=categories)
        return {"title": title, "brand": brand, "categories": categories, "description": plain(about.get("description")), "text": text}


RELEASES = {
    "amazon-2014": Release(2014, categories="categories", paths=True),
    "amazon-2018": Release(2018),
    "amazon-2023": Release(2023, "user_id", "parent_asin", "timestamp", "rating", 1000, "store", "categories"),
}


def amazon(release: Release, folder: str | Path, files: list[Path], core: int) -> str:
    """Write interactions.parquet and items.parquet of a category to a new or empty folder.

    files: its reviews (JSON, a line each; of 2023 also CSV with a header) and its metadata, plain or gzipped, in any order.
    interactions: user_id, item_id (the ASIN), timestamp (unix seconds), rating: by user, then time, then the order of the file; a user's
    first review of an item alone; of users and items with `core` interactions at least. items: item_id, title, brand, categories (list,
    without the category of the file), description, text (title, brand, categories).
    Returns the notice to show. Raises DataError: what is wrong with which line; RunError: the folder cannot be written.
    """
    refuse_full(Path(folder))
    reviews, metadata = chosen(files, ("the reviews", "the metadata"), release.user)
    log = Log()
    for line, record in records(reviews):
        for key in (release.user, release.item):
            if not isinstance(record.get(key), str) or not record[key]:
                told = f"'{key}' should be text, found {record.get(key)!r}; is it a file of the release of {release.year}?"
                raise DataError(f"{reviews} line {line}: {told}")
        time = int(number(reviews, line, record, release.time)) // release.scale
        log.add(record[release.user], record[release.item], time, number(reviews, line, record, release.rating))
    interactions = log.table(core)
    ids = interactions["item_id"].unique().to_pylist()
    found = described(metadata, release.item, ids, lambda about: (release.categories in about, release.row(about)))
    if not found:
        raise DataError(f"{metadata} describes none of the {len(ids):,} items: is it of the same category and release?")
    if not any(placed for placed, _ in found.values()):
        raise DataError(f"{metadata}: no item has '{release.categories}'; is it a file of the release of {release.year}?")
    rows = {name: row for name, (_, row) in found.items()}
    nothing = release.row({})
    items = pa.Table.from_pylist([{"item_id": name} | rows.get(name, nothing) for name in ids], ITEMS)
    tables = {"interactions": interactions, "items": items}
    missing = f"{len(ids) - len(rows):,} items are not in the metadata." if len(rows) < len(ids) else ""
    return write(folder, tables, f"Amazon {release.year}", filter(None, [sizes(tables, core), missing, TERMS]))


ITEMS = pa.schema(
    [(name, pa.string()) for name in ("item_id", "title", "brand")]
    + [("categories", pa.list_(pa.string()))]
    + [(name, pa.string()) for name in ("description", "text")]
)
MAKERS: dict[str, Callable[[str | Path, list[Path], int], str]] = {name: partial(amazon, release) for name, release in RELEASES.items()}
