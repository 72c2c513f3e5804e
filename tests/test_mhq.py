"""MHQ against oracles: faiss, scikit-learn, and what the paper and the report promise."""

import faiss
import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from asymrec.config import Recipe
from asymrec.errors import ConfigError, QuantizerError
from asymrec.quantize import MHQ, kmeans
from asymrec.quantize.mhq import deal, energy_kept
from asymrec.quantize.report import describe, neighbour_recall

faiss.omp_set_num_threads(1)


def embeddings(n=3000, d=32, seed=0):
    """Clusters within clusters and a falling spectrum, as sentence embeddings have; unit length."""
    random = np.random.default_rng(seed)
    coarse = random.normal(size=(12, d))
    fine = coarse[random.integers(0, 12, 150)] + 0.6 * random.normal(size=(150, d))
    vectors = fine[random.integers(0, 150, n)] + 0.3 * random.normal(size=(n, d))
    vectors = (vectors * np.arange(1, d + 1) ** -0.4) @ np.linalg.qr(random.normal(size=(d, d)))[0] + 0.3
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def error(vectors, decoded):
    return float(np.square(vectors - decoded).sum(1).mean())


def r2(quantizer, vectors):
    return 1 - error(vectors, quantizer.decode(quantizer.encode(vectors))) / error(vectors, vectors.mean(0))


def test_every_code_is_the_nearest_codeword_by_faiss():
    vectors = embeddings()
    quantizer = MHQ(facets=4, levels=3, codewords=32, projection=24).fit(vectors)
    codes, tensors = quantizer.encode(vectors).reshape(-1, 4, 3), quantizer.tensors()
    projected = ((torch.from_numpy(vectors) - tensors["mean"]) @ tensors["encoder"]).numpy().reshape(-1, 4, 6)
    for facet in range(4):
        residual = projected[:, facet].copy()
        for level in range(3):
            codebook = tensors["codebooks"][facet, level].numpy()
            index = faiss.IndexFlatL2(6)
            index.add(codebook)
            nearest = index.search(residual, 1)[1][:, 0]
            differ = nearest != codes[:, facet, level]
            ours = np.square(residual - codebook[codes[:, facet, level]]).sum(1)
            assert differ.mean() < 1e-3 and np.allclose(ours[differ], np.square(residual - codebook[nearest]).sum(1)[differ], atol=1e-6)
            residual -= codebook[codes[:, facet, level]]


def test_codewords_stand_on_the_mean_of_their_items():
    vectors = embeddings()
    quantizer = MHQ(facets=4, levels=1, codewords=16).fit(vectors)
    codes, tensors = quantizer.encode(vectors), quantizer.tensors()
    projected = ((torch.from_numpy(vectors) - tensors["mean"]) @ tensors["encoder"]).numpy().reshape(-1, 4, 8)
    for facet in range(4):
        codebook = tensors["codebooks"][facet, 0].numpy()
        means = np.stack([projected[codes[:, facet] == code, facet].mean(0) for code in range(16)])
        assert np.abs(means - codebook).max() < 0.15 * codebook.std()


def test_nearest_takes_the_smallest_index_of_a_tie():
    codebooks = torch.tensor([[[0.0], [2.0], [0.0], [2.0]], [[1.0], [1.0], [1.0], [1.0]]])
    index, squared = kmeans.nearest(torch.tensor([[[0.1], [1.9], [1.0]]] * 2), codebooks, distances=True)
    assert index.tolist() == [[0, 1, 0], [0, 0, 0]]
    assert torch.allclose(squared, torch.tensor([[0.01, 0.01, 1.0], [0.81, 0.81, 0.0]]), atol=1e-6)


def test_kmeans_is_as_good_as_scikit_learn_and_faiss():
    vectors = embeddings(d=8)
    generator = torch.Generator().manual_seed(0)
    points, weights = torch.from_numpy(vectors).unsqueeze(0), torch.ones(len(vectors))
    codebook = kmeans.lloyd(points, kmeans.sample(points, 64, weights, generator), weights, 17, generator)
    ours = float(kmeans.nearest(points, codebook, distances=True)[1].sum())
    theirs = faiss.Kmeans(8, 64, niter=25, seed=1)
    theirs.train(vectors)
    assert ours < 1.03 * KMeans(64, n_init=1, random_state=0).fit(vectors).inertia_
    assert ours < 1.03 * theirs.obj[-1]


