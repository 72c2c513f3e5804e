"""Converters of downloads: small files in the form of each release, and what comes out against plain Python."""

from __future__ import annotations

import gzip
import json
import tempfile
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import here

from asymrec.data import Dataset
from asymrec.data.sources import SOURCES, fetch
from asymrec.errors import DataError, RunError


def packed(path: Path, lines: list[str]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") if path.suffix == ".gz" else open(path, "w", encoding="utf-8") as file:
        file.write("".join(line + "\n" for line in lines))
    return path


def rows(folder: Path, name: str = "interactions") -> list[dict]:
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def reviews_2014(path: Path, log: list[tuple[str, str, int]]) -> Path:
    about = {"reviewText": "as 'asin': 'B9' says", "overall": 4.0}
    return packed(path, [json.dumps({"reviewerID": user, "asin": item, "unixReviewTime": time} | about) for user, item, time in log])


# Three users and three items, twice over; in order of item, as the release has them
LOG = [(user, item, time) for item, times in (("B1", (9, 5, 7)), ("B2", (9, 6, 7)), ("B3", (3, 7, 7))) for user, time in zip("AZC", times)]
META = [
    repr({"asin": "B1", "title": "Salt &amp; <b>Pepper</b>  mill.", "brand": "Zwei", "categories": [["Home", "Cook"], ["Home", "Gift"]]}),
    repr({"asin": "B9", "title": "not asked for", "categories": [["Home"]]}),
    repr(
        {
            "note": "beside 'asin': 'B9'",
            "asin": "B2",
            "related": {"also_bought": ["B1"]},
            "description": "It's a 'lamp'",
            "categories": [["Home"]],
        }
    ),
    repr({"asin": "B1", "title": "a second time", "categories": [["Home"]]}),
]


def test_amazon_2014(tmp_path):
    files = [packed(tmp_path / "meta.json.gz", META), reviews_2014(tmp_path / "reviews.json.gz", LOG)]
    notice = fetch("amazon-2014", tmp_path / "out", files, core=3)
    assert notice.startswith("3 users, 3 items, 9 interactions, the 3-core of the download.\n1 items are not in the metadata.\n")
    assert (tmp_path / "out/README.md").read_text().startswith("# Amazon 2014\n\n3 users")
    got = [(row["user_id"], row["item_id"], row["timestamp"]) for row in rows(tmp_path / "out")]
    # by time, and within a time as in the file, which is by item
    by_user = {"A": [("B3", 3), ("B1", 9), ("B2", 9)], "Z": [("B1", 5), ("B2", 6), ("B3", 7)], "C": [("B1", 7), ("B2", 7), ("B3", 7)]}
    assert got == [(user, item, time) for user, list_ in by_user.items() for item, time in list_]
    assert {row["rating"] for row in rows(tmp_path / "out")} == {4.0}
    items = {row["item_id"]: row for row in rows(tmp_path / "out", "items")}
    assert items["B1"] == {
        "item_id": "B1",
        "title": "Salt & Pepper mill.",
        "brand": "Zwei",
        "categories": ["Cook", "Gift"],
        "description": None,
        "text": "Salt & Pepper mill. Brand: Zwei. Categories: Cook, Gift.",
    }
    assert items["B2"]["title"] is None and "lamp" in items["B2"]["description"] and items["B2"]["text"] is None
    assert items["B3"]["categories"] == []  # not described
    assert Dataset.read(tmp_path / "out").n_items == 3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("xyzw"), st.integers(0, 5)), min_size=1, max_size=40),
    st.integers(0, 3),
)
def test_order_repeats_and_core_against_plain_python(log, core):
    kept, seen = [], set()
    for user, item, time in sorted(log, key=lambda row: row[2]):  # stable
        if (user, item) not in seen:
            seen.add((user, item))
            kept.append((user, item, time))
    while True:
        again = [row for row in kept if all(sum(other[at] == row[at] for other in kept) >= core for at in (0, 1))]
        if again == kept:
            break
        kept = again
    expected = [row for user in dict.fromkeys(user for user, _, _ in log) for row in kept if row[0] == user]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        meta = packed(folder / "meta.json", [json.dumps({"asin": item, "title": item, "categories": []}) for item in "xyzw"])
        files = [reviews_2014(folder / "reviews.json", log), meta]
        if not expected:
            with pytest.raises(DataError, match=f"of {len(log)} interactions none is left in the {core}-core"):
                fetch("amazon-2014", folder / "out", files, core=core)
            return
        fetch("amazon-2014", folder / "out", files, core=core)
        assert [(row["user_id"], row["item_id"], row["timestamp"]) for row in rows(folder / "out")] == expected


