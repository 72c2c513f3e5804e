"""`asymrec rank` from the command line: the schema, a fit, figures, probabilities, and what is told of bad input."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small import contents, here, settings, tables, write

from asymrec.errors import ConfigError, RunError
from asymrec.ranking.folders import evaluate_ranker, fit_ranker, load_ranker, score_items

QUICK = ["--set", "epochs=2", "--set", "embedding=8", "--set", "batch=64", "--set", "learning_rate=0.01"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """40 users see 30 items; they like those whose number has their parity; the weather is known."""
    folder, random = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    users, items = np.repeat(np.arange(40), 20), np.concatenate([random.permutation(30)[:20] for _ in range(40)])
    rating = np.where(users % 2 == items % 2, 5, 1)
    weather = random.choice(["sun", "rain"], len(users))
    shown = {"user_id": users, "item_id": items, "timestamp": np.tile(np.arange(20), 40), "rating": rating, "weather": weather}
    pq.write_table(pa.table(shown), folder / "interactions.parquet")
    pq.write_table(pa.table({"item_id": np.arange(30), "parity": np.arange(30) % 2}), folder / "items.parquet")
    pq.write_table(pa.table({"user_id": np.arange(40), "kind": np.arange(40) % 2}), folder / "users.parquet")
    return folder


@pytest.fixture(scope="module")
def fitted(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranker") / "r"
    done = here("rank", "fit", data, "-o", folder, "--ranker", "deepfm", *QUICK, "--set", "epochs=6")
    assert done.returncode == 0, done.stderr
    assert "auc" in done.stdout and "validation AUC" in done.stderr
    return folder


def test_the_schema_is_printed_edited_and_read(data, tmp_path):
    printed = here("rank", "schema", data)
    assert printed.returncode == 0 and "- {name: weather, kind: category}" in printed.stdout
    (tmp_path / "schema.yaml").write_text(printed.stdout.replace("context:\n- {name: weather, kind: category}\n", ""))
    done = here("rank", "fit", data, "-o", tmp_path / "r", "--ranker", "linear", "--schema", tmp_path / "schema.yaml", *QUICK)
    assert done.returncode == 0, done.stderr
    assert load_ranker(tmp_path / "r")[0].schema.context == ()


def test_a_folder_has_all_that_is_needed(fitted, data):
    kept = [name for name in contents(fitted) if not name.startswith("dataset/")]
    assert kept == ["dataset", "metrics.json", "ranker", "ranker/model.safetensors", "ranker/ranker.json", "users.parquet"]
    facts = json.loads((fitted / "metrics.json").read_text())
    assert facts["ranker"] == "deepfm" and facts["metrics"]["auc"] > 0.9 and facts["metrics"] == evaluate_ranker(fitted)
    again = here("rank", "evaluate", fitted, "--json")
    assert json.loads(again.stdout) == facts["metrics"]


def test_codes_of_a_run_are_one_more_field(tmp_path):
    shop, run = write(tmp_path / "shop", *tables()), tmp_path / "run"
    assert here("fit", shop, "-o", run, *settings()).returncode == 0
    done = here("rank", "fit", shop, "-o", tmp_path / "r", "--ranker", "linear", "--codes", run, *QUICK)
    assert done.returncode == 0, done.stderr
    assert "codes of 120 of 120 items" in done.stderr
    ranker, found, _ = load_ranker(tmp_path / "r")
    assert ranker.schema.item[-1].kind == "code" and ranker.schema.item[-1].name in found.dataset.items.column_names
    assert here("rank", "evaluate", tmp_path / "r").returncode == 0
    assert here("fit", shop, "-o", tmp_path / "counts", "--model", "counts").returncode == 0
    for wrong, told in ((tmp_path / "counts", "gives items no codes"), (tmp_path / "none", "none")):
        done = here("rank", "fit", shop, "-o", tmp_path / "s", "--codes", wrong, *QUICK)
        assert done.returncode == 2 and told in done.stderr and not (tmp_path / "s").exists(), done.stderr


def test_tables_may_be_called_otherwise(tmp_path):
    interactions, items = tables(users=30)
    extra = pa.table({"kunde": [1, 1], "artikel": [999, 998], "wann": [1, 2]})
    renamed = interactions.rename_columns(["kunde", "artikel", "wann"])
    renamed = pa.concat_tables([renamed, extra, renamed.slice(0, 3)])
    write(tmp_path / "shop", renamed, items.rename_columns(["id", "title", "vector"]))
    named = ["--user-column", "kunde", "--item-column", "artikel", "--time-column", "wann", "--drop-unknown", "--drop-duplicates"]
    assert "name: kunde" in here("rank", "schema", tmp_path / "shop", *named).stdout.replace("user_id", "kunde")
    done = here("rank", "fit", tmp_path / "shop", "-o", tmp_path / "r", "--ranker", "linear", *named, *QUICK)
    assert done.returncode == 0, done.stderr
    assert len(load_ranker(tmp_path / "r")[1].dataset.sequences.items) == len(interactions)
    assert "name it with the setting `item`" in here("rank", "schema", tmp_path / "shop").stderr


def test_items_are_scored_best_first(fitted):
    done = here("rank", "score", fitted, "--user", "3", "--context", "weather=sun", "-k", "4", "--json")
    shown = json.loads(done.stdout)
    assert done.returncode == 0 and [one["id"] % 2 for one in shown] == [1, 1, 1, 1]
    assert [one["probability"] for one in shown] == sorted((one["probability"] for one in shown), reverse=True)
    few = json.loads(here("rank", "score", fitted, "--user", "3", "--items", "4,7", "--context", "weather=rain", "--json").stdout)
    assert [one["id"] for one in few] == [7, 4]
    ranker, tables, _ = load_ranker(fitted)
    assert score_items(ranker, tables, 3, [7], {"weather": "rain"})[0] == pytest.approx(few[0]["probability"])
    assert "probability" in here("rank", "score", fitted, "--user", "3", "--context", "weather=sun").stdout


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--user", "77"], "77"),
        (["--user", "3"], "reads weather of the context: weather is missing"),
        (["--user", "3", "--context", "weather=sun", "--context", "moon=full"], "reads no context 'moon'; it reads weather"),
        (["--user", "3", "--items", "4,99", "--context", "weather=sun"], "99"),
    ],
)
def test_what_cannot_be_scored_is_told(fitted, arguments, told):
    done = here("rank", "score", fitted, *arguments)
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1


def test_what_cannot_be_fitted_is_told_and_nothing_is_lost(fitted, data, tmp_path):
    for arguments, told in (
        ([data, "-o", fitted], "holds a ranker already"),
        ([data, "-o", data], "holds no ranker: choose another"),
        ([data, "-o", tmp_path / "x", "--ranker", "deppfm"], "did you mean 'deepfm'"),
        ([data, "-o", tmp_path / "x", "--set", "epoch=1"], "unknown key 'epoch'"),
        ([data, "-o", tmp_path / "x", "--examples", "negative=1"], "unknown key 'negative'"),
        ([tmp_path / "none", "-o", tmp_path / "x"], "no such folder"),
        ([data, "-o", tmp_path / "x", "--schema", tmp_path / "none.yaml"], "cannot read the schema"),
    ):
        done = here("rank", "fit", *arguments)
        assert done.returncode == 2 and told in done.stderr, done.stderr
    assert not (tmp_path / "x").exists() and load_ranker(fitted)[2]["ranker"] == "deepfm"
    with pytest.raises(RunError, match="is no ranker's folder"):
        load_ranker(tmp_path)
    with pytest.raises(ConfigError, match="there are"):
        fit_ranker(data, tmp_path / "x", ranker="q")


def test_what_is_no_ranker_is_told(tmp_path):
    assert "is not there: give one that `asymrec rank fit` made" in here("rank", "evaluate", tmp_path / "none").stderr
    (tmp_path / "manifest.json").write_text("{}")
    assert "is a run of `asymrec fit`" in here("rank", "evaluate", tmp_path).stderr


def test_users_that_have_no_row_are_told(data, tmp_path):
    import shutil

    import pyarrow as pa
    import pyarrow.parquet as pq

    shop = shutil.copytree(data, tmp_path / "shop")
    for path in shop.glob("users.*"):
        path.unlink()
    pq.write_table(pa.table({"user_id": [-5], "age": [3]}), shop / "users.parquet")
    refused = here("rank", "schema", shop)
    assert refused.returncode == 2 and "none of the users of the interactions has a row" in refused.stderr
    pq.write_table(pa.table({"user_id": range(37), "age": range(37)}), shop / "users.parquet")
    done = here("rank", "fit", shop, "-o", tmp_path / "r", "--ranker", "linear", *QUICK, "--set", "epochs=1")
    assert done.returncode == 0, done.stderr
    assert f"note: 3 of 40 users have no row in {shop / 'users.parquet'}: nothing is known of them\n" in done.stderr


def test_users_of_two_rows_or_without_an_id_are_told(data, tmp_path):
    for users, said in (
        (["3", "5", "3", "5", "3"], "column 'user', row 3: duplicate user id 3, first in row 1 (3 rows are duplicates)"),
        (["3", "5", "", "7"], "column 'user', row 3: null id (1 of 4 rows)"),
    ):
        for name in ("interactions.parquet", "items.parquet"):
            (tmp_path / name).write_bytes((data / name).read_bytes())
        (tmp_path / "users.csv").write_text("user,age\n" + "".join(f"{user},{age}\n" for age, user in enumerate(users)))
        done = here("rank", "schema", tmp_path)
        assert done.returncode == 2 and f"users.csv, {said}" in done.stderr, done.stderr


def test_ids_may_be_bytes_or_uuids(tmp_path):
    import numpy as np
    import pyarrow as pa

    from asymrec.ranking.encoders import Encoder
    from asymrec.ranking.schema import Field

    own = [bytes([n] * 16) for n in range(5)]
    column = pa.chunked_array([pa.array([*own, own[0], None] * 4, pa.binary(16))])
    for kind in (pa.binary(16), pa.binary(), pa.uuid()):
        values = column.cast(pa.binary(16)).combine_chunks()
        values = pa.ExtensionArray.from_storage(kind, values) if kind == pa.uuid() else values.cast(kind)
        encoder = Encoder.fit(Field(name="user", kind="category"), pa.chunked_array([values]), np.ones(28, bool))
        numbers = encoder.encode(pa.chunked_array([values]))
        assert len(set(numbers[:5].ravel().tolist())) == 5 and numbers[5] == numbers[0]


def test_a_damaged_folder_is_told(fitted, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(fitted, broken)
    (broken / "ranker" / "model.safetensors").write_bytes(b"nothing")
    assert "cannot read the ranker" in here("rank", "evaluate", broken).stderr
    (broken / "metrics.json").write_text('{"format": 9, "asymrec": "7"}')
    assert "written by asymrec 7 in format 9" in here("rank", "evaluate", broken).stderr


def test_an_overwrite_replaces_the_ranker(data, tmp_path):
    for name in ("linear", "dcnv2"):
        fit_ranker(data, tmp_path / "r", ranker=name, settings={"epochs": 1, "embedding": 4}, overwrite=True)
    assert load_ranker(tmp_path / "r")[2]["ranker"] == "dcnv2"
