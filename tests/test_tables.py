"""Reading the two tables: every format and type, and each bad input as one line with file, column and first bad row."""

import datetime
import gzip
import uuid
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymrec.config import DataConfig
from asymrec.data import Dataset
from asymrec.data.tables import read_table
from asymrec.errors import DataError

ITEMS = {"item_id": [10, 20, 30], "title": ["ten", "twenty", "thirty"]}
CLICKS = {"user_id": [2, 1, 2, 1, 2], "item_id": [30, 10, 10, 20, 20], "timestamp": [50, 10, 30, 5, 40]}


def read(clicks=CLICKS, items=ITEMS, **options):
    return Dataset.read(pa.table(clicks), pa.table(items), **options)


def sequences(dataset):
    """user id -> item ids, as the caller knows them."""
    ids = dataset.item_ids.to_pylist()
    return {user: [ids[row] for row in dataset.sequences[i]] for i, user in enumerate(dataset.user_ids.to_pylist())}


def without(table, *names):
    return {name: values for name, values in table.items() if name not in names}


def write(folder, suffix, clicks=CLICKS, items=ITEMS):
    folder.mkdir(exist_ok=True)
    for name, table in (("interactions", clicks), ("items", items)):
        path = folder / f"{name}{suffix}"
        frame = pd.DataFrame(table)
        if suffix == ".parquet":
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False, sep="\t" if "tsv" in suffix else ",")
    return folder


# formats


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz"])
def test_a_folder_in_every_format(tmp_path, suffix):
    dataset = Dataset.read(write(tmp_path / "data", suffix))
    assert sequences(dataset) == {1: [20, 10], 2: [10, 20, 30]}
    assert dataset.sequences.times.tolist() == [5, 10, 30, 40, 50]
    assert dataset.items.column_names == ["item_id", "title"] and dataset.interactions is None and dataset.notes == []


def test_two_files_two_frames_and_two_tables_are_the_same(tmp_path):
    write(tmp_path, ".parquet")
    files = Dataset.read(tmp_path / "interactions.parquet", str(tmp_path / "items.parquet"))
    frames = Dataset.read(pd.DataFrame(CLICKS), pd.DataFrame(ITEMS))
    assert sequences(files) == sequences(frames) == sequences(read()) == {1: [20, 10], 2: [10, 20, 30]}


def test_csv_with_quotes_newlines_semicolons_and_a_byte_order_mark(tmp_path):
    (tmp_path / "items.csv").write_bytes('\ufeffitem_id;title\n1;"one; ""or"" more\nlines"\n2;ü\n'.encode())
    (tmp_path / "interactions.csv").write_text("user_id;item_id\r\nu;2\r\nu;1\r\n")
    dataset = Dataset.read(tmp_path)
    assert sequences(dataset) == {"u": [2, 1]}
    assert dataset.items["title"].to_pylist() == ['one; "or" more\nlines', "ü"]
    assert dataset.titles() == ['one; "or" more lines', "ü"]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.integers(-(2**63), 2**63 - 1).map(str),
            st.from_regex(r"[+-]?0?\d{1,4}(\.\d+)?(e\d)?", fullmatch=True),
            st.text(max_size=4),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_csv_cells_come_back_as_they_were_written(tmp_path_factory, cells):
    """Against pandas' writer: whatever type a column of ids gets, each cell prints back as it stood in the file."""
    cells = [cell.replace("\r", "").replace("\n", "").replace("\0", "") for cell in cells]
    cells = [cell for cell in cells if cell.strip()] or ["x"]
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    pd.DataFrame({"first": range(len(cells)), "cell": cells}).to_csv(path, index=False)
    table = read_table(path, "a").table
    if pa.types.is_floating(table["cell"].type):
        assert table["cell"].to_pylist() == [float(cell) for cell in cells]
    else:
        assert [str(value) for value in table["cell"].to_pylist()] == cells
    assert table["first"].to_pylist() == list(range(len(cells)))


