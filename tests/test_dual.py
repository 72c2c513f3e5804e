"""FlexCode's codes: what the router does, what an id is made of, what is told of them; and the model around them."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from small import may_follow
from torch.nn import functional as F

from asymrec import Dataset
from asymrec.data import Sequences
from asymrec.errors import ConfigError, QuantizerError, VectorError
from asymrec.evaluation.report import render
from asymrec.models import AsymRecBoth, FlexCode, Recommender
from asymrec.quantize import RQVAE, DualCodebook, DualMHQ, dual, facets, rqvae
from asymrec.quantize.dual import FEATURES, LOSSES
from asymrec.quantize.report import describe
from asymrec.vectors.popularity import popularity_features

SMALL = {
    "rqvae_codewords": 16, "latent": 6, "hidden": (32,), "rqvae_batch": 64, "rqvae_rate": 1e-2, "collaborative_width": 8, "rqvae_levels": 4,
}  # fmt: skip
WORDS, LEVELS, WIDTH = 16, 4, 8
RQVAES = {name: value for name, value in SMALL.items() if name != "collaborative_width"}
FACETS = {"facets": 4, "levels": 2, "codewords": 16, "quantizer_epochs": 1, "quantizer_batch": 64, "collaborative_width": WIDTH}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(rqvae, "STEPS", 150)
    monkeypatch.setattr(facets, "STEPS", 300)


def items(n=600, seed=0):
    """[semantic 12 | collaborative 8 | features]: content and behaviour each in clusters; behaviour tells less of rare items."""
    random = np.random.default_rng(seed)
    counts = np.floor(random.pareto(1.0, n) * 3).astype(int)
    kinds, tastes = random.normal(size=(30, 12)), random.normal(size=(30, WIDTH))
    semantic = kinds[random.integers(0, 30, n)] + 0.2 * random.normal(size=(n, 12))
    told = 1 - 1 / np.sqrt(1 + counts)[:, None]  # little of rare items, nothing of those that nobody took
    collaborative = (tastes[random.integers(0, 30, n)] + 0.3 * random.normal(size=(n, WIDTH))) * told
    features = np.stack([np.log1p(counts), random.random(n), random.random(n), 1 / np.sqrt(1 + counts)], 1)
    return np.concatenate([semantic, collaborative, features], 1).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rqvae, "STEPS", 150)
        return DualCodebook(**SMALL).fit(items())


@pytest.fixture(scope="module")
def fitted_facets():
    return DualMHQ(**FACETS).fit(items())


def test_an_id_is_collaborative_levels_then_semantic_ones(fitted):
    vectors = items()
    codes, split = fitted.encode(vectors), fitted.split(vectors)
    branches = {name: fitted._branch(name) for name in ("semantic", "collaborative")}
    semantic, collaborative = branches["semantic"].encode(vectors[:, :12]), branches["collaborative"].encode(vectors[:, 12 : 12 + WIDTH])
    assert fitted.codebook_sizes == (2 * WORDS, 3 * WORDS, 4 * WORDS, 5 * WORDS, WORDS) and len(set(split)) > 1
    for row in range(0, 600, 7):
        own = [*collaborative[row, : split[row]], *(WORDS * (1 + j) + semantic[row, j] for j in range(LEVELS - split[row])), 0]
        assert codes[row].tolist() == own


def test_blocks_give_every_level_of_every_branch_words_of_its_own(fitted):
    assert fitted.blocks == [[0, 4], [1, 4, 5], [2, 4, 5, 6], [3, 4, 5, 6, 7], [8]]


@pytest.mark.parametrize("kind", ["codes", "facets"])
def test_popular_items_have_more_that_is_collaborative_and_unknown_ones_nothing(kind, request):
    quantizer, vectors = request.getfixturevalue({"codes": "fitted", "facets": "fitted_facets"}[kind]), items()
    share, split = quantizer.share(vectors), quantizer.split(vectors)
    known = vectors[:, 12 : 12 + WIDTH].any(1)
    assert (split[~known] == 0).all() and (~known).any()
    order = np.argsort(vectors[:, -FEATURES])
    order = order[known[order]]
    assert share[order[-50:]].mean() > share[order[:100]].mean() + 0.1
    if kind == "codes":
        assert abs(share[known].mean() - 0.5) < 0.1  # balance


@pytest.mark.parametrize("kind, settings", [(DualCodebook, SMALL), (DualMHQ, FACETS)])
@pytest.mark.parametrize("allocation, share", [("semantic", 0), ("collaborative", 1), ("fixed", 0.5)])
def test_a_fixed_split_is_the_same_for_all(kind, settings, allocation, share):
    vectors = items()
    quantizer = kind(**settings, allocation=allocation).fit(vectors)
    known = vectors[:, 12 : 12 + WIDTH].any(1)
    assert (quantizer.split(vectors)[known] == share * 4).all() and (quantizer.split(vectors)[~known] == 0).all()
    if kind is DualCodebook and allocation == "semantic":  # is RQVAE's, but for the words' numbers
        alone = quantizer._branch("semantic").encode(vectors[:, :12])[:, :LEVELS]
        assert (quantizer.encode(vectors)[:, :LEVELS] == alone + WORDS * np.arange(1, LEVELS + 1)).all()


def test_decoding_rebuilds_both_branches_from_what_the_id_holds(fitted):
    vectors = items()
    codes = fitted.encode(vectors)
    decoded = fitted.decode(codes)
    for name, part in (("semantic", slice(0, 12)), ("collaborative", slice(12, 12 + WIDTH))):
        known = vectors[:, part].any(1)
        error = np.square(vectors[known, part] - decoded[known, part]).sum()
        assert error < 0.8 * np.square(vectors[known, part] - vectors[known, part].mean(0)).sum(), name
    split = fitted.split(vectors)
    mean = vectors[split == 2, -FEATURES:].mean(0)
    np.testing.assert_allclose(decoded[split == 2, -FEATURES:], np.broadcast_to(mean, ((split == 2).sum(), 4)), rtol=1e-4)


def test_alignment_brings_the_branches_of_an_item_together(monkeypatch):
    monkeypatch.setattr(rqvae, "STEPS", 300)
    vectors = items()
    vectors[:, 12 : 12 + WIDTH] = vectors[:, :WIDTH] * vectors[:, 12 : 12 + WIDTH].any(1, keepdims=True)  # two views of one thing
    aligned, alone = (DualCodebook(**SMALL, alignment=weight).fit(vectors) for weight in (1.0, 0.0))
    found = [quantizer.report(vectors)["aligned"] for quantizer in (aligned, alone)]
    assert found[0] > found[1] + 0.05
    losses = [one for one in aligned.report(vectors)["losses"] if "alignment" in one]
    assert losses[-1]["alignment"] < losses[0]["alignment"]


def test_smoothness_and_balance_do_what_they_say():
    vectors = items()
    known = vectors[:, 12 : 12 + WIDTH].any(1)
    order = np.argsort(vectors[known, -FEATURES], kind="stable")

    def shares(**weights):
        return DualCodebook(**SMALL, **weights).fit(vectors).share(vectors[known])[order]

    rough, smooth = shares(router_smoothness=0.0), shares(router_smoothness=100.0)
    assert np.square(np.diff(smooth)).mean() < np.square(np.diff(rough)).mean()
    free, held = (abs(shares(router_balance=weight).mean() - 0.5) for weight in (0.0, 10.0))
    assert held < max(free, 0.03)
    means = [shares(router_balance=10.0, router_share=share).mean() for share in (0.3, 0.5, 0.7)]
    assert means[1] - means[0] > 0.1 and means[2] - means[1] > 0.1


def test_the_report_tells_the_split_the_usage_and_every_loss(fitted):
    vectors = items()
    report = fitted.report(vectors)
    assert report["code_shape"] == [2, LEVELS] and report["branches"] == ["collaborative", "semantic"] and report["budget"] == LEVELS
    assert sum(part["items"] for part in report["split"]) == 600 and len(report["split"]) == 10
    assert np.all(np.diff([part["interactions"] for part in report["split"]]) >= 0)
    split, used = fitted.split(vectors), fitted.usage(fitted.encode(vectors))[0]
    assert [int(part.sum()) for part in used[:LEVELS]] == [(split > level).sum() for level in range(LEVELS)]
    assert [int(part.sum()) for part in used[LEVELS:]] == [(LEVELS - split > level).sum() for level in range(LEVELS)]
    assert set(report["losses"][-1]) == {"semantic", "collaborative", "alignment", "balance", "smoothness"}
    assert "2 facets x 4 levels x 16 codewords" in describe(report)
    assert 0 < report["r2"] < 1


def test_joint_training_has_all_losses_from_the_start():
    joint = DualCodebook(**SMALL, staged=False).fit(items())
    staged = DualCodebook(**SMALL).fit(items())
    assert len(joint.tensors()["losses"]) == len(staged.tensors()["losses"])  # as many passes, all of them together
    assert joint.tensors()["losses"].isfinite().all()
    second = staged.tensors()["losses"].isfinite().all(1)
    assert joint.tensors()["losses"][0, 0] > staged.tensors()["losses"][second][0, 0]  # nothing was learned before


def test_both_stages_log_their_losses(fitted):
    losses = fitted.details(items(), fitted.encode(items()))["losses"]
    stages = ["alignment" in one for one in losses]
    assert stages == sorted(stages) and 0 < sum(stages) < len(stages)
    assert all(set(one) == ({"semantic", "collaborative"} if not together else set(LOSSES)) for one, together in zip(losses, stages))
    assert losses[stages.count(False) - 1]["semantic"] < losses[0]["semantic"]
    alone = DualCodebook(**SMALL, allocation="semantic").fit(items())
    assert len(alone.details(items(), alone.encode(items()))["losses"]) == stages.count(False)


def test_the_fixed_share_is_a_setting():
    vectors = items()
    three = SMALL | {"rqvae_levels": 3, "allocation": "fixed"}
    known = vectors[:, 12 : 12 + WIDTH].any(1)
    for share, codes in ((0.5, 2), (0.34, 1), (0.0, 0), (1.0, 3)):
        assert (DualCodebook(**three, fixed_share=share).fit(vectors).split(vectors)[known] == codes).all()


def test_codebooks_that_no_item_uses_are_not_dead():
    vectors = items()
    vectors = vectors[vectors[:, 12 : 12 + WIDTH].any(1)]
    report = DualCodebook(**SMALL, allocation="semantic").fit(vectors).report(vectors)
    assert report["dead_codebooks"] == 0
    assert report["usage_gini"] == pytest.approx(RQVAE(**RQVAES).fit(vectors[:, :12]).report(vectors[:, :12])["usage_gini"], abs=0.1)


def test_a_fit_that_fails_leaves_the_last_one(fitted, monkeypatch):
    quantizer = DualCodebook(**SMALL).restore(fitted.tensors())

    def diverges(self, rows):
        raise QuantizerError("the training diverges")

    monkeypatch.setattr(dual._Together, "loss", diverges)
    with pytest.raises(QuantizerError, match="diverges"):
        quantizer.fit(items(seed=1))
    np.testing.assert_array_equal(quantizer.encode(items()), fitted.encode(items()))


def test_blocks_of_rows_decode_as_all_at_once(fitted, monkeypatch):
    codes = fitted.encode(items())
    whole = fitted.decode(codes)
    monkeypatch.setattr(dual, "BLOCK", 7)
    np.testing.assert_allclose(fitted.decode(codes), whole, atol=1e-5)


def test_bad_input_is_told(fitted):
    with pytest.raises(ConfigError, match="the router would learn nothing"):
        DualCodebook(router_epochs=0)
    with pytest.raises(ConfigError, match="the router would learn nothing"):
        DualCodebook(rqvae_epochs=0)
    DualCodebook(rqvae_epochs=0, router_epochs=3)
    DualCodebook(router_epochs=0, staged=False)
    with pytest.raises(VectorError, match="width 12, expected more than 8 collaborative columns and 4 features"):
        DualCodebook(**SMALL).fit(items()[:, :12])
    silent = items()
    silent[:, 12 : 12 + WIDTH] = 0
    with pytest.raises(QuantizerError, match="all 600 collaborative vectors are equal"):
        DualCodebook(**SMALL).fit(silent)
    with pytest.raises(ConfigError, match="allocation"):
        DualCodebook(allocation="sometimes")
    with pytest.raises(QuantizerError, match=r"'router\.mean' is missing"):
        DualCodebook(**SMALL).restore({name: each for name, each in fitted.tensors().items() if name != "router.mean"})
    with pytest.raises(QuantizerError, match="out of the codebooks' range"):
        fitted.decode(np.array([[2 * WORDS, 0, 0, 0, 0]]))


def test_features_are_counted_from_training_alone():
    day = 86_400
    train = Sequences.of([[0, 1], [0, 2], [0]], [[0, 10 * day], [5 * day, 99 * day], [99 * day]])
    features = popularity_features(train, 4, "s")
    np.testing.assert_allclose(features[:, 0], np.log1p([3, 1, 1, 0]), rtol=1e-6)
    np.testing.assert_allclose(features[:, 1], [np.log(100), np.log(90), 0, 0], rtol=1e-6)
    np.testing.assert_allclose(features[:, 3], 1 / np.sqrt([4, 2, 2, 1]), rtol=1e-6)
    assert features[0, 2] < features[1, 2] < features[3, 2] == 1
    assert (popularity_features(Sequences.of([[0, 1]]), 2, None)[:, 1:3] == 0).all()


# The model


MODEL = {
    "width": 16, "layers": 1, "heads": 2, "head_width": 8, "ffn": 32, "dropout": 0.0, "rqvae_codewords": 12, "hidden": [32], "latent": 8,
    "rqvae_epochs": 30, "epochs": 2, "batch": 64, "learning_rate": 1e-2, "precision": "float32", "history": 5, "collaborative_width": 8,
    "text": [], "views": ["vector"],
}  # fmt: skip


def shop():
    """Users walk along a circle of 69 items, which their vectors show; one more was never taken."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 16, size=60)
    rows = np.concatenate([(rng.integers(69) + np.arange(n)) % 69 for n in lengths])
    users, turns = np.repeat(np.arange(60), lengths), 2 * np.pi * np.arange(70)[:, None] / 70 * np.arange(1, 6)
    vectors = np.concatenate([np.cos(turns), np.sin(turns)], 1).astype(np.float32)
    about = pa.table({"item": np.arange(70), "vector": list(vectors)})
    return Dataset.read(pa.table({"user": users, "item": rows, "timestamp": np.arange(len(rows))}), about)


