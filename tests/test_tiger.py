"""TIGER: what it is trained on, what its search finds, and that both speak of the same probabilities."""

from copy import copy

import numpy as np
import pyarrow as pa
import pytest
import torch
from small import as_of_before, may_follow
from torch.nn import functional as F

from asymrec import Dataset
from asymrec.data import Sequences
from asymrec.errors import ConfigError
from asymrec.models import Recommender, Tiger

SMALL = {
    "width": 16, "layers": 1, "heads": 2, "head_width": 8, "ffn": 32, "dropout": 0.0, "rqvae_codewords": 12, "hidden": [32], "latent": 8,
    "rqvae_epochs": 30, "epochs": 2, "batch": 64, "encoder": "hashed", "learning_rate": 1e-2, "precision": "float32", "history": 5,
}  # fmt: skip
N_ITEMS = 70


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 16, size=60)
    items = np.concatenate([(rng.integers(N_ITEMS) + np.arange(n)) % N_ITEMS for n in lengths])
    users = np.repeat(np.arange(60), lengths)
    texts = pa.table({"item": np.arange(N_ITEMS), "text": [f"thing {i // 7} kind {i % 7} number {i}" for i in range(N_ITEMS)]})
    return Dataset.read(pa.table({"user": users, "item": items, "timestamp": np.arange(len(items))}), texts)


@pytest.fixture(scope="module", params=[True, False], ids=["tree", "words"])
def model(dataset, request):
    return Tiger(**SMALL, tree_softmax=request.param).fit(dataset)


def like(model, **settings):
    """Another one, with the same softmax."""
    return Tiger(**SMALL, tree_softmax=model.recipe.network.tree_softmax, **settings).fit(model.dataset)


def teacher_forced(model, history):
    """log-probability of every item after a history: the decoder reads each item's own codes."""
    codes = model.network.codes
    with torch.inference_mode():
        encoded = model.network.encode(Sequences.of([history] * len(codes)))
        logits = torch.einsum("nhw,hkw->nhk", model.network.query(model.network.write(*encoded, codes)), torch.stack(model.network.words()))
    own = codes.tolist()
    logits = torch.stack(
        [torch.stack([may_follow(model, line, one[:h]) for h, line in enumerate(lines)]) for one, lines in zip(own, logits)]
    )
    return logits.log_softmax(-1).gather(2, codes.unsqueeze(-1)).sum((1, 2)).numpy()


HISTORIES = [[3], [10, 11, 12], [60, 2, 61, 3, 62], [1, 2, 3, 4]]


def test_scores_are_the_log_probabilities_of_what_the_beam_reached(model):
    exact = np.stack([teacher_forced(model, history) for history in HISTORIES])
    scores = model.scores(Sequences.of(HISTORIES))
    reached = np.isfinite(scores)
    assert (reached.sum(1) == 50).all()  # the default beam
    np.testing.assert_allclose(scores[reached], exact[reached], rtol=1e-4, atol=1e-4)
    wide = like(model, beam=N_ITEMS)
    scores = wide.scores(Sequences.of(HISTORIES))
    np.testing.assert_allclose(scores, np.stack([teacher_forced(wide, history) for history in HISTORIES]), rtol=1e-4, atol=1e-4)


def test_the_beam_is_the_textbooks_over_whole_prefixes(model):
    """Every level anew by teacher forcing, over tuples; the same items in the same order, alone and in a batch, on one thread and two."""
    width, codes = 7, model.network.codes
    narrow = like(model, beam=width)
    expected = []
    for history in HISTORIES:
        encoded, beam = narrow.network.encode(Sequences.of([history])), {(): 0.0}
        for place in range(codes.shape[1]):
            read = torch.tensor([[*prefix, *[0] * (codes.shape[1] - place)] for prefix in beam])
            with torch.inference_mode():
                states = narrow.network.write(*(part.expand(len(beam), *part.shape[1:]) for part in encoded), read)
                logits = narrow.network.query(states)[:, place] @ narrow.network.words()[place].T
            ahead = {prefix: may_follow(narrow, line, prefix).log_softmax(-1).tolist() for prefix, line in zip(beam, logits)}
            following = {tuple(one[: place + 1]) for one in codes.tolist() if tuple(one[:place]) in beam}
            scored = {prefix: beam[prefix[:-1]] + ahead[prefix[:-1]][prefix[-1]] for prefix in following}
            beam = dict(sorted(scored.items(), key=lambda each: (-each[1], each[0]))[:width])
        rows = {tuple(one): row for row, one in enumerate(codes.tolist())}
        expected.append([rows[prefix] for prefix in beam])
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            together = narrow.scores(Sequences.of(HISTORIES))
        finally:
            torch.set_num_threads(1)
        for history, found, items in zip(HISTORIES, together, expected):
            assert np.argsort(-found, kind="stable")[:width].tolist() == items
            np.testing.assert_allclose(found[items], narrow.scores(Sequences.of([history]))[0][items], rtol=1e-5)