def test_revived_codewords_stand_on_points():
    points = torch.arange(12.0).view(2, 6, 1)
    codebooks, dead = torch.full((2, 3, 1), 99.0), torch.tensor([[False, True, True], [False, False, True]])
    revived = kmeans.revive(codebooks, dead, points, torch.ones(2, 6), torch.Generator().manual_seed(0))
    assert (revived[~dead] == 99).all()
    assert all(float(word) in points[facet] for facet in range(2) for word in revived[facet][dead[facet]])
    nothing_to_choose = kmeans.revive(codebooks, dead, points, torch.zeros(2, 6), torch.Generator().manual_seed(0))
    assert (nothing_to_choose[dead] < 12).all()


def test_one_facet_is_residual_quantization():
    vectors = embeddings(d=16)
    quantizer = MHQ(facets=1, levels=3, codewords=32).fit(vectors)
    theirs = faiss.ResidualQuantizer(16, 3, 5)
    theirs.max_beam_size = 1
    theirs.train(vectors)
    assert error(vectors, quantizer.decode(quantizer.encode(vectors))) < 1.03 * error(vectors, theirs.decode(theirs.compute_codes(vectors)))


def test_one_level_is_product_quantization():
    vectors = embeddings(d=16)
    quantizer = MHQ(facets=4, levels=1, codewords=32, projection_rate=0).fit(vectors)
    rotated = (vectors - vectors.mean(0)) @ quantizer.tensors()["projection"].numpy().T
    theirs = faiss.ProductQuantizer(16, 4, 5)
    theirs.train(rotated)
    ours = error(vectors, quantizer.decode(quantizer.encode(vectors)))
    assert ours < 1.03 * error(rotated, theirs.decode(theirs.compute_codes(rotated)))


def test_more_levels_codewords_and_facets_rebuild_better():
    vectors = embeddings()

    def fit(**settings):
        return r2(MHQ(**{"facets": 4, "levels": 2, "codewords": 16, "quantizer_epochs": 2} | settings).fit(vectors), vectors)

    for name, values in {"levels": (1, 2, 3, 4), "codewords": (4, 16, 64), "facets": (2, 4, 8)}.items():
        scores = [fit(**{name: value}) for value in values]
        assert (np.diff(scores) > 0.01).all(), (name, scores)


def test_energy_and_rows_of_the_projection_after_a_fit():
    vectors = embeddings(d=48)
    for settings in ({}, {"reconstruct": "input"}, {"whiten": True}, {"projection_rate": 1e-3, "quantizer_epochs": 10}):
        quantizer = MHQ(**{"facets": 4, "codewords": 16, "projection": 24} | settings).fit(vectors)
        projection = quantizer.tensors()["projection"]
        assert (projection @ projection.T - torch.eye(24)).norm() < 1e-2
        start, kept = quantizer.tensors()["energy"]
        assert 0.5 * (not settings.get("whiten")) < start < 1 and kept >= start - 0.05
        report = quantizer.report(vectors)
        assert (report["energy_kept_start"], report["energy_kept"]) == (start, kept)


def test_energy_kept_is_what_pca_keeps():
    vectors = embeddings(d=20)
    quantizer = MHQ(facets=2, codewords=8, projection=10, quantizer_epochs=0).fit(vectors)
    values = np.linalg.eigvalsh(np.cov(vectors.T.astype(np.float64)))
    assert quantizer.tensors()["energy"].tolist() == pytest.approx([values[-10:].sum() / values.sum()] * 2, abs=1e-5)
    assert quantizer.report(vectors)["r2"] < values[-10:].sum() / values.sum()