@pytest.fixture(scope="module")
def model():
    return FlexCode(**MODEL).fit(shop())


@pytest.mark.parametrize("tree", [True, False])
def test_scores_are_the_log_probabilities_by_teacher_forcing(model, tree):
    """Over the words that may follow at each place, gathered by hand from the branches' own tables."""
    model = model if tree else FlexCode(**MODEL, tree_softmax=False).fit(shop())
    network, codes = model.network, model.network.codes
    history = [10, 11, 12]
    with torch.inference_mode():
        encoded = network.encode(Sequences.of([history] * len(codes)))
        query, expected = network.query(network.write(*encoded, codes)), 0
        for place, blocks in enumerate(model.quantizer.blocks):
            table = torch.cat([network.embedding[block] for block in blocks])
            logits = zip(codes[:, :place].tolist(), query[:, place] @ table.T)
            logits = torch.stack([may_follow(model, line, prefix) for prefix, line in logits])
            expected = expected + F.log_softmax(logits, 1).gather(1, codes[:, [place]])[:, 0]
    scores = model.scores(Sequences.of([history]))[0]
    reached = np.isfinite(scores)
    assert reached.sum() == 50
    np.testing.assert_allclose(scores[reached], expected.numpy()[reached], rtol=1e-4, atol=1e-4)
    targets = model._batches(Sequences.of([[0, 1]]), 1)[0]
    assert np.isfinite(model._loss(targets).item())


