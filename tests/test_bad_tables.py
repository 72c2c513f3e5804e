"""Bad tables: each is one line with file, column and first bad row."""

import gzip

import pandas as pd
import pytest
from two_tables import CLICKS, ITEMS, read, sequences, without, write

from asymrec.config import DataConfig
from asymrec.data import Dataset
from asymrec.errors import DataError

OUT = "; `drop_incomplete` leaves such rows out"


@pytest.mark.parametrize(
    ("clicks", "items", "message"),
    [
        (
            without(CLICKS, "user_id"),
            ITEMS,
            "interactions: no column of the user id among item_id, timestamp; name it with the setting `user`",
        ),
        (
            without(CLICKS, "item_id"),
            ITEMS,
            "interactions: no column of the item id among user_id, timestamp; name it with the setting `item`",
        ),
        (
            CLICKS,
            without(ITEMS, "item_id"),
            "items: no column of the item id among title; give it the name that the interactions have, 'item_id'",
        ),
        ({name: [] for name in CLICKS}, ITEMS, "interactions: the table is empty"),
        (CLICKS, {name: [] for name in ITEMS}, "items: the table is empty"),
        (CLICKS | {"user_id": [2, 1, None, None, 2]}, ITEMS, "interactions, column 'user_id', row 3: null id (2 of 5 rows)" + OUT),
        (
            CLICKS | {"user_id": [2.0, 1.0, 1.0, 1.0, float("nan")]},
            ITEMS,
            "interactions, column 'user_id', row 5: null id (1 of 5 rows)" + OUT,
        ),
        (CLICKS | {"item_id": [None] * 5}, ITEMS, "interactions, column 'item_id', row 1: null id (5 of 5 rows)" + OUT),
        (CLICKS, ITEMS | {"item_id": [10, 20, None]}, "items, column 'item_id', row 3: null id (1 of 3 rows)"),
        (CLICKS | {"user_id": [[1]] * 5}, ITEMS, "interactions, column 'user_id': values of type list<item: int64> cannot be ids"),
        (
            CLICKS | {"item_id": [30, 99, 10, 98, 99]},
            ITEMS,
            "interactions, column 'item_id', row 2: 3 of 5 interactions are with 2 items that items does not hold (99, 98); "
            "`drop_unknown` leaves these interactions out",
        ),
        (
            CLICKS | {"item_id": [95, 96, 97, 98, 99]},
            ITEMS,
            "interactions, column 'item_id', row 1: 5 of 5 interactions are with 5 items that items does not hold (95, 96, 97, ...): "
            "none would be left",
        ),
        (
            CLICKS,
            {"item_id": [10, 20, 30, 20, 10]},
            "items, column 'item_id', row 4: duplicate item id 20, first in row 2 (2 rows are duplicates)",
        ),
        (
            CLICKS | {"timestamp": [5, None, 3, None, 1]},
            ITEMS,
            "interactions, column 'timestamp', row 2: null timestamp (2 of 5 rows); `drop_incomplete` leaves such rows out",
        ),
        (
            CLICKS | {"timestamp": [1.0, 2.0, float("inf"), 3.0, 4.0]},
            ITEMS,
            "interactions, column 'timestamp', row 3: null timestamp (1 of 5 rows); `drop_incomplete` leaves such rows out",
        ),
        (
            CLICKS | {"timestamp": [None] * 5},
            ITEMS,
            "interactions, column 'timestamp', row 1: null timestamp (5 of 5 rows); `drop_incomplete` leaves such rows out",
        ),
        (
            CLICKS | {"timestamp": ["2020-01-01", "2020-01-02", "2020-01-03", "soon", "2020-01-05"]},
            ITEMS,
            "interactions, column 'timestamp', row 4: cannot read 'soon' as a time "
            "(unix time, or ISO 8601 such as 2024-05-31 or 2024-05-31T12:30:00Z)",
        ),
        (
            CLICKS | {"timestamp": ["2020-01-01", "2020-01-02T10:00:00Z", "2020-01-03", "2020-01-04", "2020-01-05"]},
            ITEMS,
            "interactions, column 'timestamp', row 2: '2020-01-02T10:00:00Z' is a time in another form than those before it: "
            "all are numbers, or all with a time zone, or all without",
        ),
        (
            CLICKS | {"timestamp": ["1", "2", "", "4", "5"]},
            ITEMS,
            "interactions, column 'timestamp', row 3: null timestamp (1 of 5 rows); `drop_incomplete` leaves such rows out",
        ),
        (CLICKS | {"timestamp": [True] * 5}, ITEMS, "interactions, column 'timestamp': values of type bool cannot be times"),
        (CLICKS | {"timestamp": [1.0, 2.0, 1e30, 3.0, 4.0]}, ITEMS, "interactions, column 'timestamp', row 3: cannot read 1e+30 as a time"),
        (
            CLICKS | {"position": [1, 2, None, 3, 4]},
            ITEMS,
            "interactions, column 'position', row 3: null position (1 of 5 rows); `drop_incomplete` leaves such rows out",
        ),
        (
            CLICKS | {"position": ["1", "2", "3", "last", "5"]},
            ITEMS,
            "interactions, column 'position', row 4: positions must be numbers, found string",
        ),
    ],
)
def test_bad_tables_are_one_line(clicks, items, message):
    with pytest.raises(DataError) as caught:
        read(clicks, items)
    assert str(caught.value) == message


