"""Product quantization against oracles: faiss, scikit-learn, SciPy, brute force."""

from itertools import islice, product

import faiss
import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.decomposition import PCA

from asymrec.errors import ConfigError, QuantizerError
from asymrec.quantize import ProductQuantizer
from asymrec.quantize.product import procrustes
from asymrec.quantize.report import describe

faiss.omp_set_num_threads(1)


def embeddings(n=3000, d=32, seed=0):
    """Clusters within clusters and a falling spectrum, as sentence embeddings have."""
    random = np.random.default_rng(seed)
    coarse = random.normal(size=(12, d))
    fine = coarse[random.integers(0, 12, 150)] + 0.6 * random.normal(size=(150, d))
    vectors = fine[random.integers(0, 150, n)] + 0.3 * random.normal(size=(n, d))
    return ((vectors * np.arange(1, d + 1) ** -0.4) @ np.linalg.qr(random.normal(size=(d, d)))[0] + 0.3).astype(np.float32)


def independent(n=4000, facets=4, width=4, seed=0):
    """Facets of clusters that know nothing of each other, mixed: there is a rotation that takes them apart."""
    random = np.random.default_rng(seed)
    parts = [random.normal(size=(24, width))[random.integers(0, 24, n)] for _ in range(facets)]
    vectors = np.concatenate(parts, 1) + 0.15 * random.normal(size=(n, facets * width))
    return (vectors @ random.normal(size=(facets * width,) * 2)).astype(np.float32)


def whitened(quantizer, vectors):
    tensors = quantizer.tensors()
    return ((torch.from_numpy(vectors) - tensors["mean"]) @ tensors["encoder"]).numpy()


def error(points, rebuilt):
    return float(np.square(points - rebuilt).sum(1).mean())


def our_error(quantizer, vectors):
    points = whitened(quantizer, vectors)
    return error(points, whitened(quantizer, quantizer.decode(quantizer.encode(vectors))))


def their_error(points, m, bits):
    theirs = faiss.ProductQuantizer(points.shape[1], m, bits)
    theirs.train(points)
    return error(points, theirs.decode(theirs.compute_codes(points)))


def test_without_rotation_it_is_faiss_product_quantization_of_whitened_vectors():
    vectors = embeddings()
    quantizer = ProductQuantizer(opq_codes=4, opq_codewords=32, opq_rounds=0).fit(vectors)
    assert our_error(quantizer, vectors) < 1.03 * their_error(whitened(quantizer, vectors), 4, 5)


@pytest.mark.parametrize("seed", [0, 1])
def test_with_rotation_it_is_as_good_as_faiss_and_better_than_without(seed):
    vectors = embeddings(seed=seed)
    plain = ProductQuantizer(opq_codes=4, opq_codewords=32, opq_rounds=0).fit(vectors)
    points = whitened(plain, vectors)
    rotation, ours = faiss.OPQMatrix(32, 4), our_error(ProductQuantizer(opq_codes=4, opq_codewords=32).fit(vectors), vectors)
    rotation.pq = faiss.ProductQuantizer(32, 4, 5)
    rotation.train(points)
    assert ours < 1.03 * their_error(rotation.apply(points), 4, 5)
    assert ours < 0.9 * our_error(plain, vectors)


def test_every_round_helps_where_a_rotation_takes_facets_apart():
    vectors = independent()
    settings = {"opq_codes": 4, "opq_codewords": 16}
    errors = [our_error(ProductQuantizer(**settings, opq_rounds=rounds).fit(vectors), vectors) for rounds in (0, 5, 20, 60)]
    assert (np.diff(errors) < 0).all() and errors[-1] < 0.8 * errors[0]


def test_every_code_is_the_nearest_codeword_by_faiss():
    vectors = embeddings()
    quantizer = ProductQuantizer(opq_codes=4, opq_codewords=32).fit(vectors)
    codes, points = quantizer.encode(vectors), whitened(quantizer, vectors).reshape(-1, 4, 8)
    for facet, codebook in enumerate(quantizer.tensors()["codebooks"].numpy()):
        index = faiss.IndexFlatL2(8)
        index.add(codebook)
        assert (index.search(np.ascontiguousarray(points[:, facet]), 1)[1][:, 0] == codes[:, facet]).mean() > 0.999


def test_the_whitening_is_scikit_learns():
    vectors = embeddings(d=12)
    quantizer = ProductQuantizer(opq_codes=2, opq_codewords=4, opq_components=6, opq_rounds=0).fit(vectors)
    ours, theirs = whitened(quantizer, vectors), PCA(6, whiten=True, svd_solver="full").fit_transform(vectors)
    assert np.allclose(np.abs(ours), np.abs(theirs), atol=0.02)


def test_the_rotation_turns_and_does_not_stretch_and_decoding_undoes_it():
    vectors = embeddings()
    quantizer = ProductQuantizer(opq_codes=4, opq_codewords=32).fit(vectors)
    tensors = quantizer.tensors()
    assert np.allclose(np.cov(whitened(quantizer, vectors).T), np.eye(32), atol=0.02)
    assert torch.allclose(tensors["encoder"] @ tensors["decoder"], torch.eye(32), atol=1e-4)
    codes = quantizer.encode(vectors)
    assert (quantizer.encode(quantizer.decode(codes)) == codes).all()