def test_leading_zeros_make_a_csv_id_text(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title\n007,a\n8,b\n")
    (tmp_path / "interactions.csv").write_text("user_id,item_id\n01,8\n01,007\n02,8\n")
    assert sequences(Dataset.read(tmp_path)) == {"01": ["8", "007"], "02": ["8"]}


def test_numbers_in_one_table_and_text_in_the_other_are_matched(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title\n10,a\nB1,b\n")  # text, by B1
    (tmp_path / "interactions.csv").write_text("user_id,item_id\n1,10\n")  # integers
    assert sequences(Dataset.read(tmp_path)) == {1: ["10"]}


# ids


def _ids():
    some = [uuid.UUID(int=3), uuid.UUID(int=1), uuid.UUID(int=2)]
    day = datetime.date(2024, 1, 1)
    yield from (
        pytest.param(pa.array(values, kind), id=str(kind))
        for kind, values in [
            *((kind, [3, 1, 2]) for kind in (pa.int8(), pa.uint16(), pa.int32(), pa.int64(), pa.uint64(), pa.float64())),
            (pa.uint64(), [2**64 - 1, 1, 2]),
            (pa.string(), ["c", "a", "b"]),
            (pa.large_string(), ["c", "", "b"]),
            (pa.string_view(), ["c", "a", "b"]),
            (pa.dictionary(pa.int8(), pa.string()), ["c", "a", "b"]),
            (pa.dictionary(pa.int32(), pa.int64()), [3, 1, 2]),
            (pa.binary(), [b"\xff", b"a", b""]),
            (pa.binary(16), [each.bytes for each in some]),
            (pa.decimal128(5, 2), [Decimal("3.00"), Decimal("1.00"), Decimal("2.50")]),
            (pa.date32(), [day, day.replace(day=2), day.replace(day=3)]),
            (pa.bool_(), [True, False]),
        ]
    )
    if hasattr(pa, "uuid"):
        yield pytest.param(pa.array([each.bytes for each in some], pa.uuid()), id="uuid")


@pytest.mark.parametrize("ids", list(_ids()))
def test_ids_of_any_type_come_back_in_their_type(ids, tmp_path):
    n = len(ids)
    rows = [*range(n), 0]
    chunks = pa.chunked_array([ids, ids.slice(0, 1)])  # chunks of a dictionary type have dictionaries of their own
    table = pa.table({"user_id": chunks, "item_id": chunks, "timestamp": range(n + 1)})
    dataset = Dataset.read(table, pa.table({"item_id": ids}))
    assert dataset.user_ids.type == dataset.item_ids.type == (pa.large_string() if ids.type == pa.string_view() else ids.type)
    assert dataset.item_ids.to_pylist() == ids.to_pylist()
    assert sequences(dataset) == {own: [ids.to_pylist()[row] for row in rows if ids.to_pylist()[row] == own] for own in ids.to_pylist()}
    assert dataset.item_rows(ids.to_pylist()).tolist() == list(range(n))
    assert dataset.item_rows(dataset.item_ids[::-1]).tolist() == list(range(n))[::-1]
    assert dataset.user_rows(dataset.user_ids).tolist() == list(range(n))
    dataset.save(tmp_path / "saved")
    again = Dataset.load(tmp_path / "saved")
    assert again.user_ids.equals(dataset.user_ids) and again.item_ids.equals(dataset.item_ids)
    assert again.item_rows(ids.to_pylist()).tolist() == list(range(n))


def test_pandas_ids_of_every_dtype():
    items = pd.DataFrame({"item_id": pd.Categorical(["b", "a"])})
    clicks = pd.DataFrame({"user_id": pd.array([5, 5], "Int64"), "item_id": np.array(["a", "b"], object)})
    dataset = Dataset.read(clicks, items)
    assert sequences(dataset) == {5: ["a", "b"]}
    assert pa.types.is_dictionary(dataset.item_ids.type) and dataset.user_ids.type == pa.int64()


def test_users_are_in_order_of_their_ids_and_items_in_that_of_their_table():
    dataset = read({"user_id": ["b", "a", "c"], "item_id": [30, 10, 10]})
    assert dataset.user_ids.to_pylist() == ["a", "b", "c"] and dataset.item_ids.to_pylist() == [10, 20, 30]


# columns


@pytest.mark.parametrize(
    "names",
    [
        ("user", "item", "time"),
        ("userId", "itemId", "date"),
        ("reviewerID", "asin", "unixReviewTime"),
        ("uid", "parent_asin", "datetime"),
        ("customer_id", "product_id", "created_at"),
        ("user_id:token", "item_id:token", "timestamp:float"),
        ("USER ID", "Item-ID", "TS"),
    ],
)
def test_columns_are_found_by_name(names):
    renamed = dict(zip(names, CLICKS.values()))
    assert sequences(read(renamed)) == sequences(read())


def test_columns_named_by_the_caller():
    clicks = {"who": CLICKS["user_id"], "what": CLICKS["item_id"], "when": CLICKS["timestamp"], "user_id": [0] * 5}
    by_name = read(clicks, {"what": ITEMS["item_id"]}, user="who", item="what", time="when")
    by_config = read(clicks, ITEMS, config=DataConfig(user="who", item="what", time="when"))
    assert sequences(by_name) == sequences(by_config) == sequences(read())
    assert by_name.interactions.column_names == ["user_id"]


def test_an_item_table_with_the_interactions_own_column_name_is_matched_on_it():
    items = {"item_id": [0, 1, 2], "asin": ["x", "y", "z"]}
    assert sequences(read({"user": [1, 1], "asin": ["z", "x"]}, items)) == {1: ["z", "x"]}


def test_further_columns_follow_the_order_of_the_sequences():
    dataset = read(CLICKS | {"rating": [1, 2, 3, 4, 5], "note": list("abcde")})
    assert dataset.interactions.to_pydict() == {"rating": [4, 2, 3, 5, 1], "note": list("dbcea")}


# order and times


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(-3, 3)), min_size=1, max_size=40),
    st.sampled_from([1, 10**15, 2**61]),
)
def test_sorting_is_stable_by_user_time_and_row(rows, scale):
    """Against Python's own stable sort, with times so far apart that no combined key holds them as well."""
    users, items, times = zip(*rows)
    times = [time * scale for time in times]
    dataset = read({"user_id": users, "item_id": [ITEMS["item_id"][item] for item in items], "timestamp": times, "row": range(len(rows))})
    expected = sorted(range(len(rows)), key=lambda row: (users[row], times[row]))
    assert dataset.interactions["row"].to_pylist() == expected
    assert dataset.sequences.items.tolist() == [items[row] for row in expected]
    assert np.diff(dataset.sequences.offsets).tolist() == [users.count(user) for user in sorted(set(users))]


