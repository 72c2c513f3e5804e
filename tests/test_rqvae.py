"""RQ-VAE: what its loss, its training and its collision code promise."""

from collections import Counter
from itertools import islice, product

import numpy as np
import pytest
import torch

from asymrec.errors import ConfigError, QuantizerError
from asymrec.quantize import MHQ, RQVAE, autoencoder, kmeans, rqvae
from asymrec.quantize.autoencoder import Autoencoder, mlp, new_layers
from asymrec.quantize.report import describe

SMALL = {"rqvae_codewords": 16, "latent": 6, "hidden": (32,), "rqvae_batch": 64, "rqvae_rate": 1e-2}


def embeddings(n=1200, d=24, seed=0):
    """Clusters within clusters and a falling spectrum, as sentence embeddings have."""
    random = np.random.default_rng(seed)
    coarse = random.normal(size=(8, d))
    fine = coarse[random.integers(0, 8, 80)] + 0.6 * random.normal(size=(80, d))
    vectors = fine[random.integers(0, 80, n)] + 0.2 * random.normal(size=(n, d))
    return ((vectors * np.arange(1, d + 1) ** -0.6) @ np.linalg.qr(random.normal(size=(d, d)))[0] + 0.3).astype(np.float32)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(rqvae, "STEPS", 300)


def r2(quantizer, vectors):
    return 1 - np.square(vectors - quantizer.decode(quantizer.encode(vectors))).sum() / np.square(vectors - vectors.mean(0)).sum()


def test_codes_are_the_nearest_codewords_to_what_the_levels_before_left():
    vectors = embeddings()
    quantizer = RQVAE(**SMALL).fit(vectors)
    codes, residual = quantizer.encode(vectors), quantizer.latents(vectors)
    assert residual.dtype == np.float32 and residual.shape == (1200, 6) and codes.shape == (1200, 4)
    for level, codebook in enumerate(quantizer.tensors()["codebooks"].numpy()):
        nearest = np.square(residual[:, None] - codebook).sum(2).argmin(1)
        assert (nearest == codes[:, level]).mean() > 0.999
        residual = residual - codebook[codes[:, level]]
    assert (codes[:, 3] == 0).all()


def test_latents_and_decoding_are_the_networks():
    vectors = embeddings()
    quantizer = RQVAE(**SMALL | {"hidden": (32, 16)}).fit(vectors)
    learned = {name: tensor.numpy() for name, tensor in quantizer.tensors().items()}

    def network(part, x):
        for layer in range(3):
            x = np.maximum(x, 0) if layer else x
            x = x @ learned[f"{part}.{layer}.weight"].T + learned[f"{part}.{layer}.bias"]
        return x

    assert np.allclose((vectors - learned["mean"]).std(), learned["scale"], rtol=1e-3)
    assert np.allclose(quantizer.latents(vectors), network("encoder", (vectors - learned["mean"]) / learned["scale"]), atol=1e-4)
    codes = quantizer.catalogue(vectors)
    words = sum(learned["codebooks"][level, codes[:, level]] for level in range(3))
    assert np.allclose(quantizer.decode(codes), network("decoder", words) * learned["scale"] + learned["mean"], atol=1e-4)


def test_the_loss_and_its_gradients_are_the_papers():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(40, 10, generator=generator), torch.rand(40, generator=generator)
    encoder, decoder = new_layers((10, 8, 4), generator), new_layers((4, 8, 10), generator)
    books = torch.randn(1, 2, 5, 4, generator=generator)
    averages = kmeans.MovingAverages(books.clone(), 0.9, 0.01, generator)
    parts = Autoencoder(RQVAE(commitment=0.7).config, encoder, decoder, averages, 5)
    loss = parts.loss(x, weight)
    ours = torch.autograd.grad(loss, parts.parameters)

    latent = mlp(x, encoder)
    residual, quantized, commitment = latent, 0, 0
    for book in books[0].unbind(0):  # as the papers write it
        word = book[torch.cdist(residual, book).argmin(1)]
        commitment = commitment + (residual - word).square().mean(1)
        residual, quantized = residual - word, quantized + word
    rebuilt = mlp(latent + (quantized - latent).detach(), decoder)
    expected = (((x - rebuilt).square().mean(1) + 0.7 * commitment) * weight).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for got, wanted in zip(ours, torch.autograd.grad(expected, parts.parameters)):
        assert torch.allclose(got, wanted, atol=1e-5)


def test_training_rebuilds_and_more_levels_and_codewords_rebuild_better():
    vectors = embeddings()
    assert r2(RQVAE(**SMALL).fit(vectors), vectors) > 0.6 > 0.1 > r2(RQVAE(**SMALL, rqvae_epochs=0).fit(vectors), vectors)
    levels = [r2(RQVAE(**SMALL, rqvae_levels=levels).fit(vectors), vectors) for levels in (1, 2, 3)]
    codewords = [r2(RQVAE(**SMALL | {"rqvae_codewords": codewords}).fit(vectors), vectors) for codewords in (4, 16, 64)]
    assert (np.diff(levels) > 0.01).all() and (np.diff(codewords) > 0.01).all()


def test_codewords_are_used_and_few_items_collide():
    vectors = embeddings()
    quantizer = RQVAE(**SMALL | {"rqvae_codewords": 32}).fit(vectors)
    report = quantizer.report(vectors)
    assert min(report["perplexity"][0][:3]) > 16 and report["dead_codebooks"] == 0 and sum(report["dead_codes"][0][:3]) == 0
    residual = MHQ(facets=1, levels=3, codewords=32, quantizer_epochs=0).fit(vectors)
    assert report["identical_ids"] < 0.7 * residual.report(vectors)["identical_ids"] and report["repaired_identical_ids"] == 0
    assert len(report["space_r2"]) == 3 and (np.diff(report["space_r2"]) > 0).all()
    assert report["code_shape"] == [1, 4] and report["learned_levels"] == 3
    assert "unused codewords      0 of 96; dead codebooks: 0" in describe(report)