def test_score_is_exact_for_the_items_asked(model):
    items = [69, 4, 4, 31]
    found = model.score(HISTORIES, items)
    np.testing.assert_allclose(found, np.stack([teacher_forced(model, history)[items] for history in HISTORIES]), rtol=1e-4, atol=1e-4)
    if model.recipe.network.tree_softmax:  # what may follow is known before training: the probabilities of all items add up to 1
        everything = model.score(HISTORIES, list(range(N_ITEMS)))
        np.testing.assert_allclose(np.exp(everything).sum(1), 1, rtol=1e-4)


def test_a_recommendation_misses_nothing_however_much_is_asked(dataset):
    model = Tiger(**SMALL, beam=2).fit(dataset)  # a beam that finds two items by itself
    cases = ({}, N_ITEMS - 4), ({"exclude_seen": False}, N_ITEMS), ({"only": [1, 2, 5, 6, 7]}, 3), ({"exclude": [9]}, N_ITEMS - 5)
    for asked, expected in cases:
        ids, scores = model.recommend([[1, 2, 3, 4]], k=N_ITEMS, **asked)
        assert len(set(ids[0])) == expected and np.isfinite(scores).all()
    assert [len(line) for line in model.recommend(HISTORIES, k=9)[0]] == [9] * 4
    assert model.recommend(HISTORIES, k=9)[0] == [model.recommend([history], k=9)[0][0] for history in HISTORIES]
    assert np.isfinite(model.scores(Sequences.of(HISTORIES))).sum(1).tolist() == [2] * 4  # but an evaluation sees the beam


def test_a_wider_beam_finds_nothing_worse(model):
    """With the whole catalogue searched the best k are the k of highest probability; a beam's own best can only be equal or lower."""
    best = np.stack([np.sort(teacher_forced(model, history))[::-1] for history in HISTORIES])
    narrow = copy(model)  # fitted anew, validation by another beam might keep another epoch
    network = model.recipe.network.model_copy(update={"beam": 3})
    narrow.recipe = model.recipe.model_copy(update={"network": network})
    np.testing.assert_array_less(np.sort(narrow.scores(Sequences.of(HISTORIES)))[:, ::-1][:, :3], best[:, :3] + 1e-4)
    _, scores = narrow.recommend(HISTORIES, k=N_ITEMS, exclude_seen=False)
    np.testing.assert_allclose(scores, best, rtol=1e-4, atol=1e-4)


def test_every_item_but_a_sequences_first_is_a_target_once_with_its_whole_history(model, dataset):
    train = dataset.split().train
    places = np.concatenate(model._batches(train, 1))
    starts = np.repeat(train.offsets[:-1], train.lengths)
    assert sorted(places.tolist()) == [place for place in range(len(train.items)) if place > starts[place]]
    assert not np.array_equal(places, np.concatenate(model._batches(train, 2)))
    np.testing.assert_array_equal(places, np.concatenate(model._batches(train, 1)))
    assert max(len(batch) for batch in model._batches(train, 1)) == 64

    read = []
    network, encode = model.network, model.network.encode
    network.encode = lambda histories: read.extend(histories[i].tolist() for i in range(len(histories))) or encode(histories)
    try:
        model._loss(places)
    finally:
        del network.encode
    expected = [train.items[max(starts[place], place - 5) : place].tolist() for place in places]
    assert sorted(read) == sorted(expected) and [len(one) for one in read] == sorted(len(one) for one in read)


