"""Reading the two tables: every format and type, ids, columns, order and times."""

import datetime
import uuid
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from two_tables import CLICKS, ITEMS, read, sequences, without, write

from asymrec.config import DataConfig
from asymrec.data import Dataset
from asymrec.data.tables import read_table

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
