"""The contract that every recommender keeps, and what is AsymRec's own."""

import inspect
import json
from copy import copy

import numpy as np
import pyarrow as pa
import pytest
import torch
from small import as_of_before

from asymrec import EASE, AsymRec, Counts, Dataset, ItemKNN, Popularity, Recommender
from asymrec.data import Sequences
from asymrec.errors import ConfigError, DataError, RunError, UnknownIdError, VectorError
from asymrec.evaluation import evaluate
from asymrec.models import HSTU, RPG, AsymRecBoth, FlexCode, Fusion, SASRec, SASRecContent, Tiger, base, both, coded
from asymrec.models.trained import cut
from asymrec.retrieval.index import CodeIndex

SMALL = {
    "width": 16, "ffn": 32, "heads": 2, "layers": 1, "facets": 4, "levels": 2, "codewords": 16, "quantizer_epochs": 1,
    "epochs": 2, "batch": 256, "dropout": 0.1, "encoder": "hashed", "learning_rate": 5e-3, "inner": 8, "precision": "float32",
}  # fmt: skip
RPG_SMALL = {"opq_codes": 8, "opq_codewords": 16, "opq_rounds": 2}
TIGER_SMALL = {"head_width": 8, "rqvae_codewords": 16, "rqvae_epochs": 20, "hidden": [32], "latent": 8, "batch": 32, "learning_rate": 1e-2}
FLEX_SMALL = {"collaborative_width": 8}
MODELS = {
    "asymrec": lambda **s: AsymRec(**SMALL | s),
    "asymrec-heads": lambda **s: AsymRec(**SMALL | {"objective": "heads", "repeat": False} | s),
    "asymrec-sampled": lambda **s: AsymRec(**SMALL | {"full_softmax": 0, "negatives": 24} | s),
    "asymrec-codes": lambda **s: AsymRec(**SMALL | {"read": "codes"} | s),
    "asymrec-continuous-input": lambda **s: AsymRec(**SMALL | {"read": "vectors"} | s),
    "asymrec-free-codes": lambda **s: AsymRec(**SMALL | {"codeword_map": False} | s),
    "asymrec-vectors": lambda **s: AsymRec(**SMALL | {"write": "vectors", "temperature": None} | s),
    "asymrec-linear": lambda **s: AsymRec(**SMALL | {"objective": "heads", "linear_heads": True} | s),
    "asymrec+collaborative": lambda **s: AsymRecBoth(**SMALL | FLEX_SMALL | s),
    "hstu": lambda **s: HSTU(**SMALL | s),
    "sasrec": lambda **s: SASRec(**SMALL | s),
    "sasrec-gbce": lambda **s: SASRec(**SMALL | {"objective": "gbce", "negatives": 16, "temperature": None} | s),
    "sasrec+content": lambda **s: SASRecContent(**SMALL | s),
    "rpg": lambda **s: RPG(**SMALL | RPG_SMALL | s),
    "rpg-graph": lambda **s: RPG(**SMALL | RPG_SMALL | {"decode": "graph", "graph_beam": 60} | s),  # as wide as the catalogue
    "tiger": lambda **s: Tiger(**SMALL | TIGER_SMALL | s),
    "flexcode": lambda **s: FlexCode(**SMALL | TIGER_SMALL | FLEX_SMALL | s),
    "flexcode-sasrec": lambda **s: FlexCode(**SMALL | TIGER_SMALL | FLEX_SMALL | {"collaborative_source": "sasrec", "staged": False} | s),
    "fusion": lambda **s: Fusion(**SMALL | {"parts": ["asymrec", "itemknn", "sasrec:no-repeat"]} | s),
    "fusion-ranks": lambda **s: Fusion(**SMALL | {"parts": ["sasrec", "itemknn"], "fuse": "ranks"} | s),
    "popularity": lambda **s: Popularity(**s),
    "itemknn": lambda **s: ItemKNN(**s),
    "counts": lambda **s: Counts(**s),
    "ease": lambda **s: EASE(**s),
}
TRAINED = [name for name in MODELS if name.startswith(("asymrec", "flexcode", "fusion", "hstu", "rpg", "sasrec", "tiger"))]


