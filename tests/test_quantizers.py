"""The contract every quantizer keeps."""

import json

import numpy as np
import pytest
import torch

from asymrec.errors import AsymrecError, QuantizerError, VectorError
from asymrec.quantize import MHQ, RQVAE, ProductQuantizer, rqvae


def prefixed(kind, prefix, **settings):
    """A maker that takes what the tests set by the names that MHQ has; repairing ids is no setting of these."""

    def make(*, seed=0, distinct=True, **more):
        quantizer = kind(seed=seed, **settings | {f"{prefix}_{name}": value for name, value in more.items()})
        quantizer.distinct = distinct
        return quantizer

    return make


RQVAE_SMALL = {"rqvae_levels": 3, "rqvae_codewords": 64, "latent": 8, "hidden": (48,), "rqvae_batch": 64, "rqvae_rate": 1e-2}
QUANTIZERS = {
    "mhq": lambda **kw: MHQ(**{"facets": 4, "levels": 2, "codewords": 8, "quantizer_epochs": 2, "quantizer_batch": 64} | kw),
    "mhq-whitened": lambda **kw: MHQ(**{"facets": 2, "levels": 3, "codewords": 16, "projection": 8, "whiten": True} | kw),
    "mhq-plain": lambda **kw: MHQ(**{"facets": 3, "levels": 1, "codewords": 8, "quantizer_epochs": 0} | kw),
    "mhq-input": lambda **kw: MHQ(**{"facets": 2, "codewords": 8, "projection": 6, "reconstruct": "input"} | kw),
    "opq": prefixed(ProductQuantizer, "opq", opq_codes=4, opq_codewords=16, opq_rounds=5),
    "opq-cut": prefixed(ProductQuantizer, "opq", opq_codes=5, opq_codewords=16, opq_rounds=5),
    "pq": prefixed(ProductQuantizer, "opq", opq_codes=3, opq_codewords=16, opq_components=9, opq_rounds=0),
    "rqvae": prefixed(RQVAE, "rqvae", **RQVAE_SMALL),
    "rqvae-one-level": prefixed(RQVAE, "rqvae", **RQVAE_SMALL | {"rqvae_levels": 1, "rqvae_codewords": 100}),
}


def clusters(n=400, d=12, seed=0):
    random = np.random.default_rng(seed)
    centres = random.normal(size=(20, d)) * np.linspace(2, 0.3, d)
    return (centres[random.integers(0, 20, n)] + 0.3 * random.normal(size=(n, d))).astype(np.float32)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(rqvae, "STEPS", 400)


@pytest.fixture(params=QUANTIZERS)
def make(request):
    return QUANTIZERS[request.param]


def test_codes_and_vectors_have_the_promised_form(make):
    vectors = clusters()
    quantizer = make()
    assert quantizer.fit(vectors) is quantizer
    codes = quantizer.encode(vectors)
    assert codes.dtype == np.int32 and codes.shape == (400, quantizer.n_codes) and quantizer.n_codes == len(quantizer.codebook_sizes)
    assert (codes >= 0).all() and (codes < np.array(quantizer.codebook_sizes)).all()
    decoded = quantizer.decode(codes)
    assert decoded.dtype == np.float32 and decoded.shape == vectors.shape
    assert np.prod(quantizer.code_shape) == quantizer.n_codes
    telling_apart = codes.copy()
    telling_apart[:, quantizer.meaning :] = 1
    assert (codes[:, quantizer.meaning :] == 0).all() and (quantizer.decode(telling_apart) == decoded).all()


def test_decoding_keeps_most_of_the_vectors(make):
    vectors = clusters()
    quantizer = make().fit(vectors)
    error = np.square(vectors - quantizer.decode(quantizer.encode(vectors))).sum()
    assert error < 0.35 * np.square(vectors - vectors.mean(0)).sum()


def test_equal_seeds_give_equal_codes_and_refit_is_clean(make):
    vectors, others = clusters(), clusters(seed=1)
    first = make(seed=3).fit(vectors)
    again = make(seed=3).fit(others).fit(vectors)
    assert (first.encode(vectors) == again.encode(vectors)).all()
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name
    assert (make(seed=4).fit(vectors).encode(vectors) != first.encode(vectors)).any()


def test_fit_leaves_global_random_state_and_input_alone(make):
    vectors = clusters()
    kept = vectors.copy()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make().fit(vectors)
    assert torch.equal(torch.rand(3), expected)
    assert (vectors == kept).all()