def test_a_fit_that_loses_its_energy_fails():
    vectors = embeddings(d=48)
    settings = {"facets": 4, "codewords": 16, "projection": 24, "quantizer_epochs": 20}
    message = "energy kept falls below its start's by more than 5 points"
    with pytest.raises(QuantizerError, match=message):
        MHQ(**settings, projection_rate=0.05, orthonormality=0).fit(vectors)
    MHQ(**settings, projection_rate=1e-4, orthonormality=1.0).fit(vectors)
    quantizer = MHQ(**settings, projection_rate=0).fit(vectors)
    codes = quantizer.encode(vectors)
    with pytest.raises(QuantizerError, match=message):
        quantizer.config = Recipe.of({"quantizer": settings | {"projection_rate": 0.05, "orthonormality": 0}}).quantizer
        quantizer.fit(vectors)
    assert (quantizer.encode(vectors) == codes).all()  # a fit that fails leaves the last good one


def test_a_stretched_projection_makes_no_energy():
    covariance = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64))
    assert energy_kept(torch.eye(4)[:2], covariance) == pytest.approx(0.7)
    assert energy_kept(10 * torch.eye(4)[2:], covariance) == pytest.approx(0.3)
    assert energy_kept(0.5 * torch.eye(4)[:2], covariance) == pytest.approx(0.7 / 4)
    assert not energy_kept(torch.full((2, 4), float("nan")), covariance) >= 0


def test_dealt_directions_balance_the_facets():
    energies = torch.arange(1, 33, dtype=torch.float64) ** -0.5
    order = deal(energies, 4)
    assert sorted(order.tolist()) == list(range(32))
    dealt, plain = energies[order].view(4, 8).sum(1), energies.view(4, 8).sum(1)
    assert (dealt - dealt.mean()).abs().mean() < 0.1 * (plain - plain.mean()).abs().mean()
    vectors = embeddings()
    imbalance = MHQ(facets=4, codewords=16).fit(vectors).report(vectors)["energy_imbalance"]
    spectrum = np.linalg.eigvalsh(np.cov(vectors.T))[::-1].reshape(4, 8).sum(1)
    assert imbalance < 0.3 * np.abs(spectrum - spectrum.mean()).mean() / spectrum.mean()


def test_the_loss_is_the_papers():
    random = np.random.default_rng(0)
    x, w, rebuilt = random.normal(size=(50, 6)), random.normal(size=(4, 6)), random.normal(size=(50, 4))
    z = x @ w.T
    energy = np.stack([np.square(z[:, :2]).sum(1).mean(), np.square(z[:, 2:]).sum(1).mean()])
    regular = 0.5 * np.abs(energy - energy.mean()).mean() + 0.25 * np.linalg.norm(w @ w.T - np.eye(4))
    expected = {"projected": np.square(z - rebuilt).sum(1).mean(), "input": np.square(x - rebuilt @ w).sum(1).mean()}
    for space, reconstruction in expected.items():
        quantizer = MHQ(facets=2, balance=0.5, orthonormality=0.25, reconstruct=space)
        tensors = [torch.tensor(array) for array in (x, z, rebuilt, w)]
        loss = quantizer._loss(*tensors[:3], tensors[3], torch.ones(50, dtype=torch.float64))
        assert float(loss) == pytest.approx(reconstruction + regular, rel=1e-6)


def learning(**settings):
    """One direction has more than a facet's share of the energy, so that the start cannot balance."""
    vectors = embeddings(d=24)
    vectors[:, 0] += 0.4 * np.random.default_rng(0).normal(size=len(vectors)).astype(np.float32)
    settings = {"facets": 3, "codewords": 16, "orthonormality": 0.1, "quantizer_epochs": 20, "quantizer_batch": 256} | settings
    return MHQ(**settings).fit(vectors).report(vectors)


def test_the_balance_term_balances():
    balanced = learning(projection_rate=1e-2, balance=1.0)["energy_imbalance"]
    assert balanced < 0.5 * learning(projection_rate=0)["energy_imbalance"]


def test_learning_the_projection_lowers_the_error():
    start = learning(projection_rate=0)["r2"]
    assert learning(projection_rate=1e-2)["r2"] > start + 0.002
    assert learning(projection_rate=1e-2, reconstruct="input")["r2"] > start + 0.002