def test_training_brings_codewords_back_that_no_item_chooses(monkeypatch):
    vectors = embeddings()
    monkeypatch.setattr(autoencoder, "FINAL_STEPS", 0)  # the last rounds of k-means would bring them back too

    def spoiled(latents, levels, k, *rest):
        return torch.cat((torch.zeros(1, levels, 1, latents.shape[2]), torch.full((1, levels, k - 1, latents.shape[2]), 99.0)), 2)

    monkeypatch.setattr(kmeans, "residual_start", spoiled)
    used = [[len(set(column)) for column in RQVAE(**SMALL, rqvae_epochs=epochs).fit(vectors).encode(vectors).T[:3]] for epochs in (0, 15)]
    assert used == [[1, 1, 1], [16, 16, 16]]


def test_the_collision_code_counts_up_in_the_order_of_rows():
    vectors = embeddings()
    quantizer = RQVAE(**SMALL | {"rqvae_levels": 1, "rqvae_codewords": 200}).fit(vectors)
    raw, codes = quantizer.encode(vectors), quantizer.catalogue(vectors)
    seen = Counter()
    for row in range(len(codes)):
        assert codes[row, 0] == raw[row, 0] and codes[row, 1] == seen[codes[row, 0]]
        seen[codes[row, 0]] += 1
    assert max(seen.values()) > 5
    assert (quantizer.decode(codes) == quantizer.decode(raw)).all()
    assert (quantizer.catalogue(vectors, codes) == codes).all()
    assert (raw[:, 1] == 0).all()  # what was passed stays as it is


def test_more_items_of_one_text_than_the_collision_code_counts():
    """The later ones get the next best codeword of the last level; every item has an id of its own, and the first ones keep theirs."""
    vectors = np.concatenate((embeddings(200), np.repeat(embeddings(1), 60, axis=0)))
    quantizer = RQVAE(**SMALL).fit(embeddings(200))
    codes, raw = quantizer.catalogue(vectors), quantizer.encode(vectors)
    assert len(np.unique(codes, axis=0)) == len(vectors) and codes.max() < 16
    kept = (codes[:, :-1] == raw[:, :-1]).all(1)
    assert kept[:200].all() and 0 < (~kept[200:]).sum() < 60
    assert (codes[~kept, :-2] == raw[~kept, :-2]).all()
    tiny = RQVAE(**SMALL | {"rqvae_codewords": 2, "rqvae_levels": 1}).fit(embeddings(200))
    with pytest.raises(QuantizerError, match="200 items cannot have distinct ids"):
        tiny.catalogue(embeddings(200))


def test_alternatives_count_collisions_first_and_go_on_to_all_ids():
    vectors = embeddings()
    quantizer = RQVAE(**SMALL | {"rqvae_codewords": 4, "rqvae_levels": 2}).fit(vectors)
    codes = quantizer.encode(vectors)
    ids = list(quantizer._alternatives(vectors[5], codes[5]))
    assert [number for *same, number in ids[:4] if tuple(same) == tuple(codes[5, :2])] == [0, 1, 2, 3]
    assert sorted(ids) == list(product(range(4), repeat=3))
    left = quantizer.latents(vectors[5:6])[0] - quantizer.tensors()["codebooks"].numpy()[0, codes[5, 0]]
    errors = np.square(left - quantizer.tensors()["codebooks"].numpy()[1]).sum(1)
    assert [path[1] for path in islice(ids, 0, 16, 4)] == np.argsort(errors).tolist()


def test_the_number_of_threads_makes_no_difference():
    vectors = embeddings()
    alone = RQVAE(**SMALL).fit(vectors).tensors()
    torch.set_num_threads(2)
    try:
        together = RQVAE(**SMALL).fit(vectors).tensors()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(tensor, together[name]) for name, tensor in alone.items())


def test_a_training_that_diverges_is_refused_and_the_last_fit_stays():
    vectors = embeddings(200)
    quantizer = RQVAE(**SMALL).fit(vectors)
    codes = quantizer.encode(vectors)
    quantizer.config = RQVAE(**SMALL | {"rqvae_rate": 1e6}).config
    with pytest.raises(QuantizerError, match="diverges: lower rqvae_rate"):
        quantizer.fit(vectors)
    assert (quantizer.encode(vectors) == codes).all()


def test_settings_and_tensors_are_checked():
    for settings, name in (({"level": 3}, "level"), ({"hidden": (0,)}, "hidden"), ({"rqvae_codewords": 1}, "rqvae_codewords")):
        with pytest.raises(ConfigError, match=name):
            RQVAE(**settings)
    tensors = RQVAE(**SMALL, rqvae_epochs=1).fit(embeddings(100)).tensors()
    with pytest.raises(QuantizerError, match="'codebooks' has shape"):
        RQVAE(**SMALL | {"latent": 5}).restore(tensors)
    with pytest.raises(QuantizerError, match=r"'encoder\.1\.weight' has shape|'encoder\.2\.weight' is missing"):
        RQVAE(**SMALL | {"hidden": (32, 6)}).restore(tensors)
    assert RQVAE(**SMALL | {"hidden": ()}, rqvae_epochs=1).fit(embeddings(100)).encode(embeddings(100)).shape == (100, 4)