def test_a_row_alone_has_the_codes_it_has_among_others(make):
    vectors = clusters()
    quantizer = make().fit(vectors)
    codes = quantizer.encode(vectors)
    assert all((quantizer.encode(vectors[row : row + 1])[0] == codes[row]).all() for row in range(0, 400, 13))
    assert (quantizer.encode(vectors[::-1]) == codes[::-1]).all()


def test_tensors_restore_the_same_quantizer(make):
    vectors = clusters()
    quantizer = make().fit(vectors)
    restored = make(seed=9).restore(quantizer.tensors())
    codes = quantizer.catalogue(vectors)
    assert (restored.catalogue(vectors) == codes).all()
    assert (restored.decode(codes) == quantizer.decode(codes)).all()
    assert all(isinstance(tensor, torch.Tensor) and tensor.is_contiguous() for tensor in quantizer.tensors().values())


def test_torch_and_float64_and_lists_are_read_alike(make):
    vectors = clusters()
    quantizer = make().fit(vectors)
    codes = quantizer.encode(vectors)
    assert (quantizer.encode(torch.from_numpy(vectors)) == codes).all()
    assert (quantizer.encode(vectors.astype(np.float64)) == codes).all()
    assert (quantizer.encode(vectors[:5].tolist()) == codes[:5]).all()


def test_an_empty_block_is_encoded_and_decoded(make):
    quantizer = make().fit(clusters())
    codes = quantizer.encode(np.zeros((0, 12), np.float32))
    assert codes.shape == (0, quantizer.n_codes) and quantizer.decode(codes).shape == (0, 12)


def test_rows_of_weight_zero_are_not_there_and_weights_have_no_unit(make):
    vectors = clusters()
    weights = np.random.default_rng(0).random(400)
    weights[::3] = 0
    fitted = make().fit(vectors, weights).tensors()
    without = make().fit(vectors[weights > 0], weights[weights > 0] * 8).tensors()
    assert all(torch.equal(tensor, without[name]) for name, tensor in fitted.items())


def test_weights_draw_the_codewords(make):
    vectors = clusters()
    weights = np.where(np.arange(400) < 60, 100.0, 0.01)
    even, weighted = make().fit(vectors), make().fit(vectors, weights)

    def error(quantizer):
        return np.square(vectors[:60] - quantizer.decode(quantizer.encode(vectors[:60]))).sum()

    assert error(weighted) < error(even)


def test_a_catalogue_has_distinct_ids_and_first_rows_keep_theirs(make):
    vectors = np.concatenate((clusters(), clusters()[:50], np.repeat(clusters()[7:8], 30, axis=0)))
    quantizer = make().fit(vectors)
    raw, codes = quantizer.encode(vectors), quantizer.catalogue(vectors)
    assert len(np.unique(raw, axis=0)) < len(raw)
    assert len(np.unique(codes, axis=0)) == len(codes)
    _, first = np.unique(raw, axis=0, return_index=True)
    assert (codes[first] == raw[first]).all()
    assert (quantizer.catalogue(vectors, raw) == codes).all()
    assert (codes < np.array(quantizer.codebook_sizes)).all()
    assert (make(distinct=False).fit(vectors).catalogue(vectors) == raw).all()


def test_items_that_join_a_catalogue(make):
    vectors = np.repeat(clusters(150), 2, axis=0)  # every vector twice
    quantizer = make().fit(vectors)
    held, raw = quantizer.catalogue(vectors[::2]), quantizer.encode(vectors)
    new = quantizer.beside(held, vectors[1::2])
    assert new.dtype == np.int32 and len(np.unique(np.concatenate([held, new]), axis=0)) == len(vectors)
    assert (new < np.array(quantizer.codebook_sizes)).all() and (new >= 0).all()
    one_by_one = held
    for vector in vectors[1::2]:
        one_by_one = np.concatenate([one_by_one, quantizer.beside(one_by_one, vector[None])])
    assert (one_by_one[len(held) :] == new).all()
    assert (quantizer.beside(held[:0], vectors[:1]) == raw[:1]).all() and quantizer.beside(held, vectors[:0]).shape == (
        0,
        quantizer.n_codes,
    )
    quantizer.distinct = False
    assert (quantizer.beside(held, vectors[1::2]) == raw[1::2]).all()


def test_alternatives_begin_with_the_items_own_id(make):
    vectors = clusters()
    quantizer = make().fit(vectors)
    codes = quantizer.encode(vectors)
    for row in range(10):
        alternatives = quantizer._alternatives(vectors[row], codes[row])
        assert next(alternatives) == tuple(codes[row])
        others = [next(alternatives) for _ in range(20)]
        assert len(set(others)) == 20 and tuple(codes[row]) not in others


