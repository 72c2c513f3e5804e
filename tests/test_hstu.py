"""HSTU's decoder against a plain loop; what it may see, and what times mean to it."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from asymrec import Dataset
from asymrec.data import Sequences
from asymrec.data.batches import pack
from asymrec.evaluation import evaluate
from asymrec.models import HSTU, hstu
from asymrec.nn.hstu import AT_ONCE, BUCKETS, HSTUDecoder, time_buckets

HISTORIES = [[1, 2, 3, 4, 5], [6], [7, 8, 7], [9, 1, 2, 3, 4, 5, 6, 8, 7], [3, 3]]
TIMES = [[0, 10, 10, 500, 90_000], [77], [5, 6, 4_000], [10, 20, 25, 25, 25, 800, 900, 1_000_000, 1_000_001], [0, 60]]


def learned(width=16, layers=2, heads=4, unit=60.0, **more):
    """A decoder whose every weight matters, as after training."""
    torch.manual_seed(1)
    decoder = HSTUDecoder(width, layers, heads, 0.3, 9, unit=unit, **more).eval()
    for weight in decoder.parameters():
        torch.nn.init.normal_(weight, std=0.4 if weight.ndim > 1 else 1.0)
    return decoder


@pytest.fixture
def decoder():
    return learned()


@pytest.fixture
def table():
    return torch.randn(10, 16, generator=torch.Generator().manual_seed(0))


def run(decoder, table, histories, times=None):
    """States of packed histories, [total, width]."""
    batch = pack(Sequences.of(histories, times), None, 9)
    items = torch.from_numpy(np.maximum(batch.items, 0))
    out = decoder(table[items], torch.from_numpy(batch.segment), None if times is None else torch.from_numpy(batch.times))
    return out.flatten(0, 1)[torch.from_numpy(batch.places)]


def silu(x):
    return x / (1 + np.exp(-x))


def normed(x, norm):
    weight, bias = (p.detach().double().numpy() for p in (norm.weight, norm.bias))
    return (x - x.mean()) / np.sqrt(x.var() + norm.eps) * weight + bias


def by_hand(decoder, x, times):
    """One history, place by place: x float64 [n, width], times a list of n or None."""
    for block in decoder.blocks:
        w_in, b_in, w_out, b_out, distance, time = (
            p.detach().double().numpy()
            for p in (block.uvqk.weight, block.uvqk.bias, block.out.weight, block.out.bias, block.distance, block.time)
        )
        width, heads = x.shape[1], block.heads
        head = width // heads
        split = [np.split(silu(w_in @ normed(place, block.norm) + b_in), 4) for place in x]
        out = []
        for i in range(len(x)):
            taken = np.zeros(width)
            for h in range(heads):
                part = slice(head * h, head * (h + 1))
                for j in range(i + 1):
                    bucket = 0
                    if times is not None:
                        between = (times[i] - times[j]) / decoder.unit.item()
                        bucket = int(np.clip(np.round(2 * np.log2(between)) + 32, 0, 80)) + 2 if between > 0 else 1
                    product = split[i][2][part] @ split[j][3][part] + distance[h, i - j] + time[h, bucket]
                    taken[part] += silu(product) * split[j][1][part] / (i + 1)
            out.append(x[i] + w_out @ (normed(taken, block.norm_taken) * split[i][0]) + b_out)
        x = np.stack(out)
    return np.stack([normed(place, decoder.norm) for place in x])


@pytest.mark.parametrize("times", [TIMES, None], ids=["times", "no times"])
def test_states_are_those_of_a_plain_loop(decoder, table, times):
    expected = [by_hand(decoder, table[history].double().numpy(), times and times[i]) for i, history in enumerate(HISTORIES)]
    found = run(decoder, table, HISTORIES, times).detach().numpy()
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("times", [TIMES, None], ids=["times", "no times"])
def test_a_packed_history_has_the_states_it_has_alone(decoder, table, times):
    together = run(decoder, table, HISTORIES, times)
    alone = [run(decoder, table, [history], times and [times[i]]) for i, history in enumerate(HISTORIES)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_a_state_does_not_depend_on_what_comes_later(decoder, table):
    first = run(decoder, table, [[1, 2, 3, 4, 5]], [[0, 10, 20, 30, 40]])
    other = run(decoder, table, [[1, 2, 3, 9, 8]], [[0, 10, 20, 9_000, 10_000]])
    torch.testing.assert_close(first[:3], other[:3])
    assert (first[3] - other[3]).abs().max() > 1e-3


def test_order_and_times_matter(decoder, table):
    first = run(decoder, table, [[1, 2, 3]], [[0, 10, 20]])[-1]
    for items, times in (([2, 1, 3], [0, 10, 20]), ([1, 2, 3], [0, 10, 2000])):
        assert (first - run(decoder, table, [items], [times])[-1]).abs().max() > 1e-3
    later = run(decoder, table, [[1, 2, 3]], [[5000, 5010, 5020]])[-1]
    torch.testing.assert_close(first, later)  # only differences count


def test_buckets_are_half_octaves_and_know_no_unit():
    times = np.cumsum(np.random.default_rng(0).integers(0, 10_000, (3, 40)) ** 2, axis=1)
    seconds = time_buckets(torch.from_numpy(times), torch.tensor(37.0))
    for scale in (1_000, 86_400, 10**9):
        torch.testing.assert_close(time_buckets(torch.from_numpy(times * scale), torch.tensor(37.0 * scale)), seconds)
    row = torch.tensor([[0, 0, 1, 2, 4, 1 << 50]])
    assert time_buckets(row, torch.tensor(1.0))[0, :, 0].tolist() == [AT_ONCE, AT_ONCE, 34, 36, 38, BUCKETS - 1]
    assert time_buckets(row, torch.tensor(1e18))[0, 4, 0] == 2
    assert (time_buckets(row, torch.tensor(1.0))[0].triu() == AT_ONCE * torch.ones(6, 6).triu()).all()


def test_in_training_the_times_of_some_histories_are_forgotten(table):
    decoder = learned(forget=0.5)
    for module in decoder.modules():
        module.dropout = 0.0
    known, unknown = run(decoder, table, HISTORIES, TIMES), run(decoder, table, HISTORIES)
    decoder.train()
    owners = Sequences.of(HISTORIES).owners
    forgotten = []
    for seed in range(40):
        torch.manual_seed(seed)
        states = run(decoder, table, HISTORIES, TIMES)
        for history in range(len(HISTORIES)):
            here = owners == history
            near = [torch.allclose(states[here], other[here], rtol=1e-4, atol=1e-5) for other in (known, unknown)]
            assert near.count(True) == 1, "all times of a history are known, or none"
            forgotten.append(near[1])
    assert 0.35 < np.mean(forgotten) < 0.65


def clocks(scale=1, seed=0):
    """After a short wait the next item is the one above, after a long one the one below; half an hour in one unit or another."""
    rng = np.random.default_rng(seed)
    users, items, times = [], [], []
    for user in range(300):
        place, now = int(rng.integers(40)), int(rng.integers(10**6))
        step = 1
        for _ in range(int(rng.integers(5, 12))):
            users.append(user)
            items.append(place)
            times.append(now * scale)
            place = (place + step) % 40
            long = rng.random() < 0.5
            now += int(rng.integers(50_000, 100_000) if long else rng.integers(10, 60))
            step = -1 if long else 1
    return Dataset.read(pa.table({"user": users, "item": items, "timestamp": times}), pa.table({"item": np.arange(40)}))


SETTINGS = {
    **{"width": 32, "heads": 2, "layers": 2, "dropout": 0.1, "learning_rate": 1e-2, "epochs": 40, "batch": 256},
    **{"patience": 40, "average": 0.9, "repeat": False, "precision": "float32"},
}


@pytest.fixture(scope="module")
def fitted():
    dataset = clocks()
    return HSTU(**SETTINGS).fit(dataset), dataset


def ndcg(model, dataset, times):
    split = dataset.split()
    histories = split.test.histories
    if not times:
        histories = Sequences(histories.offsets, histories.items)
    test = type(split.test)(split.test.users, histories, split.test.targets)
    return evaluate(model, test, dataset.n_items, split.train_counts(dataset.n_items)).metrics["kept"]["ndcg@5"]


def test_what_only_the_times_tell_is_learned(fitted):
    """One of two items comes next; the times say which. Without them it is a coin's throw, at best (1 + .63) / 2."""
    model, dataset = fitted
    known, unknown = ndcg(model, dataset, True), ndcg(model, dataset, False)
    assert known > 0.93 and 0.6 < unknown < 0.9


