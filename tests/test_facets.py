"""AsymRec's codes under FlexCode's split: what an id is made of, what the router does, the model around them."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_dual import FACETS as SMALL
from test_dual import WIDTH, items, shop

from asymrec.data import Sequences
from asymrec.errors import ConfigError, QuantizerError, VectorError
from asymrec.evaluation.report import render
from asymrec.models import AsymRecBoth, Recommender
from asymrec.quantize import MHQ, DualMHQ
from asymrec.quantize.report import describe
from asymrec.quantize.router import FEATURES

WORDS, FACETS, LEVELS = 16, 4, 2


@pytest.fixture(scope="module")
def fitted():
    return DualMHQ(**SMALL).fit(items())


def test_an_id_is_collaborative_facets_then_semantic_ones(fitted):
    vectors = items()
    codes, split = fitted.encode(vectors).reshape(-1, FACETS, LEVELS), fitted.split(vectors)
    known = vectors[:, 12 : 12 + WIDTH].any(1)
    alone = MHQ(facets=4, levels=2, codewords=16, quantizer_epochs=1, quantizer_batch=64)
    semantic = alone.fit(vectors[:, :12]).encode(vectors[:, :12]).reshape(-1, FACETS, LEVELS)
    collaborative = alone.fit(vectors[known, 12 : 12 + WIDTH]).encode(vectors[:, 12 : 12 + WIDTH]).reshape(-1, FACETS, LEVELS)
    assert len(set(split)) > 1
    for row in range(0, 600, 7):
        own = np.concatenate([collaborative[row, : split[row]], WORDS + semantic[row, split[row] :]])
        assert np.array_equal(codes[row], own)


def test_decoding_rebuilds_the_facets_that_the_id_holds(fitted):
    vectors = items()
    decoded = fitted.decode(fitted.encode(vectors))
    for allocation, part in (("semantic", slice(0, 12)), ("collaborative", slice(12, 12 + WIDTH))):
        known = vectors[:, part].any(1)
        centred = np.square(vectors[known, part] - vectors[known, part].mean(0)).sum()
        whole = DualMHQ(**SMALL, allocation=allocation).fit(vectors)
        errors = [np.square(vectors[known, part] - found[known, part]).sum() for found in (whole.decode(whole.encode(vectors)), decoded)]
        assert errors[0] < errors[1] < centred and errors[0] < 0.5 * centred
    split = fitted.split(vectors)
    some = np.bincount(split).argmax()
    mean = vectors[split == some, -FEATURES:].mean(0)
    np.testing.assert_allclose(decoded[split == some, -FEATURES:], np.broadcast_to(mean, ((split == some).sum(), 4)), rtol=1e-4)


def test_equal_items_are_told_apart_within_their_split(fitted):
    vectors = np.repeat(items()[:20], 5, 0)
    codes, raw = fitted.catalogue(vectors), fitted.encode(vectors)
    assert len(np.unique(codes, axis=0)) == 100 and np.array_equal(codes[::5], raw[::5])
    assert np.array_equal(codes < WORDS, raw < WORDS)


def test_equal_seeds_restore_and_rows_alone(fitted):
    vectors = items()
    again = DualMHQ(**SMALL).fit(items(seed=1)).fit(vectors)
    codes = fitted.encode(vectors)
    assert np.array_equal(again.encode(vectors), codes)
    assert (DualMHQ(**SMALL, seed=1).fit(vectors).encode(vectors) != codes).any()
    restored = DualMHQ(**SMALL).restore(fitted.tensors())
    assert np.array_equal(restored.encode(vectors), codes) and np.array_equal(restored.decode(codes), fitted.decode(codes))
    assert all(np.array_equal(fitted.encode(vectors[row : row + 1])[0], codes[row]) for row in range(0, 600, 37))


def test_the_report_tells_split_and_usage(fitted):
    vectors = items()
    report, split = fitted.report(vectors), fitted.split(vectors)
    assert report["code_shape"] == [2 * FACETS, LEVELS] and report["budget"] == FACETS and len(report["branches"]) == 2 * FACETS
    used = fitted.usage(fitted.encode(vectors))[0]
    counts = np.array([int(part.sum()) for part in used]).reshape(2, FACETS, LEVELS)
    for facet in range(FACETS):
        assert (counts[0, facet] == (split > facet).sum()).all() and (counts[1, facet] == (split <= facet).sum()).all()
    assert "8 facets x 2 levels x 16 codewords" in describe(report) and 0 < report["r2"] < 1


def test_scaled_codewords_of_the_branches_stand_apart(fitted):
    codes = fitted.encode(items())
    scaled = fitted.scaled_codewords(codes)
    wide = fitted._branch("semantic").scaled_codewords(codes % WORDS).shape[-1]
    assert scaled.shape[:3] == (FACETS, LEVELS, 2 * WORDS)
    assert not scaled[:, :, :WORDS, :wide].any() and not scaled[:, :, WORDS:, wide:].any() and scaled.isfinite().all()
    taken = fitted.split(items()) > 0  # items whose first facet is collaborative
    rebuilt = sum(scaled[0, level, codes[taken, level]] for level in range(LEVELS))
    np.testing.assert_allclose(rebuilt[:, wide:].std(0, correction=0), 1, rtol=1e-3)


def test_bad_input_is_told(fitted):
    with pytest.raises(VectorError, match="width 12, expected more than 8 collaborative columns and 4 features"):
        DualMHQ(**SMALL).fit(items()[:, :12])
    silent = items()
    silent[:, 12 : 12 + WIDTH] = 0
    with pytest.raises(QuantizerError, match="fewer than 2 items have a collaborative vector"):
        DualMHQ(**SMALL).fit(silent)
    with pytest.raises(QuantizerError, match=r"'router\.mean' is missing"):
        DualMHQ(**SMALL).restore({name: each for name, each in fitted.tensors().items() if name != "router.mean"})
    with pytest.raises(QuantizerError, match=r"'levels' has shape \(5, 4\), expected \(9, 4\)"):
        DualMHQ(**SMALL | {"facets": 8}).restore(fitted.tensors())
    with pytest.raises(QuantizerError, match=r"'collaborative.mean' has shape \(8,\), expected \(10,\)"):
        DualMHQ(**SMALL | {"collaborative_width": 10}).restore(fitted.tensors())
    with pytest.raises(ConfigError, match=r"vectors\.collaborative must be 0"):
        AsymRecBoth(collaborative=16)


# The model


@pytest.fixture(scope="module")
def model():
    return AsymRecBoth(
        width=16, layers=1, heads=2, ffn=32, dropout=0.0, epochs=3, batch=64, learning_rate=1e-2, precision="float32", text=[],
        views=["vector"], code_rate=1.0, **SMALL | {"facets": 2},
    ).fit(shop())  # fmt: skip


def test_the_network_reads_both_views_and_not_the_features(model):
    assert model.network.vectors.shape == (70, 10 + WIDTH) and model.catalogue()[0].shape == (70, 10 + WIDTH + FEATURES)
    assert model.network.head.embedding.shape[:2] == (4 + 2, 2 * WORDS)  # two popularity codes behind those of the facets
    vectors, codes = model._prepared["vectors"], model._codes()
    rows, read = torch.arange(70), []
    for columns, step in ((slice(-FEATURES, None), 1.0), (slice(10, 10 + WIDTH), 1.0)):
        other = vectors.clone()
        other[:, columns] += step
        with torch.inference_mode():
            read.append((model.network.over(other, codes).read(rows) - model.network.read(rows)).abs().max())
    assert read[0] == 0 < read[1]


def test_a_new_item_has_semantic_facets_alone_and_is_found_at_once(model, tmp_path):
    like = model.dataset.items["vector"][12].as_py()
    larger = model.with_items(pa.table({"item": [700], "vector": [like]}))
    assert (larger.catalogue()[1][-1] >= WORDS).all()
    ids, scores = larger.recommend([[10, 11]], k=71, exclude_seen=False)
    assert 700 in ids[0] and np.isfinite(scores[0]).all() and len(ids[0]) == 71
    larger.save(tmp_path / "larger")
    again = Recommender.load(tmp_path / "larger")
    np.testing.assert_allclose(again.scores(Sequences.of([[10, 11]])), larger.scores(Sequences.of([[10, 11]])), atol=1e-6)


def test_the_report_page_draws_the_split(model):
    page = render({"title": "t", "model": model.name, "metrics": {}, "codebook": model.report})
    assert "Codes by popularity" in page and "collaborative" in page
