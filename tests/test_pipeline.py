"""Retrieval and the ranker behind it: what the ranker learns from, what the blend does, the folder, the command line."""

import json
import math
import shutil
from itertools import product

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small import SETTINGS, contents, here, settings, tables, write

from asymrec import Dataset
from asymrec.config import Recipe
from asymrec.data import Sequences
from asymrec.errors import ConfigError, DataError, RunError, UnknownIdError
from asymrec.evaluation import evaluate
from asymrec.models import Counts
from asymrec.pipeline import Pipeline, evaluate_pipeline, fit_pipeline, read_pipeline
from asymrec.pipeline.stages import Stage
from asymrec.ranking import RANKERS, Tables
from asymrec.ranking.asked import CODES, NEGATIVES, POSITIVES, schema_of, training_impressions, with_nobody

RANK = {"epochs": 1, "width": 16, "heads": 2, "ffn": 16, "embedding": 8}
RANK_SET = [part for name, value in RANK.items() for part in ("--rank-set", f"{name}={value}")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("circle"), *tables())
    pq.write_table(pa.table({"user_id": np.arange(1, 201), "age": np.arange(200) % 50}), folder / "users.parquet")
    return folder


@pytest.fixture(scope="module")
def fitted(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines") / "p"
    fit_pipeline(data, folder, Recipe.of(None, **SETTINGS), settings=RANK, candidates=20)
    return folder


@pytest.fixture(scope="module")
def pipeline(fitted):
    return Pipeline.load(fitted)


def test_a_ranker_learns_from_the_training_part_alone(data):
    found = Tables.beside(Dataset.read(data), data)
    dataset = found.dataset
    split = dataset.split()
    lists = np.arange(120)[None, :30].repeat(10**4, 0)
    asked = []

    def retrieve(histories):
        asked.append(histories)
        return lists[: len(histories)]

    made = training_impressions(
        dataset, dataset.items, with_nobody(found.users), schema_of(found), split.train, split.train_users, retrieve, 0
    )
    labels = made.labels[:, 0]
    lengths = split.train.lengths
    assert labels.sum() == np.minimum(lengths - 1, POSITIVES).sum() and len(made) <= (NEGATIVES + 1) * labels.sum()
    sequences = made.tables.dataset.sequences
    assert np.array_equal(sequences.items, np.r_[split.train.items, split.train.items])  # of their users, and of nobody
    owner = np.searchsorted(sequences.offsets, made.begins, side="right") - 1
    assert (made.ends < sequences.offsets[1:][owner]).all() and (made.ends > made.begins).all()  # of the past, and not nothing
    assert (made.items[labels == 1] == sequences.items[made.ends[labels == 1]]).all()
    assert (made.items[labels == 0] != sequences.items[made.ends[labels == 0]]).all()
    told = made.users != found.users.num_rows
    assert (made.users[told] == split.train_users[owner[told]]).all() and 0.05 < 1 - told.mean() < 0.15
    assert len(np.unique(made.users[told])) == len(split.train)  # each user is told somewhere
    assert len(asked) == 1 and (asked[0].lengths == (made.ends - made.begins)[labels == 1]).all()


def test_weight_nothing_is_retrieval_and_infinity_the_ranker(pipeline):
    histories = pipeline.dataset.sequences.take(np.arange(5))
    rows, scores = pipeline.retrieval.best(histories, 20, None, True)
    logits = pipeline.logits(histories, rows, np.arange(5))
    assert (np.diff(pipeline.blend(scores, logits, 0.0), axis=1) <= 0).all()
    assert np.array_equal(pipeline.blend(scores, logits, math.inf), logits)
    shares = np.exp(pipeline.blend(scores, logits, 0.0).astype(np.float64)).sum(1)
    np.testing.assert_allclose(shares, 1, rtol=1e-5)
    assert np.allclose(pipeline.blend(scores, logits, 2.0) - pipeline.blend(scores, logits, 0.0), 2 * logits, atol=1e-4)


def test_the_order_is_the_blends_and_both_scores_are_given(pipeline):
    for one in pipeline.recommend(users=[1, 2], k=7) + pipeline.recommend([[100, 101], []], k=7):
        assert [set(item) for item in one] == [{"id", "score", "retrieval", "ranker"}] * 7
        assert [item["score"] for item in one] == sorted((item["score"] for item in one), reverse=True)
        assert all(0 < item["ranker"] < 1 for item in one)
    shown = pipeline.recommend([[100, 101]], k=120, exclude_seen=False)[0]
    assert len({item["id"] for item in shown}) == 120  # as many as asked for, though fewer are candidates
    only = pipeline.recommend([[100, 101]], k=5, only=[103, 104, 105], exclude=[104])[0]
    assert {item["id"] for item in only} == {103, 105}
    assert not {100, 101} & {item["id"] for item in pipeline.recommend([[100, 101]], k=119)[0]}
    with pytest.raises(UnknownIdError):
        pipeline.recommend([[7]], k=1)
    with pytest.raises(ConfigError, match="at least 1"):
        pipeline.recommend([[100]], k=0)


def test_who_asks_together_changes_nothing(pipeline):
    together = pipeline.recommend(users=[1, 2, 3, 4], k=5)
    for user, line in zip([1, 2, 3, 4], together):
        alone = pipeline.recommend(users=[user], k=5)[0]
        assert [one["id"] for one in alone] == [one["id"] for one in line]
        np.testing.assert_allclose([one["score"] for one in alone], [one["score"] for one in line], atol=1e-4)


def test_figures_are_those_of_the_final_order(pipeline):
    """Against the lists themselves, with and without the history's items."""
    examples = pipeline.dataset.split().test.take(np.arange(60))
    counts = np.ones(pipeline.dataset.n_items, np.int64)
    for weight, history in product((0.0, 1.0, math.inf), ("kept", "removed")):
        stage = Stage(pipeline, examples, weight, history == "removed", {})
        found = evaluate(stage, examples, 120, counts, ks=(5, 10, 20), history=history).metrics[history]
        pipeline.weight, before = weight, pipeline.weight
        rows = pipeline.rank(examples.histories, 20, None, history == "removed", examples.users)[0]
        pipeline.weight = before
        hits = (rows == examples.targets.items[:, None])[:, :10]
        assert found["recall@10"] == pytest.approx(hits.any(1).mean(), abs=1e-9)
        assert found["ndcg@10"] == pytest.approx((hits / np.log2(np.arange(2, 12))).sum(1).mean(), abs=1e-6)


def test_ties_are_not_in_the_targets_favour(pipeline):
    class Flat:
        logits = True
        dataset = pipeline.dataset
        name = "flat"
        complete = True

        def scores(self, histories):
            return np.zeros((len(histories), 120), np.float32)

    class Same:
        schema = pipeline.ranker.schema

        def predict(self, impressions):
            return np.full(len(impressions), 0.5, np.float32)

    examples = pipeline.dataset.split().test.take(np.arange(5))
    flat = Pipeline(Flat(), Same(), pipeline.users, 1.0, 20)
    found = evaluate(Stage(flat, examples, 1.0, False, {}), examples, 120, np.ones(120, np.int64))
    assert (found.ranks["kept"] == 120).all()


def test_counts_that_are_no_logits_are_blended_too(data):
    dataset = Dataset.read(data)
    found = Tables.beside(dataset, data)
    retrieval = Counts().fit(dataset)
    ranker = RANKERS["linear"](schema_of(found), epochs=1, embedding=4)
    split, users = dataset.split(), with_nobody(found.users)
    piped = Pipeline(retrieval, ranker, users, 1.0, 20)
    made = training_impressions(
        dataset, dataset.items, users, schema_of(found), split.train, split.train_users, lambda h: retrieval.best(h, 20, None, False)[0], 0
    )
    ranker.fit(made, made)
    rows, final, _, _ = piped.rank(Sequences.of([[3, 4, 5], [7]]), 5)
    assert (rows >= 0).all() and np.isfinite(final).all()


def test_a_folder_is_whole_and_says_what_was_measured(fitted, pipeline):
    assert {name for name in contents(fitted) if "/" not in name} == {"pipeline.json", "ranker", "retrieval", "users.parquet"}
    facts = read_pipeline(fitted)
    assert float(facts["weight"]) == pipeline.weight and set(facts["metrics"]) == {"retrieval", "ranker", "both"}
    own = json.loads((fitted / "retrieval" / "metrics.json").read_text())["metrics"]["asymrec"]
    assert facts["metrics"]["retrieval"]["kept"]["ndcg@10"] == pytest.approx(own["kept"]["ndcg@10"], abs=1e-9)
    best = max(facts["validation"].values())
    assert facts["validation"][str(facts["weight"])] == best
    assert {one["history"] for one in facts["comparisons"]} == {"kept", "removed"}


def test_a_ranker_reads_the_codes_of_retrieval(data, tmp_path):
    recipe = Recipe.of(None, **SETTINGS)
    facts = fit_pipeline(data, tmp_path / "p", recipe, settings=RANK, candidates=20, codes=True)
    piped = Pipeline.load(tmp_path / "p")
    assert facts["codes"] and piped.ranker.schema.item[-1].kind == "code"
    codes = piped.retrieval.catalogue()[1]
    assert np.array_equal(np.array(piped.items[CODES].to_pylist()), codes) and CODES not in piped.dataset.items.column_names
    histories = piped.dataset.sequences.take(np.arange(5))
    rows = piped.retrieval.best(histories, 20, None, True)[0]
    other = piped.dataset.items.append_column(CODES, pa.array(np.roll(codes, 1, 0).tolist(), piped.items[CODES].type))
    assert np.abs(piped.logits(histories, rows) - piped.logits(histories, rows, items=other)).max() > 1e-4
    assert evaluate_pipeline(tmp_path / "p")["metrics"] == facts["metrics"]
    with pytest.raises(ConfigError, match="'itemknn' gives items none"):
        fit_pipeline(data, tmp_path / "q", model="itemknn", settings=RANK, codes=True)
    taken = pq.read_table(data / "items.parquet")
    taken = taken.append_column(CODES, pa.array([[1, 2]] * taken.num_rows))
    write(tmp_path / "taken", pq.read_table(data / "interactions.parquet"), taken)
    with pytest.raises(DataError, match=f"column '{CODES}' is there already"):  # before hours of work
        fit_pipeline(tmp_path / "taken", tmp_path / "q", recipe, settings=RANK, codes=True)
    assert not (tmp_path / "q").exists()


def test_a_fit_that_was_interrupted_goes_on(data, tmp_path, monkeypatch, fitted):
    import asymrec.pipeline.fitting as module

    recipe = Recipe.of(None, **SETTINGS)

    def stop(*_):
        raise KeyboardInterrupt

    shutil.copytree(data, tmp_path / data.name)
    with monkeypatch.context() as patch:
        patch.setattr(module, "training_impressions", stop)
        with pytest.raises(KeyboardInterrupt):
            fit_pipeline(tmp_path / data.name, tmp_path / "p", recipe, settings=RANK, candidates=20)
    shutil.rmtree(tmp_path / data.name)  # what was read is kept
    with pytest.raises(RunError, match="unfinished pipeline: go on with --resume"):
        Pipeline.load(tmp_path / "p")
    with pytest.raises(RunError, match="unfinished fit"):
        fit_pipeline(data, tmp_path / "p", recipe, settings=RANK)
    for options, told in (
        ({"ranker": "din"}, "ranker is 'din' here"),
        ({"candidates": 5}, "candidates is 5"),
        ({"model": "rpg"}, "model is"),
        ({"schema": "mine.yaml"}, "has its schema"),
    ):
        with pytest.raises(ConfigError, match=told):
            fit_pipeline(None, tmp_path / "p", resume=True, **options)
    with pytest.raises(ConfigError, match="data is"):
        fit_pipeline(tmp_path, tmp_path / "p", resume=True)
    facts = fit_pipeline(None, tmp_path / "p", resume=True, candidates=20)  # the same as without the interruption
    assert facts["validation"] == read_pipeline(fitted)["validation"] and facts["metrics"]["both"] is not None
    assert fit_pipeline(None, tmp_path / "p", resume=True) == read_pipeline(tmp_path / "p")
    with pytest.raises(ConfigError, match="ranker is 'din' here"):
        fit_pipeline(None, tmp_path / "p", ranker="din", resume=True)
    with pytest.raises(ConfigError, match="retrieval is 'itemknn' here"):
        fit_pipeline(None, tmp_path / "p", model="itemknn", resume=True)
    assert not (tmp_path / "p" / "checkpoint").exists()


def test_what_the_ranker_cannot_read_is_told_before_retrieval_is_fitted(data, tmp_path):
    schema = "item: [{name: item_id, kind: category}, {name: title, kind: vector}]\nhistory: {length: 10}\n"
    (tmp_path / "schema.yaml").write_text(schema)
    for options, kind, told in (
        ({"schema": tmp_path / "schema.yaml"}, DataError, "field 'title': kind `vector` wants lists"),
        ({"settings": {"device": "nowhere"}}, ConfigError, "nowhere"),
        ({"settings": {"hidden": []}, "ranker": "dcnv2"}, ConfigError, "hidden"),
    ):
        with pytest.raises(kind, match=told):
            fit_pipeline(data, tmp_path / "p", Recipe.of(None, **SETTINGS), candidates=20, **options)
    assert not (tmp_path / "p").exists()
    (tmp_path / "schema.yaml").write_text("item: [{name: item_id, kind: category}]\nlabels: [{column: rating}]\n")
    with pytest.raises(ConfigError, match="neither context nor labels"):
        fit_pipeline(data, tmp_path / "p", Recipe.of(None, **SETTINGS), schema=tmp_path / "schema.yaml")


def test_a_schema_says_what_the_ranker_reads(data, tmp_path):
    (tmp_path / "schema.yaml").write_text("item: [{name: item_id, kind: category}]\nhistory: {length: 7}\n")
    fit_pipeline(data, tmp_path / "p", Recipe.of(None, **SETTINGS), settings=RANK, candidates=20, schema=tmp_path / "schema.yaml")
    schema = Pipeline.load(tmp_path / "p").ranker.schema
    assert [field.name for field in schema.item] == ["item_id"] and schema.user == () and schema.history.length == 7


def test_what_is_in_the_way_or_wrong_is_told(data, fitted, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for options, kind, told in (
        ({"folder": fitted}, RunError, "holds a pipeline already"),
        ({"folder": tmp_path / "mine"}, RunError, "is no pipeline: choose another"),
        ({"ranker": "rankformer"}, ConfigError, "unknown ranker"),
        ({"model": "asymrek"}, ConfigError, "did you mean 'asymrec'"),
        ({"candidates": 1}, ConfigError, "at least 2"),
        ({"settings": {"epoch": 3}}, ConfigError, "did you mean"),
        ({"recipe": Recipe.of(None, split="untied")}, ConfigError, "leave-last-out or time"),
        ({"data": tmp_path / "none"}, DataError, "no such folder"),
        ({"data": None}, RunError, "DATA is missing"),
        ({"resume": True, "overwrite": True}, ConfigError, "give one of them"),
    ):
        with pytest.raises(kind, match=told):
            fit_pipeline(**({"data": data, "folder": tmp_path / "p", "settings": RANK} | options))
    assert not (tmp_path / "p").exists() and Pipeline.load(fitted)
    with pytest.raises(RunError, match="is no pipeline"):
        Pipeline.load(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(fitted, broken)
    (broken / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"holds notes\.txt, which is no part of a pipeline"):
        fit_pipeline(data, broken, settings=RANK, overwrite=True)
    for name in ("users.parquet", "ranker/model.safetensors"):
        whole = (broken / name).read_bytes()
        (broken / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(RunError, match="missing or damaged"):
            Pipeline.load(broken)
        (broken / name).write_bytes(whole)
    assert Pipeline.load(broken)
    (broken / "pipeline.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        Pipeline.load(broken)
    (broken / "pipeline.json").write_text('{"format": 9, "asymrec": "7"}')
    with pytest.raises(RunError, match="by asymrec 7 in format 9"):
        Pipeline.load(broken)


def test_the_command_line(data, tmp_path):
    done = here("pipeline", "fit", data, "-o", tmp_path / "p", "--model", "itemknn", "--ranker", "din", "--candidates", 15, *RANK_SET)
    assert done.returncode == 0, done.stderr
    assert "ranking adds to NDCG@10, history kept" in done.stdout and "15 candidates of itemknn, ranked by din" in done.stdout
    again = here("pipeline", "evaluate", tmp_path / "p", "--json")
    assert json.loads(again.stdout)["metrics"]["both"]["kept"] == read_pipeline(tmp_path / "p")["metrics"]["both"]["kept"]
    shown = json.loads(here("pipeline", "recommend", tmp_path / "p", "--user", "4", "-k", "3", "--json").stdout)
    assert len(shown[0]["items"]) == 3 and shown[0]["items"][0]["title"]
    assert "ranker" in here("pipeline", "recommend", tmp_path / "p", "--history", "100,101", "-k", "3").stdout
    nothing = here("pipeline", "recommend", tmp_path / "p", "--history", "100,101", "--only", "100")
    assert nothing.returncode == 0 and "note: no item is left to recommend to this history" in nothing.stderr
    for arguments, told in (
        (("recommend", tmp_path / "p"), "either --user or --history"),
        (("recommend", tmp_path / "p", "--user", "9999"), "9999"),
        (("recommend", tmp_path, "--user", "1"), "is no pipeline"),
        (("fit", data, "-o", tmp_path / "p"), "holds a pipeline already"),
    ):
        failed = here("pipeline", *arguments)
        assert failed.returncode == 2 and told in failed.stderr and failed.stderr.count("\n") == 1


def test_settings_reach_retrieval(data, tmp_path):
    done = here("pipeline", "fit", data, "-o", tmp_path / "p", *settings(epochs=1), *RANK_SET, "--ranker", "linear")
    assert done.returncode == 0, done.stderr
    assert Pipeline.load(tmp_path / "p").retrieval.recipe.quantizer.facets == SETTINGS["facets"]