def test_a_word_has_one_embedding_wherever_it_stands(model):
    network = model.network
    first = network.rows(torch.tensor(0), torch.tensor(12 + 3))  # semantic level 0, word 3, in an id without collaborative codes
    later = network.rows(torch.tensor(2), torch.tensor(12 + 3))  # the same behind two collaborative ones
    other = network.rows(torch.tensor(2), torch.tensor(2 * 12 + 3))
    assert first == later != other


def test_a_new_item_has_semantic_codes_alone_and_is_found_at_once(model, tmp_path):
    like = np.asarray(model.dataset.items["vector"][12].as_py(), np.float32)
    larger = model.with_items(pa.table({"item": [700], "vector": [like.tolist()]}))
    codes = larger.catalogue()[1][-1]
    assert (codes[:3] // 12 == [1, 2, 3]).all()  # semantic levels 0, 1, 2
    ids, scores = larger.recommend([[10, 11]], k=71, exclude_seen=False)
    assert 700 in ids[0] and np.isfinite(scores[0]).all() and len(ids[0]) == 71
    assert len(model.recommend([[10, 11]], k=71, exclude_seen=False)[0][0]) == 70  # the one before knows nothing of it
    larger.save(tmp_path / "larger")
    again = Recommender.load(tmp_path / "larger")
    assert again.recommend([[10, 11]], k=5) == larger.recommend([[10, 11]], k=5)
    assert larger.with_items(pa.table({"item": [701], "vector": [like.tolist()]})).dataset.n_items == 72


def test_the_report_page_draws_the_split(model):
    page = render({"title": "t", "model": "flexcode", "metrics": {}, "codebook": model.report})
    assert "Codes by popularity" in page and "collaborative" in page


def test_collaborative_vectors_are_not_given_twice():
    for kind in (FlexCode, AsymRecBoth):
        with pytest.raises(ConfigError, match="collaborative vectors of its own"):
            kind(collaborative=16)