def test_drop_unknown_goes_on_and_says_how_many():
    clicks = CLICKS | {"item_id": [30, 99, 10, 98, 20], "rating": [1, 2, 3, 4, 5]}
    for dataset in (read(clicks, drop_unknown=True), read(clicks, config=DataConfig(drop_unknown=True))):
        assert sequences(dataset) == {2: [10, 20, 30]}  # user 1 has nothing left
        assert dataset.interactions["rating"].to_pylist() == [3, 5, 1]
        assert dataset.notes == ["2 of 5 interactions are with 2 items that items does not hold (99, 98): left out"]


def test_named_columns_that_are_not_there():
    with pytest.raises(DataError, match=r"interactions, column 'time_stamp': no such column; did you mean 'timestamp'\?"):
        read(time="time_stamp")
    with pytest.raises(DataError, match=r"interactions, column 'x': no such column; there are user_id, item_id, timestamp"):
        read(user="x")
    with pytest.raises(DataError, match=r"interactions, column 'user_id': one column cannot be two of"):
        read(time="user_id")


def test_bad_files_are_one_line(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder$"):
        Dataset.read(tmp_path / "nowhere")
    folder = write(tmp_path / "data", ".parquet")
    (folder / "items.parquet").rename(folder / "i.parquet")
    with pytest.raises(DataError, match=r"data: no items.parquet or items.csv there$"):
        Dataset.read(folder)
    with pytest.raises(DataError, match=r"none.parquet: no such file$"):
        Dataset.read(folder / "interactions.parquet", folder / "none.parquet")
    with pytest.raises(DataError, match="not a folder; with two files, name the item table as well"):
        Dataset.read(folder / "interactions.parquet")
    with pytest.raises(DataError, match="the item table is missing"):
        Dataset.read(pd.DataFrame(CLICKS))
    with pytest.raises(DataError, match=r"items: expected a path, a pyarrow.Table or a pandas.DataFrame, got dict"):
        Dataset.read(pd.DataFrame(CLICKS), ITEMS)
    (folder / "items.json").write_text("{}")
    with pytest.raises(DataError, match=r"items.json: expected a file called"):
        Dataset.read(folder / "interactions.parquet", folder / "items.json")
    (folder / "items.csv").write_text("item_id\n10\n20\n30\n")
    (folder / "items.parquet").write_bytes((folder / "i.parquet").read_bytes())
    with pytest.raises(DataError, match=r"both items.parquet and items.csv are there"):
        Dataset.read(folder)
    (folder / "items.csv").unlink()
    whole = (folder / "interactions.parquet").read_bytes()
    for damaged in (whole[:-20], whole[20:], b"user_id,item_id\n1,2\n", b""):
        (folder / "interactions.parquet").write_bytes(damaged)
        with pytest.raises(DataError, match=r"interactions.parquet: not readable as parquet") as caught:
            Dataset.read(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the table is empty"),
        (b"\n\n", "the table is empty"),
        (b"user_id,item_id\n", "the table is empty"),
        (b"user_id,item_id\n1,10\n2\n3,10\n", ", row 2: 1 cells where the header has 2"),
        (b"user_id,item_id\n1,10\n2,20\n3,10,x\n", ", row 3: 3 cells where the header has 2"),
        (b"user_id,item_id\na,10\nb,20\n\xff\xfe,10\n", ", column 'user_id', row 3: not UTF-8 text"),
        (b"user_id,item_id,user_id\n1,10,3\n", ", column 'user_id': two columns have this name"),
        (b"user_id,item_id\n1,10\n,20\n", ", column 'user_id', row 2: null id (1 of 2 rows)"),
        (
            b"user_id,item_id,time\n1,10,5\n1,20,\n",
            ", column 'time', row 2: null timestamp (1 of 2 rows); `drop_incomplete` leaves such rows out",
        ),
        (b"user_id,item_id,time\n1,10,5\n1,20,x\n", ", column 'time', row 2: cannot read 'x' as a time"),
        (b"PAR1\0\0\0\0", "not readable as CSV (binary data)"),
        (b"\xff\xfeu\0s\0", "the header is not UTF-8 text"),
    ],
)
def test_bad_csv_is_one_line_with_its_row(tmp_path, content, message):
    write(tmp_path, ".csv")
    path = tmp_path / "interactions.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        Dataset.read(tmp_path)
    place = f"{path}{'' if message.startswith(',') else ': '}{message}"
    assert str(caught.value).startswith(place) and "\n" not in str(caught.value)


def test_bad_gzip_is_one_line(tmp_path):
    write(tmp_path, ".csv.gz")
    path = tmp_path / "interactions.csv.gz"
    whole = gzip.compress(b"user_id,item_id\n" + b"1,10\n" * 10_000)
    for damaged in (b"user_id,item_id\n1,10\n", whole[:20], whole[:-9]):
        path.write_bytes(damaged)
        with pytest.raises(DataError) as caught:
            Dataset.read(tmp_path)
        assert str(caught.value).startswith(f"{path}: not readable") and "\n" not in str(caught.value)


def test_mixed_and_misnamed_pandas_columns():
    with pytest.raises(DataError, match=r"interactions, column 'user_id': values of mixed or unknown types"):
        Dataset.read(pd.DataFrame(CLICKS | {"user_id": [1, "a", 2, 3, 4]}), pd.DataFrame(ITEMS))
    with pytest.raises(DataError, match="column names must be text, found 0"):
        Dataset.read(pd.DataFrame([[1, 10]]), pd.DataFrame(ITEMS))
    twice = pd.DataFrame([[1, 10, 2]], columns=["user_id", "item_id", "user_id"])
    with pytest.raises(DataError, match="column 'user_id': two columns have this name"):
        Dataset.read(twice, pd.DataFrame(ITEMS))