def test_procrustes_is_scipys():
    random = np.random.default_rng(0)
    points, targets = random.normal(size=(50, 6)).astype(np.float32), random.normal(size=(50, 6)).astype(np.float32)
    ours = procrustes(torch.from_numpy(points), torch.from_numpy(targets)).numpy()
    assert np.allclose(ours, scipy.linalg.orthogonal_procrustes(points, targets)[0], atol=1e-5)


def test_alternatives_are_all_ids_in_the_order_of_loss():
    vectors = embeddings(d=9)
    quantizer = ProductQuantizer(opq_codes=3, opq_codewords=5).fit(vectors)
    everything = np.array(list(product(range(5), repeat=3)))
    rebuilt = whitened(quantizer, quantizer.decode(everything))
    for row in range(5):
        alternatives = np.array(list(quantizer._alternatives(vectors[row], quantizer.encode(vectors)[row])))
        assert sorted(map(tuple, alternatives)) == sorted(map(tuple, everything))
        losses = np.square(whitened(quantizer, vectors[row : row + 1]) - rebuilt).sum(1)
        assert np.allclose(losses[alternatives @ [25, 5, 1]], np.sort(losses), atol=1e-4)


def test_codes_are_cut_to_the_width():
    vectors = embeddings(300, d=10)

    def shape(**settings):
        quantizer = ProductQuantizer(**{"opq_codewords": 8, "opq_rounds": 1} | settings).fit(vectors)
        assert quantizer.encode(vectors).shape == (300, quantizer.n_codes) and quantizer.code_shape == (quantizer.n_codes, 1)
        return quantizer.n_codes, quantizer.tensors()["encoder"].shape[1]

    assert ProductQuantizer().n_codes == 32
    assert shape() == (10, 10)
    assert shape(opq_codes=4) == (4, 8)
    assert shape(opq_codes=32, opq_components=6) == (6, 6)
    assert shape(opq_codes=3, opq_components=9) == (3, 9)
    for components in (7, 12):
        with pytest.raises(QuantizerError, match=f"opq_components={components} must be a multiple of the codes"):
            shape(opq_codes=3, opq_components=components)


def test_fewer_items_than_dimensions_and_empty_directions():
    vectors = embeddings(40, d=64)
    quantizer = ProductQuantizer(opq_codes=8, opq_codewords=256).fit(vectors)
    assert quantizer.encode(vectors).max() < 10
    report = quantizer.report(vectors)
    assert report["codewords_fitted"] == 10 and report["dead_codebooks"] == 0 and report["r2"] > 0.3
    flat = np.concatenate((embeddings(500, d=6), np.ones((500, 6), np.float32)), 1)
    quantizer = ProductQuantizer(opq_codes=3, opq_codewords=64).fit(flat)
    assert quantizer.report(flat)["r2"] > 0.5
    assert np.abs(quantizer.decode(quantizer.encode(flat))[:, 6:] - 1).max() < 1e-3


def test_the_report_says_how_much_of_the_whitened_space_is_kept():
    vectors = embeddings()
    quantizer = ProductQuantizer(opq_codes=4, opq_codewords=32).fit(vectors)
    codes = quantizer.encode(vectors)
    report, points = quantizer.report(vectors, codes), whitened(quantizer, vectors)
    assert report["space_r2"] == pytest.approx([1 - our_error(quantizer, vectors) / error(points, points.mean(0))], abs=1e-3)
    assert f"R2 after each level   {report['space_r2'][0]:.3f}" in describe(report)


def test_the_number_of_threads_makes_no_difference():
    vectors = embeddings(5000)
    alone = ProductQuantizer(opq_codes=8, opq_codewords=32).fit(vectors)
    torch.set_num_threads(2)
    try:
        together = ProductQuantizer(opq_codes=8, opq_codewords=32).fit(vectors)
        assert (together.encode(vectors) == alone.encode(vectors)).mean() > 0.99  # matrix products may round otherwise
    finally:
        torch.set_num_threads(1)


def test_settings_and_tensors_are_checked():
    with pytest.raises(ConfigError, match="opq_codes"):
        ProductQuantizer(opq_code=3)
    with pytest.raises(ConfigError, match="opq_codewords"):
        ProductQuantizer(opq_codewords=1)
    tensors = ProductQuantizer(opq_codes=4, opq_codewords=8).fit(embeddings(100)).tensors()
    with pytest.raises(QuantizerError, match="'codebooks' has shape"):
        ProductQuantizer(opq_codes=4, opq_codewords=16).restore(tensors)
    with pytest.raises(QuantizerError, match="'decoder' is missing"):
        ProductQuantizer(opq_codewords=8).restore({name: tensor for name, tensor in tensors.items() if name != "decoder"})
    restored = ProductQuantizer(opq_codewords=8).restore(tensors)  # the number of codes is read off the tensors
    assert restored.n_codes == 4 and len(list(islice(restored._alternatives(embeddings(1)[0], np.zeros(4, np.int32)), 9))) == 9
