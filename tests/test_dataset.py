"""Sequences in flat arrays; ids at the edge; saving and loading."""

import json
import subprocess
import sys
import uuid

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asymrec.data import Dataset, Sequences
from asymrec.errors import ConfigError, RunError, UnknownIdError

lists = st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=8)


def aslists(sequences):
    return [sequences[i].tolist() for i in range(len(sequences))]


@pytest.fixture
def dataset():
    names = {"title": ["B", None, "  "], "name": [None, "second\nchoice", None]}
    items = pa.table({"item_id": ["b", "a", "c"], **names, "price": [1.5, None, 2.5]})
    clicks = pa.table({"user_id": [7, 7, 3, 3, 3], "item_id": list("abcca"), "timestamp": [3, 1, 5, 4, 6], "device": list("pqrst")})
    return Dataset.read(clicks, items)


@given(lists)
def test_sequences_are_the_lists_they_are_made_of(parts):
    sequences = Sequences.of(parts)
    assert aslists(sequences) == parts and len(sequences) == len(parts)
    assert sequences.items.dtype == np.int32 and sequences.offsets.dtype == np.int64
    assert sequences.lengths.tolist() == [len(part) for part in parts]
    assert sequences.owners.tolist() == [i for i, part in enumerate(parts) for _ in part]


@given(lists, st.integers(0, 7), st.randoms())
def test_last_and_take_agree_with_lists(parts, n, random):
    times = [[10 * item for item in part] for part in parts]
    sequences = Sequences.of(parts, times)
    assert aslists(sequences.last(n)) == [part[len(part) - min(n, len(part)) :] for part in parts]
    rows = random.choices(range(len(parts)), k=5) if parts else []
    taken = sequences.take(rows)
    assert aslists(taken) == [parts[row] for row in rows]
    assert taken.times.tolist() == [10 * item for row in rows for item in parts[row]]


def test_sequences_index_like_lists_and_refuse_the_rest():
    sequences = Sequences.of([[1], [2, 3]])
    assert sequences[-1].tolist() == [2, 3] and [part.tolist() for part in sequences] == [[1], [2, 3]]
    with pytest.raises(IndexError):
        sequences[2]
    with pytest.raises(ValueError, match="lengths"):
        Sequences.of([[1], [2, 3]], [[1, 2], [3]])
    with pytest.raises(ValueError, match="negative"):
        sequences.last(-1)


def test_rows_of_ids(dataset):
    assert dataset.item_rows(["c", "b"]).tolist() == [2, 0] and dataset.item_rows(["c"]).dtype == np.int32
    for ids in ([7, 3], ["7", "3"], np.array([7, 3]), pa.array([7, 3]), pa.array(["7", "3"]), np.array([7.0, 3.0])):
        assert dataset.user_rows(ids).tolist() == [1, 0]
    assert dataset.user_rows([]).tolist() == []
    with pytest.raises(UnknownIdError, match=r"^unknown item id 'x'$"):
        dataset.item_rows(["x"])
    with pytest.raises(UnknownIdError, match=r"^unknown user id 5 \(2 of the 3 given are unknown\)$"):
        dataset.user_rows([7, 5, 6])
    for strange in (None, "07", "x", 7.5, b"7", 2**70, (7,)):
        with pytest.raises(UnknownIdError):
            dataset.user_rows([strange])
    with pytest.raises(ConfigError, match="expected several item ids, got 'abc'"):
        dataset.item_rows("abc")


def test_bytes_are_found_by_hexadecimal_and_uuid_text():
    own = uuid.UUID("12345678-1234-5678-1234-567812345678")
    table = pa.table({"item_id": pa.array([b"\1" * 16, own.bytes], pa.binary(16)), "user_id": [1, 1]})
    dataset = Dataset.read(table, table.select(["item_id"]))
    assert dataset.item_rows([own, str(own), own.hex, own.bytes, "01" * 16]).tolist() == [1, 1, 1, 1, 0]