def test_codewords_out_of_use_come_back_in_the_epochs():
    vectors = torch.from_numpy(embeddings(d=8))
    points = (vectors - vectors.mean(0)).unsqueeze(0)
    spoiled = torch.full((1, 1, 32, 8), 50.0)
    spoiled[0, 0, 0] = 0  # one codeword has all
    averages = kmeans.MovingAverages(spoiled, 0.9, 0.08, torch.Generator().manual_seed(0))
    for rows in torch.arange(3000).split(250) * 5:
        averages.step(points[:, rows], torch.ones(250))
    index, _ = kmeans.nearest(points, averages.codebooks[0])
    assert len(index.unique()) >= 30


def test_moving_averages_by_hand():
    points = torch.tensor([[[1.0], [2.0], [9.0]]])
    averages = kmeans.MovingAverages(torch.tensor([[[[0.0], [10.0]]]]), 0.5, 0.1, torch.Generator())
    left = averages.step(points, torch.tensor([1.0, 1.0, 2.0]))
    assert left.flatten().tolist() == [1, 2, -1]  # by the codebook as it was
    # counts start as the first batch's, (2, 2); sums as theirs, (0, 20); then half old, half new: (0 + 3) / 2 and (20 + 18) / 2
    assert averages.codebooks[0].flatten().tolist() == pytest.approx([1.5 / 2, 19 / 2])


def test_the_number_of_threads_makes_no_difference():
    vectors = embeddings(6000)
    settings = {"facets": 8, "codewords": 32, "quantizer_epochs": 2}
    alone = MHQ(**settings).fit(vectors)
    torch.set_num_threads(2)
    try:
        together = MHQ(**settings).fit(vectors)
        assert torch.get_num_threads() == 2
        assert (together.encode(vectors) == alone.encode(vectors)).mean() > 0.99  # matrix products may round otherwise
        assert (alone.encode(vectors) == MHQ(**settings).restore(alone.tensors()).encode(vectors)).all()
    finally:
        torch.set_num_threads(1)


def test_whitening_makes_all_directions_count_alike():
    random = np.random.default_rng(0)
    vectors = (random.normal(size=(4000, 8)) * [100, 1, 1, 1, 1, 1, 1, 1]).astype(np.float32)

    def worst(whiten):
        quantizer = MHQ(facets=4, levels=1, codewords=32, whiten=whiten).fit(vectors)
        left = np.square(vectors - quantizer.decode(quantizer.encode(vectors))).mean(0) / vectors.var(0)
        return left.max()

    assert worst(True) < 0.5 * worst(False)


def test_few_items_limit_the_codewords_and_the_report_says_so():
    vectors = embeddings(40)
    quantizer = MHQ(facets=4, levels=3, codewords=256).fit(vectors)
    assert quantizer.encode(vectors).max() < 10
    report = quantizer.report(vectors)
    assert report["codewords_fitted"] == 10 and report["dead_codebooks"] == 0
    assert "only 10 codewords" in describe(report)


def test_report_by_hand():
    vectors = embeddings(500)
    quantizer = MHQ(facets=2, levels=2, codewords=8, projection=16).fit(vectors)
    codes = quantizer.encode(vectors)
    codes[:, 3] = 5  # a dead codebook: facet 1, level 1
    report = quantizer.report(vectors, codes)
    assert report["dead_codebooks"] == 1
    assert report["perplexity"][1][1] == 1 and report["dead_codes"][1][1] == 7
    share = np.bincount(codes[:, 0]) / 500
    assert report["perplexity"][0][0] == pytest.approx(np.exp(-(share * np.log(share)).sum()), abs=1e-3)
    assert sum(report["facet_energy"]) == pytest.approx(1)
    text = describe(report)
    assert "dead codebooks: 1" in text and f"{report['energy_kept']:.1%}" in text


def test_in_space_and_x_space_r2_agree_when_nothing_is_projected_away():
    vectors = embeddings(d=16)
    report = MHQ(facets=4, levels=3, codewords=16).fit(vectors).report(vectors)
    assert report["energy_kept"] == pytest.approx(1, abs=1e-5)
    assert report["space_r2"][-1] == pytest.approx(report["r2"], abs=1e-4)
    assert np.all(np.diff(report["space_r2"]) > 0)