def test_amazon_2018(tmp_path):
    about = {"verified": True, "reviewTime": "10 15, 2010", "overall": 5.0}
    log = [("A", "B1", 10), ("A", "B1", 10), ("A", "B2", 20), ("B", "B1", 5)]  # the release has lines twice
    reviews = [json.dumps({"reviewerID": user, "asin": item, "unixReviewTime": time} | about) for user, item, time in log]
    script = "var aPageStart = (new Date()).getTime();"
    meta = [
        json.dumps({"category": ["Games", "PC", "</span>"], "asin": "B1", "title": "Doom", "brand": "id", "description": ["On", "Mars"]}),
        json.dumps({"category": ["Video Games"], "asin": "B2", "title": script}),
    ]
    fetch("amazon-2018", tmp_path / "out", [packed(tmp_path / "g.json.gz", reviews), packed(tmp_path / "m.json.gz", meta)], core=0)
    assert [(row["user_id"], row["item_id"]) for row in rows(tmp_path / "out")] == [("A", "B1"), ("A", "B2"), ("B", "B1")]
    doom, other = rows(tmp_path / "out", "items")
    assert doom["text"] == "Doom. Brand: id. Categories: PC." and doom["description"] == "On Mars"
    assert other["title"] is None and other["categories"] == []


@pytest.mark.parametrize("kind", ["jsonl.gz", "csv.gz", "csv"])
def test_amazon_2023(tmp_path, kind):
    log = [("U1", "B1", 1_600_000_000_123), ("U1", "B2", 1_500_000_000_000)]
    if "csv" in kind:
        lines = ["\ufeffuser_id,parent_asin,rating,timestamp", *(f"{user},{item},3.0,{time}" for user, item, time in log)]
    else:
        names = ("user_id", "parent_asin", "timestamp")
        lines = [json.dumps({"rating": 3.0, "asin": "C0"} | dict(zip(names, row))) for row in log]
    twice = ("B2", "B1")
    meta = [json.dumps({"parent_asin": name, "title": f"Thing {name}", "store": "S", "categories": ["All", "Toys"]}) for name in twice]
    fetch("amazon-2023", tmp_path / "out", [packed(tmp_path / f"T.{kind}", lines), packed(tmp_path / "meta.jsonl.gz", meta)], core=1)
    assert rows(tmp_path / "out") == [
        {"user_id": "U1", "item_id": "B2", "timestamp": 1_500_000_000, "rating": 3.0},
        {"user_id": "U1", "item_id": "B1", "timestamp": 1_600_000_000, "rating": 3.0},
    ]
    assert rows(tmp_path / "out", "items")[0]["text"] == "Thing B2. Brand: S. Categories: Toys."


def test_steam(tmp_path):
    player = "it's me"
    uses = [(player, "440", "2017-12-17"), (player, "70", "2010-01-02"), ("x", "70", "2011-01-02"), (player, "440", "2018-01-01")]
    reviews = [repr({"username": user, "product_id": game, "date": day, "text": "\u2665"}) for user, game, day in uses]
    games = [
        "{u'publisher': u'Valve', u'genres': [u'Action'], u'app_name': u'Half-Life', u'tags': [u'FPS', u'Sci-fi'], u'id': u'70'}",
        repr({"app_name": "Team Fortress 2", "id": "440"}),
        repr({"app_name": "nobody plays it", "id": "7"}),
    ]
    files = [packed(tmp_path / "steam_games.json.gz", games), packed(tmp_path / "steam_reviews.json.gz", reviews)]
    fetch("steam", tmp_path / "out", files, core=0)
    got = [(row["user_id"], row["item_id"], row["timestamp"]) for row in rows(tmp_path / "out")]
    assert got == [(player, "70", 1_262_390_400), (player, "440", 1_513_468_800), ("x", "70", 1_293_926_400)]
    assert "rating" not in rows(tmp_path / "out")[0]
    assert [row["text"] for row in rows(tmp_path / "out", "items")] == ["Half-Life. Genres: Action. Tags: FPS, Sci-fi.", "Team Fortress 2."]