def test_many_ids_are_found_as_few_are():
    ids = np.random.default_rng(0).permutation(30_000)
    dataset = Dataset.read(pa.table({"user_id": [1], "item_id": ids[:1]}), pa.table({"item_id": ids}))
    asked = np.random.default_rng(1).choice(ids, 20_000)
    rows = dataset.item_rows(asked)
    assert (ids[rows] == asked).all()
    assert (dataset.item_rows(asked[:50]) == rows[:50]).all()
    with pytest.raises(UnknownIdError, match=r"30000 \(2 of the 20,002 given"):
        dataset.item_rows([*asked, 30_000, 30_001])


def test_titles_take_the_first_column_that_has_one(dataset):
    assert dataset.titles() == ["B", "second choice", "c"]
    bare = Dataset.read(pa.table({"user_id": [1], "item_id": [2]}), pa.table({"item_id": [2, 3]}))
    assert bare.titles() == ["2", "3"]
    long = Dataset.read(pa.table({"user_id": [1], "item_id": [2]}), pa.table({"item_id": [2], "text": ["word " * 99]}))
    assert len(long.titles()[0]) <= 80 and long.titles()[0].endswith("…")


@pytest.mark.parametrize("mmap", [True, False])
def test_what_is_saved_is_loaded(dataset, tmp_path, mmap):
    dataset.save(tmp_path / "saved")
    dataset.save(tmp_path / "saved")  # over itself
    again = Dataset.load(tmp_path / "saved", mmap=mmap)
    for name in ("offsets", "items", "times"):
        array = getattr(again.sequences, name)
        assert np.array_equal(array, getattr(dataset.sequences, name)) and array.dtype == getattr(dataset.sequences, name).dtype
        assert isinstance(array, np.memmap) == mmap
    assert again.items.equals(dataset.items) and again.interactions.equals(dataset.interactions)
    assert again.user_ids.equals(dataset.user_ids) and again.item_ids.equals(dataset.item_ids)
    assert (again.notes, again.time_unit, again.titles()) == (dataset.notes, dataset.time_unit, dataset.titles())
    assert again.item_rows(["c"]).tolist() == [2] and repr(again) == "Dataset(2 users, 3 items, 5 interactions)"


def test_without_times_and_further_columns(tmp_path):
    table = pa.table({"user_id": [1, 1], "item_id": [2, 3]})
    Dataset.read(table, table.select(["item_id"])).save(tmp_path / "saved")
    again = Dataset.load(tmp_path / "saved")
    assert again.sequences.times is None and again.interactions is None and again.time_unit is None
    assert again.notes == ["no timestamps and no positions: file order is used"]


def test_damaged_folders_are_one_line(dataset, tmp_path):
    folder = tmp_path / "saved"
    with pytest.raises(RunError, match="saved: no saved data set there"):
        Dataset.load(folder)
    for name in ("dataset.json", "offsets.npy", "items.npy", "times.npy", "items.arrow", "users.arrow"):
        dataset.save(folder)
        whole = (folder / name).read_bytes()
        for damaged in (whole[: len(whole) // 2], b"", None):
            (folder / name).unlink()
            if damaged is not None:
                (folder / name).write_bytes(damaged)
            elif name == "dataset.json":
                continue
            with pytest.raises(RunError, match=name) as caught:
                Dataset.load(folder)
            assert "\n" not in str(caught.value)
            (folder / name).write_bytes(whole)
    np.save(folder / "items.npy", np.zeros(3, np.int32))
    with pytest.raises(RunError, match="lengths do not agree"):
        Dataset.load(folder)
    about = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(RunError, match="data set of format 99; this version reads format 1"):
        Dataset.load(folder)


def test_no_pickle_is_read(dataset, tmp_path):
    dataset.save(tmp_path / "saved")
    np.save(tmp_path / "saved" / "items.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(RunError, match=r"items\.npy"):
        Dataset.load(tmp_path / "saved")


def test_the_data_layer_starts_without_torch_and_pandas():
    script = """if True:
        import sys, asymrec.data, asymrec.data.sources, asymrec.data.batches
        print([name for name in ("torch", "pandas", "numba") if name in sys.modules])
    """
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
