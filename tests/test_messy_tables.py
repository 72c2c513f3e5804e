"""Tables as exports leave them: stray quotes, parts of Parquet, ids written in two ways, times that are missing."""

from __future__ import annotations

import gzip
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from two_tables import CLICKS, ITEMS, read, sequences

from asymrec.data import Dataset
from asymrec.errors import DataError

# Quotes


def shop(folder, suffix: str, clicks: str, items: str):
    folder.mkdir(exist_ok=True)
    for name, text in (("interactions", clicks), ("items", items)):
        path = folder / f"{name}{suffix}"
        path.write_bytes(gzip.compress(text.encode()) if suffix.endswith(".gz") else text.encode())
    return folder


@pytest.mark.parametrize("suffix", [".tsv", ".tsv.gz"])
@pytest.mark.parametrize("stray", [(10,), (10, 200), (999,)])
def test_stray_quotes_swallow_no_rows(tmp_path, suffix, stray):
    mark = ["", '"']
    rows = [f"u{n % 40}\tP{n * 7 % 30}\t{1_600_000_000 + n}\t{mark[n in stray]}red shoes {n}" for n in range(1000)]
    items = "item\ttitle\n" + "".join(f"P{n}\tthing {n}\n" for n in range(30))
    dataset = Dataset.read(shop(tmp_path, suffix, "user\titem\ttimestamp\tquery\n" + "\n".join(rows) + "\n", items))
    assert (dataset.n_users, len(dataset.sequences.items)) == (40, 1000)
    assert sum('"' in query for query in dataset.interactions["query"].to_pylist()) == len(stray)
    assert f"quotes are characters like others (the one in line {stray[0] + 2:,} closes no cell)" in dataset.notes[0]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('item,title\nA,"Smith, J"\nB,"Heroes\nC,Low\nD,Lodger\n', 3),  # open to the end of the file
        ('item,title\nA,"Smith, J"\nB,"Heroes\nC,"Low"\nD,Lodger\n', 3),
        ('item,title\nA,"Smith, J"\nB,x\nC,"Weird Al" Yankovic\n', 4),
        ('item,title\nA,one\nB,"say \\"hi\\" there, you"\n', 3),
    ],
)
def test_quotes_that_cannot_be_understood_are_refused_with_their_line(tmp_path, text, line):
    folder = shop(tmp_path, ".csv", "user,item\n1,A\n1,B\n", text)
    with pytest.raises(DataError, match=rf"items.csv, line {line}: a quote opens a cell and closes none"):
        Dataset.read(folder)


def test_quotes_in_their_right_places_are_quotes(tmp_path):
    items = 'item,title\nA,"Smith, J ""the"" man"\nB,"two\nlines, and\r\nmore"\nC,12" single\nD,""\nE,"in, all"\n'
    dataset = Dataset.read(shop(tmp_path, ".csv", 'user,item\n"1",A\n1,B\n', items))
    assert dataset.items["title"].to_pylist() == ['Smith, J "the" man', "two\nlines, and\r\nmore", '12" single', None, "in, all"]
    assert not [note for note in dataset.notes if "quotes" in note]
    lone = Dataset.read(shop(tmp_path, ".csv", "user,item\n1,A\n1,B\n", 'item,title\nA,"Weird Al" Yankovic\nB,x\n'))
    assert lone.items["title"].to_pylist() == ['"Weird Al" Yankovic', "x"] and "in line 2" in lone.notes[0]


@pytest.mark.parametrize(
    ("header", "name"),
    [('"user" id', '"user" id'), ("user\x85x", "user\x85x"), ('"a\nb"', "a\nb"), ("\ufeffuser", "user"), ('\ufeff"user"', "user")],
)
def test_odd_names_of_columns_keep_their_cells(tmp_path, header, name):
    text = f"{header},item\n007,A\n008,B\n007,B\n"
    dataset = Dataset.read(shop(tmp_path, ".csv", text, "item,title\nA,a\nB,b\n"), user=name)
    assert dataset.user_ids.to_pylist() == ["007", "008"]


@pytest.mark.parametrize("text", ["\ufeff", "\ufeff\n\n", "\r\r", ""])
def test_a_file_of_nothing(tmp_path, text):
    with pytest.raises(DataError, match=r"interactions.csv: (the table is empty|not readable)"):
        Dataset.read(shop(tmp_path, ".csv", text, "item,title\nA,a\n"))


def test_letters_that_end_in_a_byte_of_the_mark_open_no_quotes(tmp_path):
    items = 'item,title\nA,"ok, x"\nB,¿"Quién" es?\n'
    assert Dataset.read(shop(tmp_path, ".csv", "user,item\n1,A\n1,B\n", items)).items["title"].to_pylist() == ["ok, x", '¿"Quién" es?']


def test_long_lines_that_end_as_an_old_mac_ends_them(tmp_path):
    items = "item,title\r" + "".join(f"{n},{'é' * 60}\r" for n in range(10_000))
    assert Dataset.read(shop(tmp_path, ".csv", "user,item\r1,0\r1,1\r", items)).n_items == 10_000