UTC = datetime.timezone.utc
NOON = datetime.datetime(2020, 1, 1, 12)
SECONDS = [1577880000, 1577880001]


@pytest.mark.parametrize(
    ("times", "expected", "unit"),
    [
        (pa.array(SECONDS, pa.int32()), SECONDS, "s"),
        (pa.array(SECONDS, pa.uint64()), SECONDS, "s"),
        (pa.array([float(each) for each in SECONDS]), SECONDS, "s"),
        (pa.array([each * 1000 for each in SECONDS]), SECONDS, "s"),
        (pa.array([1577880000123, 1577880000124]), [1577880000123, 1577880000124], "ms"),
        (pa.array([1577880000.25, 1577880000.5]), [1577880000250000, 1577880000500000], "us"),
        (pa.array([1577880000250.5, 1577880000251.5]), [1577880000250500, 1577880000251500], "us"),
        (pa.array([each * 10**9 for each in SECONDS]), SECONDS, "s"),
        (pa.array([NOON, NOON + datetime.timedelta(seconds=1)], pa.timestamp("us")), SECONDS, "s"),
        (pa.array([NOON, NOON.replace(microsecond=1000)], pa.timestamp("ms", "Europe/Berlin")), [1577880000000, 1577880000001], "ms"),
        (pa.array([NOON.date(), NOON.date().replace(day=2)], pa.date32()), [1577836800, 1577923200], "s"),
        (pa.array([NOON.date(), NOON.date().replace(day=2)], pa.date64()), [1577836800, 1577923200], "s"),
        (pa.array(["2020-01-01", "2020-01-02"]), [1577836800, 1577923200], "s"),
        (pa.array(["2020-01-01T12:00:00Z", "2020-01-01 13:00:01+01:00"]), SECONDS, "s"),
        (pa.array(["2020-01-01 12:00:00.5", "2020-01-01 12:00:01"], pa.large_string()), [1577880000500000, 1577880001000000], "us"),
        (pa.array(["1577880000", " 1577880001"]), SECONDS, "s"),
        (pa.array(["2020-01-01", "2020-01-02"]).dictionary_encode(), [1577836800, 1577923200], "s"),
        (pa.array([-5, 7]), [-5, 7], "s"),
    ],
)
def test_times_of_every_kind(times, expected, unit):
    dataset = read({"user_id": [1, 1], "item_id": [10, 20], "timestamp": times})
    assert dataset.sequences.times.tolist() == expected
    assert dataset.time_unit == unit
    assert dataset.notes == ([] if unit == "s" else [f"times are kept in {unit}"])


def test_without_times_and_positions_file_order_is_said_aloud():
    dataset = read(without(CLICKS, "timestamp"))
    assert sequences(dataset) == {1: [10, 20], 2: [30, 10, 20]}
    assert dataset.sequences.times is None and dataset.notes == ["no timestamps and no positions: file order is used"]


def test_positions_order_the_sequences():
    dataset = read(without(CLICKS, "timestamp") | {"position": [2, 0, 0, 1, 1]})
    assert sequences(dataset) == {1: [10, 20], 2: [10, 20, 30]}
    assert dataset.notes == ["no timestamps: column 'position' orders the sequences"]