def archive(path: Path, **members: str | bytes) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name, content in members.items():
            opened.writestr(f"{path.stem}/{name.replace('_', '.')}", content)
    return path


def test_movielens_1m(tmp_path):
    ratings = "1::1193::5::978300760\n1::661::3::978300760\n2::1193::4::978298413\n1::2::3::5\n"
    movies = "2::Usual Suspects, The (1995)::Crime|Thriller\n661::Am\xe9lie (2001)::Comedy\n1193::Solo (1975)::Drama\n9::No One::Drama\n"
    users = "1::F::1::10::48067\n2::M::56::16::70072\n3::M::25::15::55117\n"
    path = archive(tmp_path / "ml-1m.zip", ratings_dat=ratings, movies_dat=movies.encode("latin-1"), users_dat=users, README=b"")
    fetch("movielens", tmp_path / "out", [path])
    got = [(row["user_id"], row["item_id"], row["rating"]) for row in rows(tmp_path / "out")]
    assert got == [(1, 2, 3.0), (1, 1193, 5.0), (1, 661, 3.0), (2, 1193, 4.0)]  # those of one time as in the file
    items = {row["item_id"]: row for row in rows(tmp_path / "out", "items")}
    assert items.keys() == {2, 661, 1193}
    assert items[2]["text"] == "The Usual Suspects (1995). Genres: Crime, Thriller." and items[661]["title"] == "Am\xe9lie"
    assert rows(tmp_path / "out", "users") == [
        {"user_id": 1, "gender": "F", "age_group": "Under 18", "occupation": "K-12 student", "zip_code": "48067"},
        {"user_id": 2, "gender": "M", "age_group": "56+", "occupation": "self-employed", "zip_code": "70072"},
    ]


def test_movielens_of_later_releases(tmp_path):
    ratings = "userId,movieId,rating,timestamp\n1,1,4.5,964982703\n1,3,0.5,964981247\n"
    movies = 'movieId,title,genres\n1,"American President, The (1995)",Comedy|Romance\n3,Nadja (1994),(no genres listed)\n'
    path = archive(tmp_path / "ml-latest-small.zip", ratings_csv=ratings, movies_csv=movies, tags_csv="userId,movieId,tag,timestamp\n")
    notice = fetch("movielens", tmp_path / "out", [path])
    assert notice.startswith("1 users, 2 items, 2 interactions.\n") and "From ml-latest-small.zip." in notice
    assert [(row["item_id"], row["rating"]) for row in rows(tmp_path / "out")] == [(3, 0.5), (1, 4.5)]
    texts = [row["text"] for row in rows(tmp_path / "out", "items")]
    assert texts == ["The American President (1995). Genres: Comedy, Romance.", "Nadja (1994)."]
    ten = archive(tmp_path / "ml-10m.zip", ratings_dat="1::122::4.5::838985046\n", movies_dat="122::Caf\u00e9 (1992)::Comedy\n")
    fetch("movielens", tmp_path / "ten", [ten])
    assert rows(tmp_path / "ten", "items")[0]["title"] == "Caf\u00e9"