def test_neighbour_recall_equals_brute_force(monkeypatch):
    vectors, decoded = embeddings(300), embeddings(300) + 0.02 * np.random.default_rng(1).normal(size=(300, 32)).astype(np.float32)

    def neighbours(x):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        scores = x @ x.T
        np.fill_diagonal(scores, -2)
        return np.argsort(-scores, axis=1)[:, :10]

    expected = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(neighbours(vectors), neighbours(decoded))])
    assert neighbour_recall(vectors, decoded) == pytest.approx(expected, abs=1e-9)
    assert neighbour_recall(vectors, vectors) == 1
    assert abs(neighbour_recall(vectors, decoded, queries=100) - expected) < 0.1


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="facets"):
        MHQ(facet=3)
    with pytest.raises(ConfigError, match="codewords"):
        MHQ(codewords=1)
    vectors = embeddings(50, d=10)
    with pytest.raises(QuantizerError, match="width 10 cannot be cut into 16 facets"):
        MHQ().fit(vectors)
    for projection in (7, 12):
        with pytest.raises(QuantizerError, match=f"projection={projection} must be a multiple of facets=4"):
            MHQ(facets=4, projection=projection).fit(vectors)
    assert MHQ(facets=4).fit(vectors).tensors()["encoder"].shape == (10, 8)


@pytest.mark.parametrize(
    ("items", "settings", "fitted"),
    [
        (40, {}, 10),  # one for 4
        (300, {}, 16),
        (3000, {}, 75),  # one for 40
        (3000, {"items_per_codeword": 4}, 256),
        (3000, {"items_per_codeword": 300}, 16),
        (3000, {"codewords": 8}, 8),
    ],
)
def test_a_codeword_stands_for_enough_items(items, settings, fitted):
    quantizer = MHQ(facets=4, levels=2, quantizer_epochs=0, **settings)
    codes = quantizer.fit(embeddings(items)).encode(embeddings(items))
    assert codes.max() < fitted and quantizer.report(embeddings(items))["codewords_fitted"] == fitted


def test_a_big_catalogue_is_fitted_on_a_sample_and_encoded_whole(monkeypatch):
    vectors = embeddings(70000, d=8)
    quantizer = MHQ(facets=2, levels=2, codewords=16, quantizer_epochs=1).fit(vectors)
    whole = r2(quantizer, vectors)
    assert quantizer.encode(vectors).shape == (70000, 4)
    assert whole > r2(MHQ(facets=2, levels=2, codewords=16, quantizer_epochs=1).fit(vectors[:3000]), vectors) - 0.01


def test_restore_refuses_other_shapes():
    vectors = embeddings(100)
    tensors = MHQ(facets=4, codewords=8).fit(vectors).tensors()
    with pytest.raises(QuantizerError, match="'codebooks' has shape"):
        MHQ(facets=2, codewords=8).restore(tensors)
    with pytest.raises(QuantizerError, match="'decoder' is missing"):
        MHQ(facets=4, codewords=8).restore({name: tensor for name, tensor in tensors.items() if name != "decoder"})


def test_scaled_codewords_rebuild_items_of_spread_one():
    vectors = embeddings()
    quantizer = MHQ(facets=4, levels=3, codewords=32, projection=24).fit(vectors)
    codes, books = quantizer.encode(vectors), quantizer.tensors()["codebooks"].numpy()
    scaled = quantizer.scaled_codewords(codes).numpy()
    assert scaled.shape == (4, 3, 32, 6)
    rebuilt = np.stack([sum(scaled[f, level, codes[:, 3 * f + level]] for level in range(3)) for f in range(4)], 1)
    np.testing.assert_allclose(rebuilt.std(0), 1, rtol=1e-4)
    ratio = scaled / books  # one factor a dimension of a facet
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1], ratio.shape), rtol=1e-4)
    half = np.zeros((len(codes), 4), bool)
    half[::2] = True
    np.testing.assert_allclose(quantizer.scaled_codewords(codes, half), quantizer.scaled_codewords(codes[::2]), rtol=1e-4, atol=1e-5)


def test_a_dimension_without_spread_is_not_blown_up():
    vectors = np.zeros((500, 8), np.float32)
    vectors[:, :3] = embeddings(500, 3)
    assert np.abs(MHQ(facets=2, levels=2, codewords=8).fit(vectors).scaled_codewords(np.zeros((4, 4), np.int32)).numpy()).max() < 1e7