def test_null_times_beside_positions_are_filled_from_their_neighbours():
    clicks = {
        "user_id": [1, 1, 1, 1, 2, 2, 3],
        "item_id": [10, 20, 30, 10, 10, 20, 30],
        "position": [0, 1, 2, 3, 0, 1, 0],
        "timestamp": [None, 100, None, 200, 300, None, None],
    }
    dataset = read(clicks)
    assert dataset.sequences.times.tolist() == [100, 100, 100, 200, 300, 300, 100]
    assert dataset.notes == ["4 null timestamps in column 'timestamp': filled from their neighbours in the sequence"]


def test_a_time_that_falls_along_the_positions_is_lifted():
    count = 300
    times = list(range(count))
    times[150] = 7
    dataset = read({"user_id": [1] * count, "item_id": [10] * count, "position": range(count), "timestamp": times})
    assert dataset.sequences.times.tolist() == [*range(150), 149, *range(151, count)]
    assert dataset.notes == ["1 timestamps in column 'timestamp' lay before their predecessor's: lifted to it"]


def test_a_position_that_is_no_place_in_time_gives_way_to_the_timestamps():
    clicks = CLICKS | {"position": [1, 1, 3, 2, 2]}  # such as the place on a page
    dataset = read(clicks)
    assert sequences(dataset) == sequences(read()) and dataset.interactions["position"].to_pylist() == [2, 1, 3, 2, 1]
    assert dataset.notes == ["column 'position' runs against the timestamps at 100% of the steps: timestamps order the sequences"]
    assert sequences(read(clicks, position="position")) == {1: [10, 20], 2: [30, 20, 10]}


def test_all_times_null_is_no_times_where_positions_order():
    dataset = read(CLICKS | {"timestamp": pa.nulls(5, pa.int64()), "position": [2, 0, 0, 1, 1]})
    assert dataset.sequences.times is None and sequences(dataset) == {1: [10, 20], 2: [10, 20, 30]}


# bad input


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
        (CLICKS, without(ITEMS, "item_id"), "items: no column of the item id among title; name it with the setting `item`"),
        ({name: [] for name in CLICKS}, ITEMS, "interactions: the table is empty"),
        (CLICKS, {name: [] for name in ITEMS}, "items: the table is empty"),
        (CLICKS | {"user_id": [2, 1, None, None, 2]}, ITEMS, "interactions, column 'user_id', row 3: null id (2 of 5 rows)"),
        (CLICKS | {"user_id": [2.0, 1.0, 1.0, 1.0, float("nan")]}, ITEMS, "interactions, column 'user_id', row 5: null id (1 of 5 rows)"),
        (CLICKS | {"item_id": [None] * 5}, ITEMS, "interactions, column 'item_id', row 1: null id (5 of 5 rows)"),
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
        (CLICKS | {"timestamp": [5, None, 3, None, 1]}, ITEMS, "interactions, column 'timestamp', row 2: null timestamp (2 of 5 rows)"),
        (
            CLICKS | {"timestamp": [1.0, 2.0, float("inf"), 3.0, 4.0]},
            ITEMS,
            "interactions, column 'timestamp', row 3: null timestamp (1 of 5 rows)",
        ),
        (CLICKS | {"timestamp": [None] * 5}, ITEMS, "interactions, column 'timestamp', row 1: null timestamp (5 of 5 rows)"),
        (
            CLICKS | {"timestamp": ["2020-01-01", "2020-01-02", "2020-01-03", "soon", "2020-01-05"]},
            ITEMS,
            "interactions, column 'timestamp', row 4: cannot read 'soon' as a time "
            "(unix time, or ISO 8601 such as 2024-05-31 or 2024-05-31T12:30:00Z)",
        ),
        (
            CLICKS | {"timestamp": ["1", "2", "", "4", "5"]},
            ITEMS,
            "interactions, column 'timestamp', row 3: null timestamp (1 of 5 rows)",
        ),
        (CLICKS | {"timestamp": [True] * 5}, ITEMS, "interactions, column 'timestamp': values of type bool cannot be times"),
        (CLICKS | {"timestamp": [1.0, 2.0, 1e30, 3.0, 4.0]}, ITEMS, "interactions, column 'timestamp', row 3: cannot read 1e+30 as a time"),
        (CLICKS | {"position": [1, 2, None, 3, 4]}, ITEMS, "interactions, column 'position', row 3: null position (1 of 5 rows)"),
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
        (b"user_id,item_id,time\n1,10,5\n1,20,\n", ", column 'time', row 2: null timestamp (1 of 2 rows)"),
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