def test_frappe(tmp_path):
    names = ["user", "item", "cnt", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city"]
    uses = [
        [1, 7, 2, "morning", "sunday", "weekend", "home", "free", "sunny", "Spain", 0],
        [0, 7, 1, "noon", "monday", "workday", "unknown", "free", "rainy", "Spain", 3],
        [1, 8, 5, "night", "monday", "workday", "work", "paid", "sunny", "Spain", 0],
    ]
    columns = ["item", "package", "category", "downloads", "developer", "icon", "language", "description", "name", "price", "rating"]
    columns.append("short desc")
    apps = [[7, "com.seven", "Social", "10 - 50", "Ada", "http://x", "en", "<p>Long &amp; wide</p>", "Seven", "Free", "4.5", "Short."]]
    tables = (("frappe_csv", names, uses), ("meta_csv", columns, apps))
    members = {name: "".join("\t".join(map(str, row)) + "\n" for row in (head, *rows_)) for name, head, rows_ in tables}
    fetch("frappe", tmp_path / "out", [archive(tmp_path / "Mobile_Frappe.zip", **members)])
    got = rows(tmp_path / "out")
    assert [(row["user_id"], row["item_id"], row["position"], row["count"]) for row in got] == [(1, 7, 0, 2), (0, 7, 0, 1), (1, 8, 1, 5)]
    assert got[1]["daytime"] == "noon" and got[1]["homework"] == "unknown" and got[1]["city"] == "3"
    seven, eight = rows(tmp_path / "out", "items")
    assert seven["text"] == "Seven. Category: Social. Developer: Ada. Short." and seven["description"] == "Long & wide"
    assert eight["item_id"] == 8 and eight["title"] is None


# Bad input


def test_what_is_wrong_with_a_download_is_told_and_nothing_is_written(tmp_path):
    meta, reviews = packed(tmp_path / "meta.json", META), reviews_2014(tmp_path / "reviews.json", LOG)
    broken = packed(tmp_path / "broken.json", [json.dumps({"reviewerID": "A", "asin": "B1", "unixReviewTime": "soon", "overall": 1})])
    other = packed(tmp_path / "other.json", [json.dumps({"asin": "Q1", "title": "of another category"})])
    html = packed(tmp_path / "page.json", ["<html>sign in</html>"])
    empty, cut = packed(tmp_path / "empty.json", []), tmp_path / "cut.json.gz"
    reviews_2014(tmp_path / "whole.json.gz", LOG * 50)
    cut.write_bytes((tmp_path / "whole.json.gz").read_bytes()[:-20])
    (tmp_path / "plain.json.gz").write_text("not zipped")
    modern = packed(tmp_path / "modern.jsonl", [json.dumps({"user_id": "U", "parent_asin": "B1", "timestamp": 1, "rating": 1})])
    headless = archive(tmp_path / "ml.zip", ratings_csv="userId,movieId\n1,2\n", movies_csv="movieId\n")
    strange = archive(tmp_path / "a.zip", ratings_dat="1::2::3::4\n", movies_dat="7::X::Y\n")
    undated = packed(tmp_path / "s.json", [repr({"username": "a", "product_id": "1", "date": "soon"})])
    older = packed(tmp_path / "older.json", [line.replace("'categories'", "'category'") for line in META])
    unnamed = packed(tmp_path / "unnamed.json", [json.dumps({"reviewerID": "A", "asin": None, "unixReviewTime": 1, "overall": 1})])
    endless = packed(tmp_path / "endless.json", [json.dumps({"reviewerID": "A", "asin": "B1", "unixReviewTime": 1e30, "overall": 1})])
    without = packed(tmp_path / "without.json", ['{"reviewerID": "A", "asin": "B1", "unixReviewTime": NaN, "overall": 1}'])
    deep = packed(tmp_path / "deep.json", ["[" * 100_000])
    wide = packed(tmp_path / "wide.csv", ["user_id,parent_asin,rating,timestamp", f"U,{'B' * 200_000},1,1"])
    head, films = "userId,movieId,rating,timestamp\n", "movieId,title,genres\n2,A,B\n"
    dateless = archive(tmp_path / "d.zip", ratings_csv=f"{head}5,2,3.5,\n", movies_csv=films)
    nobody = archive(tmp_path / "n.zip", ratings_csv=f"{head},2,2,5\n", movies_csv=films)
    strangers = archive(tmp_path / "p.zip", ratings_dat="1::2::3::4\n", movies_dat="2::X::Y\n", users_dat="1::F::1::99::0\n")
    hundred = {"ml-100k/u.data": "1\t2\tfive\t3\n", "ml-100k/u.item": "", "ml-100k/u.user": "1|2\n"}
    with zipfile.ZipFile(tmp_path / "h.zip", "w") as opened:
        for name, content in hundred.items():
            opened.writestr(name, content)
    head = "user\titem\tcnt\tdaytime\tweekday\tisweekend\thomework\tcost\tweather\tcountry\tcity\n"
    described = "item\tpackage\tcategory\tdownloads\tdeveloper\tlanguage\tdescription\tname\tprice\trating\tshort desc\n"
    unused = archive(tmp_path / "u.zip", frappe_csv=head, meta_csv=described)
    negative = archive(tmp_path / "v.zip", frappe_csv=head + "-1\t1\t1" + "\tx" * 8 + "\n", meta_csv=described)
    spoiled = tmp_path / "spoiled.zip"
    with zipfile.ZipFile(spoiled, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("frappe.csv", head * 50)
        opened.writestr("meta.csv", described)
    content = bytearray(spoiled.read_bytes())
    content[45:60] = bytes(15)
    spoiled.write_bytes(content)
    for name, files, message in (
        ("amazon-2014", [deep, meta], "neither a JSON object nor a Python mapping"),
        ("amazon-2023", [wide, meta], "damaged, or something else than amazon-2023 is made of (Error: field larger"),
        ("movielens", [dateless], "1 ratings have no timestamp"),
        ("movielens", [nobody], "1 ratings have no userId"),
        ("movielens", [strangers], "something else than movielens is made of (IndexError"),
        ("movielens-100k", [tmp_path / "h.zip"], "something else than movielens-100k is made of (ValueError"),
        ("frappe", [unused], "of 0 interactions none is left"),
        ("frappe", [negative], "something else than frappe is made of (ValueError"),
        ("frappe", [spoiled], "spoiled.zip"),
        ("amazon-2014", [reviews, older], "no item has 'categories'; is it a file of the release of 2014?"),
        ("amazon-2014", [unnamed, meta], "unnamed.json line 1: 'asin' should be text, found None"),
        ("amazon-2014", [endless, meta], "'unixReviewTime' should be a number, found 1e+30"),
        ("amazon-2014", [without, meta], "'unixReviewTime' should be a number, found nan"),
        ("amazon-2014", [], "two files are needed, the reviews (each line with 'reviewerID') and the metadata: none is given"),
        ("amazon-2014", [meta], f"{meta} lacks 'reviewerID'"),
        ("amazon-2014", [reviews, reviews], f"{reviews} has 'reviewerID'; {reviews} has 'reviewerID'"),
        ("amazon-2014", [modern, meta], f"{modern} lacks 'reviewerID'"),
        ("amazon-2014", [broken, meta], f"{broken} line 1: 'unixReviewTime' should be a number, found 'soon'"),
        ("amazon-2014", [reviews, other], f"{other} describes none of the 3 items: is it of the same category and release?"),
        ("amazon-2014", [html, meta], f"{html} line 1: neither a JSON object nor a Python mapping: <html>"),
        ("amazon-2014", [empty, meta], f"{empty} is empty"),
        ("amazon-2014", [cut, meta], f"cannot read {cut}: Compressed file ended"),
        ("amazon-2014", [tmp_path / "plain.json.gz", meta], "cannot read"),
        ("amazon-2014", [tmp_path / "gone.json", meta], "gone.json does not exist; amazon-2014 is made of reviews_"),
        ("amazon-2018", [tmp_path, meta], f"{tmp_path} is a folder; amazon-2018 is made of"),
        ("movielens", [], "one file is needed, an archive of GroupLens such as ml-1m.zip: 0 are given"),
        ("movielens", [reviews], f"{reviews}: not an archive of MovieLens"),
        ("movielens", [headless], "not an archive of MovieLens"),
        ("movielens", [strange], "1 rated films are not in its list"),
        ("movielens-100k", [reviews], "not the archive of MovieLens 100K"),
        ("steam", [undated, meta], "s.json line 1: expected"),
        ("frappe", [reviews], f"{reviews}: not the archive of Frappe"),
        ("frappe", [archive(tmp_path / "f.zip", frappe_csv="a\tb\n1\t2\n", meta_csv="a\n1\n")], "not the tables of Frappe"),
    ):
        with pytest.raises(DataError) as error:
            fetch(name, tmp_path / "out", files, core=0)
        assert message in str(error.value), (name, str(error.value))
    with pytest.raises(DataError, match="core must be at least 0, not -1"):
        fetch("frappe", tmp_path / "out", [unused], core=-1)
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("")
    for name in SOURCES:
        with pytest.raises(RunError, match=r"thesis\.tex"):
            fetch(name, tmp_path / "full", [reviews, meta])


def test_the_command(tmp_path):
    meta, reviews = packed(tmp_path / "meta.json", META), reviews_2014(tmp_path / "reviews.json", LOG)
    listed = here("data", "--list")
    assert listed.returncode == 0 and all(name in listed.stdout for name in SOURCES)
    done = here("data", "amazon-2014", reviews, meta, "--core", 2, "-o", tmp_path / "out")
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / "out") and "the 2-core of the download" in done.stderr
    wrong = here("data", "amazon-2014", reviews, "-o", tmp_path / "other")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: two files are needed")