def test_a_name_in_capitals_is_compressed_too(tmp_path):
    shop(tmp_path, ".csv.gz", "user,item\n1,A\n1,B\n", "item,title\nA,a\nB,b\n")
    for name in ("interactions", "items"):
        (tmp_path / f"{name}.csv.gz").rename(tmp_path / f"{name}.CSV.GZ")
    assert Dataset.read(tmp_path / "interactions.CSV.GZ", tmp_path / "items.CSV.GZ").n_items == 2


def test_blank_lines_before_the_header(tmp_path):
    assert Dataset.read(shop(tmp_path, ".csv", "\n\r\nuser,item\n1,A\n1,B\n", "item,title\nA,a\nB,b\n")).n_items == 2


# Parts of Parquet


def parts(folder, name: str, tables: dict[str, dict]):
    for part, table in tables.items():
        path = folder / f"{name}.parquet" / part
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), path)


def test_parts_stand_in_the_order_of_their_numbers_with_all_columns(tmp_path):
    parts(
        tmp_path,
        "interactions",
        {f"part-{n}.snappy.parquet": {"user": [1], "item": [n]} | ({"stars": [n]} if n else {}) for n in range(12)},
    )
    parts(tmp_path, "items", {"a.parquet": {"item": np.arange(6)}, "b.parquet": {"item": np.arange(6, 12), "title": list("ghijkl")}})
    (tmp_path / "interactions.parquet" / "_SUCCESS").touch()
    (tmp_path / "interactions.parquet" / "README.txt").write_text("parts")
    dataset = Dataset.read(tmp_path)
    assert sequences(dataset) == {1: list(range(12))}
    assert dataset.interactions["stars"].to_pylist() == [None, *range(1, 12)] and dataset.items["title"].to_pylist()[5:7] == [None, "g"]


def test_what_folders_are_called_is_kept_as_it_is_written(tmp_path):
    parts(tmp_path, "interactions", {f"user={name}/0.parquet": {"item": [10, 20]} for name in ("007", "7", "07", "a%20b")})
    pq.write_table(pa.table(ITEMS), tmp_path / "items.parquet")
    assert Dataset.read(tmp_path).user_ids.to_pylist() == ["007", "07", "7", "a b"]


def test_parts_of_two_types_are_told(tmp_path):
    parts(tmp_path, "interactions", {"a.parquet": CLICKS, "b.parquet": CLICKS | {"timestamp": ["2024-01-01"] * 5}})
    pq.write_table(pa.table(ITEMS), tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"b.parquet, column 'timestamp': string here, int64 in a.parquet"):
        Dataset.read(tmp_path)
    parts(tmp_path, "interactions", {"b.parquet": CLICKS | {"timestamp": [1.5, 2, 3, 4, 5]}})
    assert len(Dataset.read(tmp_path).sequences.items) == 10


def test_links_categories_and_keys_that_the_files_have(tmp_path):
    parts(tmp_path, "interactions", {"k=1/a.parquet": {"user": [1], "item": pa.array(["x"]).dictionary_encode()}})
    parts(tmp_path / "elsewhere", "interactions", {"b.parquet": {"user": [1], "item": ["y"], "k": ["own"]}})
    (tmp_path / "interactions.parquet" / "k=2").symlink_to(tmp_path / "elsewhere" / "interactions.parquet")
    (tmp_path / "interactions.parquet" / "k=1" / "round").symlink_to(tmp_path / "interactions.parquet")
    pq.write_table(pa.table({"item": ["x", "y"], "title": ["a", "b"]}), tmp_path / "items.parquet")
    dataset = Dataset.read(tmp_path)
    assert len(dataset.sequences.items) == 2 and dataset.interactions["k"].to_pylist() == ["1", "own"]


def test_a_folder_of_no_parquet(tmp_path):
    pq.write_table(pa.table(ITEMS), tmp_path / "items.parquet")
    (tmp_path / "interactions.parquet").mkdir()
    with pytest.raises(DataError, match=r"interactions.parquet: a folder without parquet files"):
        Dataset.read(tmp_path)


def test_what_is_nearly_called_so_is_named(tmp_path):
    (tmp_path / "Interactions.CSV").write_text("user,item\n1,A\n")
    (tmp_path / "interactions.jsonl").touch()
    with pytest.raises(DataError, match=r"no interactions.parquet .* \(but Interactions.CSV, interactions.jsonl, and what is read is"):
        Dataset.read(tmp_path)


# Ids