def test_few_items_and_more_codewords_than_items(make):
    vectors = clusters(30)
    quantizer = make(codewords=256).fit(vectors)
    codes = quantizer.catalogue(vectors)
    assert len(np.unique(codes, axis=0)) == 30
    assert np.isfinite(quantizer.decode(codes)).all()
    report = quantizer.report(vectors)
    assert report["dead_codebooks"] == 0 and report["r2"] > 0.3
    assert make().fit(vectors[:2]).encode(vectors).shape == (30, quantizer.n_codes)


def test_large_and_small_units_make_no_difference(make):
    vectors = clusters()
    codes = make().fit(vectors).encode(vectors)
    for unit in (2.0**-60, 2.0**50):
        scaled = vectors * np.float32(unit)
        quantizer = make().fit(scaled)
        assert (quantizer.encode(scaled) == codes).mean() > 0.99
        assert quantizer.report(scaled, codes)["r2"] == pytest.approx(make().fit(vectors).report(vectors, codes)["r2"], abs=0.02)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_vectors_that_are_not_finite_name_the_first_row(make, bad):
    vectors = clusters().astype(np.float64)
    quantizer = make().fit(vectors)
    vectors[[17, 40], 3] = bad
    for call in (quantizer.fit, quantizer.encode, quantizer.catalogue, quantizer.report):
        with pytest.raises(VectorError, match="row 17 is not finite"):
            call(vectors)


def test_unusable_input_is_refused_in_one_line(make):
    vectors = clusters()
    quantizer = make().fit(vectors)
    codes = quantizer.encode(vectors)
    too_large, negative = codes.copy(), codes.copy()
    too_large[11, 0], negative[5, 1] = quantizer.codebook_sizes[0], -1
    cases = [
        (VectorError, "width 7.*width 12", lambda: quantizer.encode(vectors[:, :7])),
        (VectorError, "shape", lambda: quantizer.encode(vectors[0])),
        (VectorError, "matrix of numbers", lambda: make().fit([["a", "b"]])),
        (QuantizerError, "at least 2 items", lambda: make().fit(vectors[:1])),
        (QuantizerError, "at least 2 items", lambda: make().fit(vectors, np.eye(400)[3])),
        (QuantizerError, "are equal", lambda: make().fit(np.ones((9, 12)))),
        (QuantizerError, "weights have shape", lambda: make().fit(vectors, np.ones(3))),
        (QuantizerError, "weights: row 2 is -1", lambda: make().fit(vectors, np.where(np.arange(400) == 2, -1, 1))),
        (QuantizerError, "weights: row 0 is nan", lambda: make().fit(vectors, np.full(400, np.nan))),
        (QuantizerError, "not fitted", lambda: make().encode(vectors)),
        (QuantizerError, "not fitted", lambda: make().decode(codes)),
        (QuantizerError, "not fitted", lambda: make().tensors()),
        (QuantizerError, "shape", lambda: quantizer.decode(codes[:, :1][:, [0] * 9])),
        (QuantizerError, "integers", lambda: quantizer.decode(codes.astype(float))),
        (QuantizerError, "row 11 ", lambda: quantizer.decode(too_large)),
        (QuantizerError, "row 5 ", lambda: quantizer.decode(negative)),
        (QuantizerError, "missing", lambda: make().restore({})),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message) as raised:
            call()
        assert isinstance(raised.value, AsymrecError) and "\n" not in str(raised.value)


def test_report_is_json_and_true(make):
    vectors = np.concatenate((clusters(), clusters()[:40]))
    quantizer = make().fit(vectors)
    codes = quantizer.catalogue(vectors)
    report = quantizer.report(vectors, codes)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    decoded = quantizer.decode(codes).astype(np.float64)
    assert report["r2"] == pytest.approx(1 - np.square(vectors - decoded).sum() / np.square(vectors - vectors.mean(0)).sum(), abs=1e-6)
    facets, levels = quantizer.code_shape
    sizes = np.array(quantizer.codebook_sizes)
    dead = [len(set(range(sizes[h])) - set(codes[:, h])) for h in range(len(sizes))]
    assert np.array(report["dead_codes"]).tolist() == np.reshape(dead, (facets, levels)).tolist()
    assert report["repaired_identical_ids"] == 0 and report["identical_ids"] >= 80 / 440
    assert quantizer.report(vectors) == report