def tables(n_users=120, n_items=60, seed=0):
    """Users walk through items in order of a hidden chain, with noise; ids are words, one item was never used."""
    rng = np.random.default_rng(seed)
    users, items, times = [], [], []
    for user in range(n_users):
        place = int(rng.integers(n_items - 1))
        for step in range(int(rng.integers(3, 14))):
            users.append(f"u{user}")
            items.append(f"i{place}")
            times.append(1000 * user + step)
            place = (place + (1 if rng.random() < 0.9 else int(rng.integers(n_items - 1)))) % (n_items - 1)
    texts = [f"thing {i // 6} of kind {i % 6} number {i}" for i in range(n_items)]
    return (
        pa.table({"user": users, "item": items, "timestamp": times}),
        pa.table({"item": [f"i{i}" for i in range(n_items)], "text": texts}),
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The network that FlexCode takes its collaborative vectors from would train at its own defaults."""
    monkeypatch.setattr(both, "SASRec", lambda **settings: SASRec(**settings, epochs=4))


@pytest.fixture(scope="module")
def dataset():
    return Dataset.read(*tables())


@pytest.fixture(scope="module")
def fitted(dataset):
    cache = {}

    def get(name):
        if name not in cache:
            cache[name] = MODELS[name]().fit(dataset)
        return cache[name]

    return get


@pytest.mark.parametrize("name", ["asymrec", "asymrec-heads", "asymrec-codes", "asymrec-linear", "asymrec-sampled", "rpg"])
def test_a_large_catalogue_is_searched_by_codes_with_the_same_lists(name, fitted, monkeypatch):
    model, known = fitted(name), [history for history in HISTORIES if history]
    asked = [{}, {"only": [f"i{i}" for i in range(0, 60, 3)]}, {"exclude": ["i4", "i8"]}, {"exclude_seen": False}]
    expected = [model.recommend(known, k=12, **options) for options in asked]
    model = copy(model)
    monkeypatch.setattr(coded, "SEARCHED", 1)
    if name == "asymrec":
        monkeypatch.setattr("asymrec.retrieval.scan.VBMI", False)
        assert model._fast() is False
    monkeypatch.setattr(type(model), "_fast", lambda self: True)
    searched = []
    monkeypatch.setattr(CodeIndex, "search", lambda self, *a, search=CodeIndex.search, **o: searched.append(1) or search(self, *a, **o))
    for (ids, scores), options in zip(expected, asked):
        found, values = model.recommend(known, k=12, **options)
        for own, other in zip(scores, values):
            np.testing.assert_allclose(other, own, rtol=1e-4, atol=1e-4)
        for own, other, line in zip(ids, found, scores):  # equal but for what rounding may exchange
            assert all(a == b or abs(line[at] - line[max(0, at - 1)]) < 1e-4 or abs(line[at] - line[min(at + 1, len(line) - 1)]) < 1e-4
                       for at, (a, b) in enumerate(zip(own, other)))  # fmt: skip
    assert len(searched) == len(asked) - (model.network.repeat is not None)
    assert model.recommend([[]], k=3)[0] == fitted(name).recommend([[]], k=3)[0]


HISTORIES = [["i1", "i2", "i3"], ["i40"], [], ["i7", "i7", "i9", "i50", "i3", "i2"]]


@pytest.mark.parametrize("name", MODELS)
class TestContract:
    def test_recommendations_are_the_users_own_ids_best_first_and_unseen(self, fitted, name):
        ids, scores = fitted(name).recommend(HISTORIES, k=8)
        assert [len(line) for line in ids] == [8] * 4
        for history, line, values in zip(HISTORIES, ids, scores):
            assert len(set(line)) == 8 and not set(line) & set(history)
            assert values == sorted(values, reverse=True) and np.isfinite(values).all()
            assert all(isinstance(item, str) for item in line)

    def test_options_decide_what_may_be_recommended(self, fitted, name):
        model = fitted(name)
        only = ["i1", "i5", "i9", "i11"]
        ids, _ = model.recommend(HISTORIES, k=10, only=only, exclude=["i5"], exclude_seen=False)
        assert all(set(line) == {"i1", "i9", "i11"} for line in ids)
        ids, _ = model.recommend([["i1"]], k=10, only=only)
        assert set(ids[0]) == {"i5", "i9", "i11"}
        ids, scores = model.recommend([["i1"]], k=10, only=["i1"])
        assert ids == [[]] and scores == [[]]
        everything, _ = model.recommend([["i1"]], k=1000, exclude_seen=False)
        assert len(everything[0]) == 60

    def test_recommend_is_score_sorted(self, fitted, name):
        model = fitted(name)
        ids, scores = model.recommend(HISTORIES, k=5, exclude_seen=False)
        for history, line, values in zip(HISTORIES, ids, scores):
            all_scores = model.score([history], model.dataset.item_ids.to_pylist())[0]
            np.testing.assert_allclose(np.sort(all_scores)[::-1][:5], values, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(model.score([history], line)[0], values, rtol=1e-5, atol=1e-5)

    def test_a_batch_gives_what_each_gives_alone(self, fitted, dataset, name):
        model = fitted(name)
        together = model.scores(dataset.sequences)
        assert together.shape == (dataset.n_users, dataset.n_items) and together.dtype == np.float32
        alone = np.concatenate([model.scores(dataset.sequences.take([i])) for i in range(20)])
        np.testing.assert_allclose(together[:20], alone, rtol=1e-3, atol=1e-4)

    def test_no_history_and_many_are_scored(self, fitted, dataset, name, monkeypatch):
        model = fitted(name)
        ids = dataset.item_ids.to_pylist()
        assert model.score([], ids[:3]).shape == (0, 3)
        assert model.recommend([], k=3) == ([], [])
        counts = np.bincount(dataset.sequences.items, minlength=dataset.n_items)  # about those of training
        popular = counts[dataset.item_rows(model.recommend([[]], k=5)[0][0])]
        assert popular.min() >= np.sort(counts)[-15]
        histories = [ids[:4], ids[5:6], ids[2:9]]
        whole = model.score(histories, ids[:3])
        monkeypatch.setattr(base, "SCORES_AT_ONCE", 1)  # one history at a time
        np.testing.assert_allclose(model.score(histories, ids[:3]), whole, rtol=1e-4, atol=1e-4)

    def test_users_are_their_sequences(self, fitted, dataset, name):
        model = fitted(name)
        sequence = dataset.sequences.take([4])
        history = dataset.item_ids.take(pa.array(sequence.items)).to_pylist()
        assert model.recommend(users=[dataset.user_ids[4].as_py()]) == model.recommend([history], times=[sequence.times])

    def test_unknown_and_impossible_requests_are_refused(self, fitted, name):
        model = fitted(name)
        with pytest.raises(UnknownIdError, match="nowhere"):
            model.recommend([["i1", "nowhere"]])
        for histories in ("i1", ["i1"], [None], [5]):
            with pytest.raises(ConfigError, match="histor"):
                model.recommend(histories)
        for options in ({"k": 2.5}, {"k": True}, {"only": "i1"}):
            with pytest.raises(ConfigError):
                model.recommend([["i1"]], **options)
        with pytest.raises(ConfigError, match="several user ids"):
            model.recommend(users="u1")
        with pytest.raises(UnknownIdError, match="nobody"):
            model.recommend(users=["nobody"])
        with pytest.raises(UnknownIdError):
            model.recommend([["i1"]], only=["nowhere"])
        with pytest.raises(ConfigError):
            model.recommend([["i1"]], k=0)
        with pytest.raises(ConfigError):
            model.recommend()
        for times, message in (
            ([[1, 2]], "times are given for 1 histories of 2"),
            ([[1], []], "history 0 has 2 items and 1 times"),
            ([[1, 2.5], []], "history 0 must be whole numbers of 64 bits, not float64"),
            ([[2**63, 2**63], []], "history 0 must be whole numbers of 64 bits, not uint64"),
            ([1, 2], "history 0 must be a list of whole numbers, not 1"),
            ([[[1], [2, 3]], []], "history 0 must be a list of whole numbers, not "),
            (5, "times are lists, one for each history, not 5"),
            ([[2, 1], []], "history 0 must not fall"),
        ):
            with pytest.raises(ConfigError, match=message):
                model.recommend([["i1", "i2"], []], times=times)
        with pytest.raises(ConfigError, match="times go with histories"):
            model.recommend(users=["u1"], times=[[1]])

    def test_a_saved_model_is_the_same_model(self, fitted, tmp_path, name):
        model = fitted(name)
        model.save(tmp_path / "run")
        again = Recommender.load(tmp_path / "run")
        assert type(again) is type(model) and again.recipe == model.recipe
        assert again.recommend(HISTORIES) == model.recommend(HISTORIES)
        again.save(tmp_path / "run")  # over itself, while its files are in use
        assert Recommender.load(tmp_path / "run").recommend(HISTORIES) == model.recommend(HISTORIES)

    def test_equal_seeds_give_equal_models_and_a_refit_forgets(self, dataset, name):
        other = Dataset.read(*tables(n_users=80, n_items=50, seed=3))
        first = MODELS[name](**({"seed": 4} if name in TRAINED else {}))
        first.fit(other).fit(dataset)
        second = MODELS[name](**({"seed": 4} if name in TRAINED else {})).fit(dataset)
        np.testing.assert_array_equal(first.scores(dataset.sequences), second.scores(dataset.sequences))

    def test_every_model_beats_chance(self, dataset, name, monkeypatch):
        """Chance is k / n = .17; a chain of items is easy. Popularity knows no order and is only asked for what it can do."""
        monkeypatch.setattr(both, "SASRec", SASRec)  # half learned, it tells little
        settings = {"epochs": 25} if name in TRAINED else {}
        model = MODELS[name](**settings).fit(dataset)
        split = dataset.split()
        found = evaluate(model, split.test, dataset.n_items, split.train_counts(dataset.n_items)).metrics["removed"]["recall@10"]
        assert found > (0.17 if name == "popularity" else 0.5)


@pytest.mark.parametrize("name", [name for name in TRAINED if not name.startswith("fusion")])
def test_gradients_do_not_depend_on_the_order_of_threads(name):
    """Sums whose order is left to the threads would make two models of one seed."""
    dataset = Dataset.read(*tables(n_users=400))
    model = MODELS[name](seed=4, width=64, batch=4096, epochs=1, dropout=0.0).fit(dataset)
    batch = model._batches(cut(dataset.split().train, model.history), 1)[0]
    found = []
    torch.set_num_threads(2)
    for _ in range(6):
        torch.manual_seed(5)
        model.network.train().zero_grad()
        model._loss(batch).backward()
        found.append({key: part.grad.clone() for key, part in model.network.named_parameters() if part.grad is not None})
    torch.set_num_threads(1)
    assert all(torch.equal(other[key], part) for other in found for key, part in found[0].items())


@pytest.mark.parametrize("name", TRAINED)
class TestTrained:
    def test_an_interrupted_fit_ends_like_a_straight_one(self, dataset, tmp_path, name):
        from asymrec.training.listener import Listener

        class Stop(Exception):
            pass

        class Interrupt(Listener):
            def epoch(self, log):
                raise Stop

        settings = {"epochs": 3}
        straight = MODELS[name](**settings).fit(dataset)
        with pytest.raises(Stop):
            MODELS[name](**settings).fit(dataset, checkpoint=tmp_path / "c", listener=Interrupt())
        resumed = MODELS[name](**settings).fit(dataset, checkpoint=tmp_path / "c", resume=True)
        np.testing.assert_array_equal(straight.scores(dataset.sequences), resumed.scores(dataset.sequences))
        assert [e["loss"] for e in straight.log] == [e["loss"] for e in resumed.log]

    def test_a_run_can_give_it_vectors_and_a_checkpoint(self, name):
        """Run folders pass on what `_fit` names: one that hides it behind **options would not go on after an interruption."""
        known = inspect.signature(type(MODELS[name]())._fit).parameters
        assert {"vectors", "checkpoint", "resume", "listener"} <= set(known)

    def test_vectors_that_do_not_fit_are_refused(self, dataset, name):
        with pytest.raises(VectorError, match="59 vectors for 60 items"):
            MODELS[name]().fit(dataset, vectors=np.ones((59, 8)))
        bad = np.random.default_rng(0).normal(size=(60, 8))
        bad[17, 2] = np.nan
        with pytest.raises(VectorError, match="row 17"):
            MODELS[name]().fit(dataset, vectors=bad)


@pytest.mark.parametrize("name", [name for name in TRAINED if not name.startswith("fusion")])  # whose parts may count the whole history
def test_only_the_last_items_of_a_long_history_are_read(dataset, name):
    model = MODELS[name](history=4, epochs=1, repeat=False).fit(dataset)
    rng = np.random.default_rng(0)
    long = rng.integers(dataset.n_items, size=300).astype(np.int32)
    np.testing.assert_allclose(model.scores(Sequences.of([long])), model.scores(Sequences.of([long[-4:]])), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((RPG, {"objective": "gbce"}), (Tiger, {"objective": "heads"}), (FlexCode, {"mix": 0.5})),
        *((SASRec, {"objective": "heads"}), (SASRecContent, {"mix": 0.5}), (HSTU, {"mix": 0.1})),
    ],
)
def test_losses_that_would_be_passed_over_are_refused(kind, settings):
    with pytest.raises(ConfigError, match="mix"):
        kind(**settings)
    for objective in ("gbce", "heads"):
        with pytest.raises(ConfigError, match=f"with objective={objective} use mix=0"):
            AsymRec(objective=objective, mix=0.5)


def test_a_repeated_item_is_learned_to_be_rare_or_common():
    """Nobody comes back in the chain; in the other data users alternate between two items."""
    rng = np.random.default_rng(0)
    pairs = [rng.choice(60, 2, replace=False) for _ in range(120)]
    items = [f"i{pair[step % 2]}" for pair in pairs for step in range(8)]
    interactions = pa.table({"user": np.repeat(np.arange(120), 8), "item": items, "timestamp": np.arange(960)})
    never, always = Dataset.read(*tables()), Dataset.read(interactions, tables()[1])
    assert MODELS["asymrec"](epochs=12).fit(never).network.repeat.item() < -0.3
    assert MODELS["asymrec"](epochs=12).fit(always).network.repeat.item() > 0.3
    # a logit of its own: what all of them have in common is in the number too
    rarely, often = (MODELS["sasrec-gbce"](epochs=12, negatives=8).fit(data).network.repeat.item() for data in (never, always))
    assert rarely < -0.05 and often > 0.05


def test_the_number_for_repeated_items_follows_the_validation():
    """Two users who come back to the same items make most of the training; of the others nobody does."""
    interactions, items = tables()
    rng, n = np.random.default_rng(0), 3000
    heavy = pa.table({
        "user": [f"heavy{step % 2}" for step in range(n)],
        "item": [f"i{item}" for item in rng.integers(0, 6, n)],
        "timestamp": np.arange(n),
    })  # fmt: skip
    names = interactions.column_names
    heavy = heavy.rename_columns(names).cast(interactions.schema)
    dataset = Dataset.read(pa.concat_tables([interactions, heavy]), items)
    split = dataset.split()
    model = MODELS["sasrec"](epochs=6).fit(dataset, split)
    found = evaluate(model, split.test, dataset.n_items, split.train_counts(dataset.n_items)).metrics
    assert model.network.repeat.item() < -1
    assert found["kept"]["ndcg@10"] == pytest.approx(found["removed"]["ndcg@10"], abs=0.02)


def test_pieces_make_every_item_but_the_first_a_target_once():
    sequences = Sequences.of([np.arange(n) + 100 * n for n in (1, 2, 5, 6, 11, 12)])
    pieces = cut(sequences, 5)
    targets = [item for i in range(len(pieces)) for item in pieces[i][1:].tolist()]
    assert sorted(targets) == sorted(item for i in range(len(sequences)) for item in sequences[i][1:].tolist())
    assert pieces.lengths.max() == 6 and pieces.lengths.min() >= 2


def test_damage_and_other_versions_are_told(fitted, tmp_path):
    folder = tmp_path / "run"
    fitted("asymrec").save(folder)

    def refused(match):
        with pytest.raises(RunError, match=match):
            Recommender.load(folder)

    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 99, "asymrec": "7.0"}))
    refused("format 99.*use asymrec 7.0")
    (folder / "manifest.json").write_text("{")
    refused("manifest.json is damaged")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    weights = folder / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    refused("model.safetensors is not what was written")
    weights.unlink()
    refused("model.safetensors is missing")
    with pytest.raises(RunError, match="no run folder"):
        Recommender.load(tmp_path / "nowhere")
    with pytest.raises(RunError, match="not a run folder"):
        Recommender.load(tmp_path)


def test_a_run_from_before_codes_knew_their_codewords_is_read(fitted, tmp_path):
    model = fitted("asymrec-free-codes")
    model.save(tmp_path)
    as_of_before(tmp_path, "codeword_map: false")
    again = Recommender.load(tmp_path)
    assert not again.recipe.network.codeword_map
    assert again.recommend([["i1", "i2"]]) == model.recommend([["i1", "i2"]])


def test_a_run_from_before_codes_had_a_rate_is_read(tmp_path, dataset):
    model = AsymRec(**SMALL | {"code_rate": 1.0}).fit(dataset)
    model.save(tmp_path)
    as_of_before(tmp_path, "code_rate: 1.0", "network.head.rates")
    again = Recommender.load(tmp_path)
    assert again.recipe.network.code_rate == 1.0
    assert again.recommend([["i1", "i2"]]) == model.recommend([["i1", "i2"]])
    with pytest.raises(ConfigError, match="code_rate"):
        AsymRec(code_rate=0)


def test_nothing_to_train_on_is_said():
    interactions = pa.table({"user": list("aabbccabc"), "item": list("xyxzyzzyx"), "timestamp": range(9)})
    items = pa.table({"item": ["x", "y", "z"], "text": ["one", "two", "three"]})
    with pytest.raises(DataError, match="nothing to train on"):
        MODELS["asymrec"]().fit(Dataset.read(interactions, items), vectors=np.eye(3))


def test_gbce_needs_two_items():
    rows = pa.table({"user": ["a"] * 4 + ["b"] * 4, "item": ["i0"] * 8, "timestamp": range(8)})
    with pytest.raises(DataError, match="objective=gbce draws other items than the target"):
        SASRec(**SMALL | {"objective": "gbce"}).fit(Dataset.read(rows, pa.table({"item": ["i0"], "text": ["thing"]})))
