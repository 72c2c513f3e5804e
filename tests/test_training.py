"""The loop: what it learns, when it stops, and that it goes on where it was stopped as if it had not been."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from asymrec.config import Recipe
from asymrec.errors import RunError
from asymrec.training import loop
from asymrec.training.checkpoint import Checkpoint
from asymrec.training.loop import train


class Stop(Exception):
    pass


def problem(seed=0):
    """A small regression with dropout: its result depends on every draw of randomness."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.4), nn.Linear(12, 1))
    x = torch.randn(64, 6)
    y = x[:, :1] * 2 - x[:, 1:2]

    def batches(epoch):
        return np.array_split(np.random.default_rng((seed, epoch)).permutation(64), 4)

    def loss(rows):
        return (network(x[rows]) - y[rows]).square().mean()

    def validate():
        return {"ndcg@10": -(network(x) - y).square().mean().item()}

    return network, batches, loss, validate


def settings(**changes):
    return Recipe.of(epochs=6, learning_rate=0.05, patience=99, **changes).training


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def figures(log):
    return [(entry["epoch"], entry["loss"], entry["ndcg@10"], entry["learning_rate"], entry["best"]) for entry in log]


def test_it_learns_and_keeps_the_best_weights():
    network, batches, loss, validate = problem()
    before = validate()["ndcg@10"]
    log = train(network, batches, loss, validate, settings())
    best = max(log, key=lambda entry: entry["ndcg@10"])
    assert best["ndcg@10"] > before + 1
    assert validate()["ndcg@10"] == pytest.approx(best["ndcg@10"], abs=1e-6)
    assert not network.training


def test_equal_seeds_give_equal_weights_whatever_was_drawn_before():
    first, *rest = problem()
    train(first, *rest, settings())
    second, *rest = problem()
    torch.rand(100)
    train(second, *rest, settings())
    assert same(first, second)
    third, *rest = problem()
    train(third, *rest, settings(seed=5))
    assert not same(first, third)


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("stop_at", [1, 3, 4, 5, 11, 23])
def test_an_interrupted_run_ends_like_a_straight_one(tmp_path, monkeypatch, stop_at, average):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)  # after every step
    straight, *rest = problem()
    expected = train(straight, *rest, settings(average=average))

    network, batches, loss, validate = problem()
    steps = 0

    def killed(rows):
        nonlocal steps
        steps += 1
        if steps > stop_at:
            raise Stop
        return loss(rows)

    with pytest.raises(Stop):
        train(network, batches, killed, validate, settings(average=average), checkpoint=Checkpoint(tmp_path / "c"))
    again, *rest = problem()
    log = train(again, *rest, settings(average=average), checkpoint=Checkpoint(tmp_path / "c"))
    assert figures(log) == figures(expected)
    assert same(straight, again)
    finished, *rest = problem()
    train(finished, *rest, settings(average=average), checkpoint=Checkpoint(tmp_path / "c"))  # nothing is left to do
    assert same(straight, finished)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_what_validation_sets_is_kept_but_is_no_part_of_the_training(average):
    """A model of which one number is fitted on the validation part: the best weights hold it, the steps know nothing of it."""
    plain, batches, loss, validate = problem()
    expected = train(plain, batches, loss, validate, settings(average=average))

    network, batches, loss, validate = problem()
    network.register_parameter("fitted", nn.Parameter(torch.zeros(()), requires_grad=False))
    times = iter(range(1, 100))

    def fit_and_judge():
        network.fitted.fill_(next(times))
        network[3].bias.data += 1  # a weight of the training as well
        figures = validate()
        network[3].bias.data -= 1
        return figures | {"ndcg@10": network.fitted.item()}

    log = train(network, batches, loss, fit_and_judge, settings(average=average))
    assert [entry["loss"] for entry in log] == [entry["loss"] for entry in expected]
    assert network.fitted.item() == len(log)


def test_it_stops_when_validation_no_longer_improves():
    network, batches, loss, _ = problem()
    scores = iter([0.1, 0.3, 0.2, 0.3, 0.25, 0.9])
    log = train(network, batches, loss, lambda: {"ndcg@10": next(scores)}, settings().model_copy(update={"patience": 3}))
    assert [entry["best"] for entry in log] == [True, True, False, False, False]


def test_the_learning_rate_rises_then_falls_to_nothing():
    rates = [loop._schedule(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0
    assert rates[9:] == sorted(rates[9:], reverse=True) and rates[-1] < 0.001
    assert all(math.isfinite(loop._schedule(step, 1, warmup)) for step in range(2) for warmup in (0.0, 0.5))


def test_a_damaged_checkpoint_is_refused_with_advice(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c")
    assert checkpoint.load() is None
    checkpoint.save({"a": torch.ones(3)}, {"epoch": 2})
    tensors, values = checkpoint.load()
    assert torch.equal(tensors["a"], torch.ones(3)) and values == {"epoch": 2}
    (tmp_path / "c" / "state.safetensors").write_bytes(b"half")
    with pytest.raises(RunError, match=r"damaged.*delete it"):
        checkpoint.load()


def test_a_checkpoint_of_another_network_is_refused_and_stays(tmp_path):
    train(*problem(), settings(), checkpoint=Checkpoint(tmp_path / "c"))
    begun = (tmp_path / "c" / "state.safetensors").read_bytes()
    _, batches, loss, validate = problem()
    with pytest.raises(RunError, match=r"has another network.*begin it anew"):
        train(nn.Linear(6, 1), batches, loss, validate, settings(), checkpoint=Checkpoint(tmp_path / "c"))
    assert (tmp_path / "c" / "state.safetensors").read_bytes() == begun
