"""Steam: reviews of games by their players, and the games' genres and tags.

W.-C. Kang, J. McAuley, "Self-attentive sequential recommendation", ICDM 2018; A. Pathak et al., "Generating and personalizing bundle
recommendations on Steam", SIGIR 2017. The files are `steam_reviews.json.gz` and `steam_games.json.gz`, Python literals a line.
"""

from __future__ import annotations

from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from asymrec.data.sources.raw import Log, chosen, described, plain, records, refuse_full, sentences, sizes, write
from asymrec.errors import DataError

TERMS = "No licence is stated for these reviews; they are given out for research, with a request to cite. Do not publish these files."


def steam(folder: str | Path, files: list[Path], core: int) -> str:
    """Write interactions.parquet and items.parquet to a new or empty folder.

    interactions: user_id (the player's name), item_id, timestamp (unix seconds of the day): by user, then time, then the order of the file;
    a player's first review of a game alone; of players and games with `core` interactions at least. items: item_id, title, categories
    (genres), tags, text.
    Returns the notice to show. Raises DataError: what is wrong with which line; RunError: the folder cannot be written.
    """
    refuse_full(Path(folder))
    reviews, games = chosen(files, ("the reviews", "the games"), "username")
    log = Log()
    for line, record in records(reviews):
        try:
            log.add(str(record["username"]), str(record["product_id"]), _day(record["date"]), float("nan"))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{reviews} line {line}: expected username, product_id and date (YYYY-MM-DD): {error!r}") from None
    interactions = log.table(core)
    ids = interactions["item_id"].unique().to_pylist()
    rows = described(games, "id", ids, _row)
    if not rows:
        raise DataError(f"{games} describes none of the {len(ids):,} games")
    items = pa.Table.from_pylist([{"item_id": name} | rows.get(name, _row({})) for name in ids], ITEMS)
    tables = {"interactions": interactions, "items": items}
    missing = f"{len(ids) - len(rows):,} games are not in the file of games." if len(rows) < len(ids) else ""
    return write(folder, tables, "Steam", filter(None, [sizes(tables, core), missing, TERMS]))


@cache
def _day(text: str) -> int:
    return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=timezone.utc).timestamp())


def _row(about: dict[str, Any]) -> dict[str, Any]:
    title = plain(about.get("app_name")) or plain(about.get("title"))
    listed = [given if isinstance(given := about.get(name), (list, tuple)) else () for name in ("genres", "tags")]
    genres, tags = (list(filter(None, map(plain, given))) for given in listed)
    return {"title": title, "categories": genres, "tags": tags, "text": sentences(title, genres=genres, tags=tags)}


LISTS = pa.list_(pa.string())
ITEMS = pa.schema([("item_id", pa.string()), ("title", pa.string()), ("categories", LISTS), ("tags", LISTS), ("text", pa.string())])