def test_seconds_and_milliseconds_give_the_same_model(fitted):
    _, dataset = fitted
    other, same = (HSTU(**SETTINGS | {"epochs": 2}).fit(data) for data in (clocks(1000), dataset))
    np.testing.assert_array_equal(other.scores(clocks(1000).sequences), same.scores(dataset.sequences))
    assert other.network.decoder.unit == 1000 * same.network.decoder.unit


def test_few_users_are_scored_at_one_time(fitted, monkeypatch):
    model, dataset = fitted
    expected = model.scores(dataset.sequences)
    monkeypatch.setattr(hstu, "WEIGHTS_AT_ONCE", 7 * 2 * model.history**2)
    np.testing.assert_allclose(model.scores(dataset.sequences), expected, rtol=1e-3, atol=1e-4)


def test_a_data_set_without_times_is_fitted_too():
    dataset = clocks()
    rows = dataset.sequences
    plain = Dataset.read(pa.table({"user": rows.owners, "item": rows.items}), pa.table({"item": np.arange(40)}))
    assert plain.sequences.times is None
    model = HSTU(**SETTINGS | {"epochs": 10}).fit(plain)
    assert 0.5 < ndcg(model, plain, True) < 0.9
    history = [0, 1, 2]  # times that are brought all the same would be read by numbers that nothing was learned for
    assert model.recommend([history], 5, times=[[5, 6, 1000]]) == model.recommend([history], 5)