def test_the_loss_is_the_mean_cross_entropy_of_the_four_codes(model, dataset):
    train = dataset.split().train
    places = model._batches(train, 1)[0]
    starts = np.repeat(train.offsets[:-1], train.lengths)
    total, words = 0.0, torch.stack(model.network.words())
    for place in places:
        history, codes = train.items[max(starts[place], place - 5) : place], model.network.codes[int(train.items[place])]
        with torch.inference_mode():
            states = model.network.write(*model.network.encode(Sequences.of([history])), codes.unsqueeze(0))[0]
            logits = torch.einsum("hw,hkw->hk", model.network.query(states), words)
            logits = torch.stack([may_follow(model, line, codes[:h].tolist()) for h, line in enumerate(logits)])
            total += F.cross_entropy(logits, codes).item()
    np.testing.assert_allclose(model._loss(places).item(), total / len(places), rtol=1e-4)


def test_a_run_from_before_the_softmax_knew_the_tree_is_read(dataset, tmp_path):
    model = Tiger(**SMALL, tree_softmax=False).fit(dataset)
    model.save(tmp_path)
    as_of_before(tmp_path, "tree_softmax: false", "network.tree")
    again = Recommender.load(tmp_path)
    assert not again.recipe.network.tree_softmax
    assert again.recommend([[1, 2, 3]]) == model.recommend([[1, 2, 3]])


def test_new_items_share_in_the_probability(model):
    """What may follow is what the present catalogue has, also where some items were asked for before."""
    model = copy(model)
    model.recipe = model.recipe.model_copy(update={"network": model.recipe.network.model_copy(update={"beam": N_ITEMS + 1})})
    model.score(HISTORIES, [1, 2, 7])
    codes = model.network.codes.numpy()
    new = codes[[7]].copy()
    new[0, -1] = codes[:, -1].max() + 1
    more = model.extended(model._prepared["vectors"][[7]].numpy(), new)
    before, after = (np.exp(one.scores(Sequences.of(HISTORIES))) for one in (model, more))
    if not model.recipe.network.tree_softmax:
        np.testing.assert_allclose(after[:, :N_ITEMS], before, rtol=1e-4)
        return
    np.testing.assert_allclose(after.sum(1), 1, rtol=1e-4)
    np.testing.assert_allclose(after[:, 7] + after[:, N_ITEMS], before[:, 7], rtol=1e-3)
    for one, total in ((model, before), (more, after)):  # of some items alone the same as among all
        part = one._among(np.array([7, 9]))
        np.testing.assert_allclose(np.exp(part.scores(Sequences.of(HISTORIES)))[:, [7, 9]], total[:, [7, 9]], rtol=1e-3)


def test_bfloat16_trains_and_ranks_like_float32(dataset):
    same = {"dropout": 0.1, "epochs": 4}
    exact, low = (Tiger(**SMALL | same | {"precision": precision}).fit(dataset) for precision in ("float32", "bfloat16"))
    assert abs(exact.log[-1]["loss"] - low.log[-1]["loss"]) < 0.1
    items = list(range(N_ITEMS))
    a, b = exact.score(HISTORIES, items), low.score(HISTORIES, items)
    assert min(np.corrcoef(*pair)[0, 1] for pair in zip(a, b)) > 0.9
    again = Tiger(**SMALL | same | {"precision": "bfloat16"}).fit(dataset)
    np.testing.assert_array_equal(b, again.score(HISTORIES, items))  # the compiled dropout, too, follows the seed


def test_codes_are_unique_and_code_level_groups_are_those_without_the_last(model):
    codes = model.catalogue()[1]
    assert len(np.unique(codes, axis=0)) == N_ITEMS and codes.shape[1] == 4
    groups = model.code_groups()
    assert groups.shape == (N_ITEMS,)
    for a in range(N_ITEMS):
        assert ((groups == groups[a]) == (codes[:, :3] == codes[a, :3]).all(1)).all()


def test_a_number_for_repeated_items_is_refused():
    with pytest.raises(ConfigError, match="repeat must be false"):
        Tiger(repeat=True)
