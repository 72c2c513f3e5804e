"""Tables as people have them: item ids under another name, rows twice, dates as whole numbers, titles called otherwise, ids as floats."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from benched import fits_here
from small import here, settings, tables, write
from two_tables import CLICKS, ITEMS, read, sequences

from asymrec.config import Recipe
from asymrec.data import Dataset
from asymrec.errors import ConfigError, DataError, UnknownIdError
from asymrec.models import AsymRec, AsymRecBoth, Recommender
from asymrec.runs import fit_run

# Ids


def test_item_ids_may_have_a_name_of_their_own_in_the_item_table():
    expected = {1: [20, 10], 2: [10, 20, 30]}
    assert sequences(read(CLICKS, {"id": [10, 20, 30], "title": list("abc")})) == expected
    both = read(CLICKS, {"id": [10, 20, 30], "product": ["soap", "rope", "soap"]})  # which is called as ids may be, and is none
    assert sequences(both) == expected and both.item_column == "id"
    named = read(CLICKS, {"title": ["10", "20", "x"], "article_number": [10, 20, 30], "price": [1.0, 1.0, 2.0]})
    assert sequences(named) == expected and named.item_column == "article_number"
    assert "column 'article_number' of items holds the items of column 'item_id': taken for their ids" in named.notes
    with pytest.raises(DataError, match="no column of the item id among a, b; give it the name that the interactions have, 'item_id'"):
        read(CLICKS, {"a": [10, 20, 30], "b": [10, 20, 30]})  # which of them?
    with pytest.raises(DataError, match="no column of the item id among a, price"):
        read(CLICKS, {"a": [10, 20, 40], "price": [1.0, 2.0, 3.0]})


def test_whole_numbers_that_pandas_keeps_as_floats_are_found_as_they_are_shown():
    dataset = Dataset.read(pd.DataFrame(CLICKS | {"user_id": [2.0, 1.0, 2.0, 1.0, 2.0]}), pd.DataFrame(ITEMS))
    for given in ("2.0", "2", 2.0, 2, " 2.00 "):
        assert dataset.user_rows([given]).tolist() == [1]
    for unknown in ("2.5", "02", "2.0.0", 2.5, ".0"):
        with pytest.raises(UnknownIdError):
            dataset.user_rows([unknown])


def csv(folder, users, items=None, times=None, shown=None):
    """A folder with both tables as CSV, cells as they are given."""
    folder.mkdir()
    rows = zip(users, items or ["a"] * len(users), times or range(1, len(users) + 1))
    (folder / "interactions.csv").write_text("user,item,time\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    (folder / "items.csv").write_text("item,title\n" + "".join(f"{item},thing\n" for item in shown or sorted(set(items or ["a"]))))
    return Dataset.read(folder)


@pytest.mark.parametrize(
    "ids",
    [
        ["108234567890123400000", "108234567890123400001", "108234567890123400002"],  # Google's
        ["7827896733704852409", "17827896733704852410"],  # a hash of 64 bits without sign
        ["1.10", "1.1", "0.10", "0.1"],
        ["1E5", "100000", "1e05"],
        ["nan", "1.5"],
    ],
)
def test_ids_of_a_csv_file_are_what_it_says(ids, tmp_path):
    dataset = csv(tmp_path / "shop", ids, ids)
    assert sorted(dataset.user_ids.to_pylist()) == sorted(dataset.item_ids.to_pylist()) == sorted(ids)
    assert dataset.user_rows(ids).tolist() == [dataset.user_ids.to_pylist().index(own) for own in ids]
    other = csv(tmp_path / "bought", ["u"] * len(ids), ids, shown=[*ids, "2"])
    assert [other.item_ids[int(row)].as_py() for row in other.sequences[0]] == ids


def test_whole_numbers_with_a_point_stay_numbers(tmp_path):
    dataset = csv(tmp_path / "shop", ["1.0", "2.0", "1.0"], ["7", "8", "7"])
    assert dataset.n_users == 2 and dataset.user_rows(["1", 2]).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("user,item\r1,a\r2,a\r", 2),  # as an old Mac ends lines
        ('"user","item","time; in seconds; utc; s"\n1,a,5\n2,a,6\n3,a,7\n', 3),
    ],
)
def test_lines_and_headers_of_csv_files(text, rows, tmp_path):
    (tmp_path / "interactions.csv").write_text(text, newline="")
    (tmp_path / "items.csv").write_text("item,title\na,thing\n")
    assert len(Dataset.read(tmp_path).sequences.items) == rows


def test_times_of_two_units_are_refused():
    def times(*values, kind="int64"):
        clicks = {"user_id": [1] * len(values), "item_id": [10] * len(values), "timestamp": pa.array(np.array(values, kind))}
        return Dataset.read(pa.table(clicks), pa.table(ITEMS))

    mixed = 1_700_000_000, 1_700_000_100_000, 1_700_000_200
    for kind in ("int64", "float64"):
        with pytest.raises(DataError, match=r"'timestamp', row 1: 1700000000(\.0)? and 1700000100000(\.0)? are not of one unit"):
            times(*mixed, kind=kind)
    with pytest.raises(DataError, match=r"row 2: .* the latter counts us since 1970"):
        times(1_700_000_100_000_000, 1_700_000_000_000)
    assert times(0, 1_700_000_100_000, 5).time_unit == "ms"  # a zero stands for no time
    assert times(5, 100, 1_700_000_000).time_unit == "s"


# Rows twice


def test_rows_twice_are_told_and_left_out_when_asked():
    twice = {name: values + values[:2] for name, values in CLICKS.items()} | {"price": [1, 2, 3, 4, 5, 6, 7]}
    told = read(twice)
    assert told.notes == ["2 of 7 interactions repeat the user, item and time of another; `drop_duplicates` leaves them out"]
    assert len(told.sequences.items) == 7
    once = read(twice, drop_duplicates=True)
    assert once.notes == ["2 of 7 interactions repeat the user, item and time of another: left out"]
    assert sequences(once) == sequences(read()) and once.interactions["price"].to_pylist() == [4, 2, 3, 5, 1]  # the first of each stays
    later = read(CLICKS | {"item_id": [30, 10, 30, 20, 20]})  # the same item at another time is no repetition
    assert later.notes == [] and sequences(later)[2] == [30, 20, 30]


def test_a_large_table_of_repetitions_against_pandas():
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"user_id": random.integers(50, size=5000), "item_id": random.integers(3, size=5000) * 10 + 10})
    frame["timestamp"] = random.integers(1, 40, size=5000)
    once = read(pa.Table.from_pandas(frame), drop_duplicates=True)
    assert len(once.sequences.items) == len(frame.drop_duplicates())


# Times


def test_whole_numbers_that_are_dates():
    dated = read(CLICKS | {"timestamp": [20240105, 20240101, 20231231, 20230102, 20240229]})
    assert dated.notes == ["whole numbers in column 'timestamp' are read as dates, such as 20240105"] and dated.time_unit == "s"
    expected = np.array(["2023-01-02", "2024-01-01", "2023-12-31", "2024-01-05", "2024-02-29"], "datetime64[s]").astype(np.int64)
    np.testing.assert_array_equal(dated.sequences.times, expected)
    assert read(CLICKS | {"timestamp": ["20240105", "20240101", "20231231", "20230102", "20240229"]}).sequences.times[0] == expected[0]
    for seconds in ([20240105, 20240101, 20231231, 20230102, 20240230], [20240105] * 5):  # a 30th of February; one number alone
        assert read(CLICKS | {"timestamp": seconds}).notes == []


# Titles


def test_titles_called_otherwise():
    items = {"item_id": [10, 20, 30], "marke": ["A", "A", "B"], "bezeichnung": ["red wool", "blue silk", None]}
    dataset = read(CLICKS, items)
    assert dataset.title_columns == ["bezeichnung"] and dataset.titles() == ["red wool", "blue silk", "30"]
    assert read().title_columns == ["title"]
    assert read(CLICKS, {"item_id": [10, 20, 30], "marke": ["A", "A", "A"]}).titles() == ["10", "20", "30"]


# Going on with something else


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write(folder / "data", *tables())
    write(folder / "other", *tables(seed=1))
    fit_run(folder / "data", folder / "run", model="popularity")
    return folder


@pytest.mark.parametrize(
    ("data", "more", "error", "message"),
    [
        ("data", {"model": "itemknn"}, ConfigError, "run in .* is of model 'popularity', not 'itemknn'"),
        ("other", {}, ConfigError, "run in .* is of the data 'data', not 'other'"),
        ("nowhere", {}, DataError, "nowhere: no such folder"),
        ("data", {"on": "validation"}, ConfigError, "is evaluated on the test, not on the validation"),
        ("data", {"recipe": Recipe.of(None, seed=7)}, ConfigError, r"'training.seed' is 7 here and 0 in the run"),
    ],
)
def test_a_finished_run_is_not_passed_off_as_another(run, data, more, error, message):
    with pytest.raises(error, match=message):
        fit_run(run / data, run / "run", resume=True, **more)
    assert fit_run(run / "data", run / "run", resume=True, model="popularity")["model"] == "popularity"
    assert fit_run(None, run / "run", resume=True)["model"] == "popularity"


# Narrow vectors


@pytest.mark.parametrize("kind", [AsymRec, AsymRecBoth])
def test_vectors_narrower_than_the_facets_are_cut_into_fewer(kind, tmp_path):
    interactions, items = tables()
    narrow = items.set_column(2, "vector", pa.array([row[:5] for row in items["vector"].to_pylist()], pa.list_(pa.float32())))
    given = {"text": [], "views": ["vector"], "levels": 2, "codewords": 16, "quantizer_epochs": 1, "width": 16, "layers": 1, "heads": 2}
    given |= {"ffn": 32, "experts": 2, "epochs": 1, "precision": "float32", "collaborative_width": 6}
    model = kind(**given).fit(Dataset.read(interactions, narrow))
    assert model.quantizer.code_shape == (5, 2)
    assert model.recipe.quantizer.facets == 16  # as asked for: a bench knows its cell again
    model.save(tmp_path / "m")
    again = Recommender.load(tmp_path / "m")
    assert again.recommend([[100, 101]], k=5) == model.recommend([[100, 101]], k=5)


def test_a_small_fit_of_narrow_vectors_on_the_command_line(tmp_path):
    interactions, items = tables()
    narrow = items.set_column(2, "vector", pa.array([row[:5] for row in items["vector"].to_pylist()], pa.list_(pa.float32())))
    data = write(tmp_path / "data", interactions, narrow)
    done = here("fit", data, "-o", tmp_path / "run", *settings(epochs=1, facets=16))
    assert done.returncode == 0 and "5 numbers are cut into 5 facets, not 16" in done.stderr
    refused = here("fit", data, "-o", tmp_path / "run2", *settings(epochs=1, facets=8))
    assert refused.returncode != 0 and "cannot be cut into 8 facets" in refused.stderr


def test_a_bench_knows_its_cell_of_narrow_vectors_again(tmp_path):
    interactions, items = tables()
    narrow = items.set_column(2, "vector", pa.array([row[:5] for row in items["vector"].to_pylist()], pa.list_(pa.float32())))
    write(tmp_path / "shop", interactions, narrow)
    small = "levels: 1, codewords: 8, quantizer_epochs: 0, width: 16, layers: 1, heads: 2, ffn: 16, experts: 1, epochs: 1"
    (tmp_path / "plan.yaml").write_text(
        f"data: {{shop: {{path: shop, text: [], views: [vector]}}}}\nmodels: [{{name: asymrec, settings: {{{small}}}}}]\n"
    )
    with fits_here():
        assert here("bench", tmp_path / "plan.yaml").returncode == 0
    listed = here("bench", tmp_path / "plan.yaml", "--list")
    assert "finished" in listed.stdout and "to do" not in listed.stdout