@pytest.mark.parametrize("bytes_in", ["interactions", "items"])
def test_bytes_in_one_table_and_their_text_in_the_other(bytes_in):
    ids = [uuid.UUID(int=number) for number in (1, 1 << 100, 7)]
    binary, text = pa.array([one.bytes for one in ids], pa.binary(16)), pa.array([str(one).upper() for one in ids])
    clicks = {"user_id": [1, 1, 2], "item_id": binary if bytes_in == "interactions" else text}
    dataset = read(clicks, {"item_id": text if bytes_in == "interactions" else binary, "title": ["a", "b", "c"]})
    assert [row.tolist() for row in (dataset.sequences[0], dataset.sequences[1])] == [[0, 1], [2]]
    with pytest.raises(DataError, match="1 of 3 interactions are with 1 items"):
        read(clicks, {"item_id": (text if bytes_in == "interactions" else binary).slice(0, 2), "title": ["a", "b"]})
    with pytest.raises(DataError, match="none would be left"):
        read({"user_id": [1, 1], "item_id": ["x", "y"]}, {"item_id": binary, "title": ["a", "b", "c"]})
    with pytest.raises(DataError, match="none would be left"):
        read({"user_id": [1, 1], "item_id": [12, 13]}, {"item_id": pa.array([b"\x12", b"\x13"]), "title": ["a", "b"]})
    with pytest.raises(DataError, match="holds bytes, which the item table writes as text, some of them in two ways"):
        read({"user_id": [1, 1], "item_id": pa.array([b"\xab"] * 2)}, {"item_id": ["ab", "AB"], "title": ["a", "b"]})


def test_unknown_ids_of_arrows_uuid_type_are_told():
    ids = pa.array([uuid.UUID(int=number).bytes for number in (1, 2)], pa.binary(16))
    clicks = pa.table({"user_id": [1, 1], "item_id": pa.ExtensionArray.from_storage(pa.uuid(), ids)})
    with pytest.raises(DataError, match=r"row 2: 1 of 2 interactions are with 1 items .*UUID\('00000000-0000-0000-0000-000000000002'\)"):
        read(clicks, {"item_id": ids.slice(0, 1), "title": ["a"]})


@pytest.mark.parametrize(
    ("theirs", "ours"), [(["B ", "C"], ["B", "c"]), (["01", "2"], [1, 2]), (["1.0", "2"], [1, 2]), ([1, 2], ["1", "002"])]
)
def test_ids_that_differ_only_in_writing_are_told(theirs, ours):
    with pytest.raises(DataError, match=r"of them but for spaces, capitals, leading zeros or decimals \(.* here, .* there\)"):
        read({"user_id": [1, 1], "item_id": theirs}, {"item_id": ours, "title": ["b", "c"]})


# Times


def test_times_of_day_written_as_whole_numbers():
    clicks = CLICKS | {"timestamp": [20240531101010, 20240531101009, 20231231235959, 20240229000000, 20240531000000]}
    dataset = read(clicks)
    assert dataset.time_unit == "s" and "are read as dates, such as 20240531101010" in dataset.notes[0]
    assert dataset.sequences.times[-1] == np.datetime64("2024-05-31T10:10:10").astype(np.int64)
    assert read(CLICKS | {"timestamp": [20240531256010 + n for n in range(5)]}).time_unit == "ms"  # no hour of 25
    day = np.datetime64("2024-05-31T12:30:00").astype(np.int64)
    for later in ([20240531123000, 20240531123500], [202405311230, 202405311235], [20240531123000.0, 20240531123500.0]):
        one_day = read({"user_id": [1, 1], "item_id": [10, 20], "timestamp": later})
        assert one_day.sequences.times.tolist() == [day, day + 300] and one_day.time_unit == "s"


def test_dates_stay_dates_where_one_is_missing():
    clicks = {"user_id": [1] * 4, "item_id": [10, 20, 30, 10], "timestamp": [20240531.0, 20240601.0, 20240602.0, None]}
    assert (np.diff(read(clicks, drop_incomplete=True).sequences.times) == 86_400).all()
    assert (
        read(clicks | {"timestamp": ["20240531.0", "20240601.0", "NaT", "20240602.0"]}, drop_incomplete=True).notes[1].endswith("20240531")
    )


def test_incomplete_rows_are_left_out_when_asked():
    clicks = {
        "user_id": ["a", None, "b", "b", "b", "a"],
        "item_id": [10, 10, None, 20, 30, 20],
        "timestamp": ["5", "6", "7", "NULL", "9", "x"],
    }
    with pytest.raises(DataError, match="column 'user_id', row 2: null id"):
        read(clicks)
    with pytest.raises(DataError, match="column 'timestamp', row 6: cannot read 'x' as a time"):
        read(clicks, drop_incomplete=True)
    dataset = read(clicks | {"timestamp": ["5", "6", "7", "NULL", "9", " nan"]}, drop_incomplete=True)
    assert sequences(dataset) == {"a": [10], "b": [30]}
    assert dataset.notes == ["4 of 6 interactions have no user_id or no item_id or no timestamp: left out"]
    positions = {"user_id": [1] * 6, "item_id": [10] * 6, "position": range(1, 7), "timestamp": [6, 5, 4, 3, 2, None]}
    assert len(read(positions, drop_incomplete=True).sequences.items) == 5  # the times order, for positions run against them
    with pytest.raises(DataError, match=r"5 of 5 interactions have no .*: none would be left"):
        read(CLICKS | {"user_id": pa.nulls(5, pa.string())}, drop_incomplete=True)
