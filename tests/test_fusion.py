"""Fusion: what is mixed, how the weights are found, and that parts keep their own settings."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import SETTINGS, tables
from torch.nn import functional as F

from asymrec import Dataset, Recommender
from asymrec.errors import ConfigError
from asymrec.evaluation import evaluate
from asymrec.models.fusion import Fusion, by_rank, climb, distribution

SETTINGS = SETTINGS | {"precision": "float32"}


def test_distributions():
    logits = np.log(np.array([[1.0, 2.0, 5.0]]))
    np.testing.assert_allclose(distribution(logits, True), [[0.125, 0.25, 0.625]], rtol=1e-6)
    np.testing.assert_allclose(distribution(np.array([[-np.inf, 0.0, 0.0]]), True), [[0, 0.5, 0.5]])
    np.testing.assert_allclose(distribution(np.array([[-3.0, 1.0, 3.0]]), False), [[0, 0.25, 0.75]])
    np.testing.assert_allclose(distribution(np.array([[0.0, -1.0]]), False), [[0.5, 0.5]])


def test_reciprocal_ranks():
    np.testing.assert_allclose(by_rank(np.array([[3.0, 9.0, -np.inf, 3.0]])), [[1 / 52.5, 1 / 51, 0, 1 / 52.5]], rtol=1e-6)


def test_climbing_finds_the_best_mixture_and_never_loses_to_a_part():
    goal = np.array([0.3, 0.0, 0.7])
    weights, best = climb(lambda w: -float(np.abs(w - goal).sum()), 3)
    np.testing.assert_allclose(weights, goal, atol=1e-9)
    assert best == pytest.approx(0, abs=1e-9)
    weights, _ = climb(lambda w: float(w[1]), 3)
    np.testing.assert_allclose(weights, [0, 1, 0])


def test_parts_have_their_own_defaults_presets_and_what_is_set(tmp_path):
    model = Fusion(**SETTINGS, parts=["sasrec:no-repeat", "itemknn", "asymrec"], recency=0.7)
    first, second, third = (part.recipe for part in model.parts)
    assert (first.network.repeat, third.network.repeat) == (False, True) and second.classic.recency == 0.7
    assert first.network.width == SETTINGS["width"]
    dataset = Dataset.read(*tables())
    model.fit(dataset)
    model.save(tmp_path / "run")
    again = Recommender.load(tmp_path / "run")
    assert [part.recipe for part in again.parts] == [part.recipe for part in model.parts]
    np.testing.assert_array_equal(again.scores(dataset.sequences), model.scores(dataset.sequences))
    assert again.weights.sum() == pytest.approx(1)


def test_the_weights_serve_validation_at_least_as_well_as_any_part():
    dataset = Dataset.read(*tables())
    split = dataset.split()
    model = Fusion(**SETTINGS | {"epochs": 12}, parts=["sasrec", "itemknn", "popularity"], learning_rate=5e-3).fit(dataset, split)

    def quality(each):
        return evaluate(each, split.validation, dataset.n_items, split.train_counts(dataset.n_items)).metrics["kept"]["ndcg@10"]

    assert quality(model) >= max(map(quality, model.parts)) and (model.weights >= 0).all()


def test_scores_that_are_no_logits_yet_are_scaled(tmp_path):
    """RPG's are means over codes: as logits they would hold all items about alike. Amounts are taken as they are."""
    dataset = Dataset.read(*tables())
    split = dataset.split()
    model = Fusion(**SETTINGS | {"epochs": 6}, parts=["rpg", "counts"], learning_rate=5e-3).fit(dataset, split)
    scaled, counted = model.scales
    assert scaled > 2 and counted == 1

    def nats(scale):
        scores = torch.from_numpy(model.parts[0].scores(split.validation.histories) * np.float32(scale))
        return F.cross_entropy(scores, torch.from_numpy(split.validation.targets.items.astype(np.int64)))

    assert nats(scaled) < min(nats(scaled * 1.3), nats(scaled / 1.3))
    model.save(tmp_path / "run")
    np.testing.assert_array_equal(Recommender.load(tmp_path / "run").scales, model.scales)


def test_what_a_beam_has_not_found_needs_no_scale():
    split = Dataset.read(*tables()).split()
    beam = SimpleNamespace(logits=True, scores=lambda histories: np.where(np.arange(120) < 9, -1.0, -np.inf) * np.ones((len(histories), 1)))
    assert Fusion()._scale(beam, split.validation, 120) == 1


@pytest.mark.parametrize(
    "parts, said",
    [
        (["fusion"], "'fusion' is no model"),
        (["sasrek"], "'sasrek' is no model"),
        (["sasrec:qq"], "qq"),
        (["asymrec", "flexcode"], "'flexcode' makes item vectors"),
    ],
)
def test_what_cannot_be_a_part_is_said(parts, said):
    with pytest.raises(ConfigError, match=said):
        Fusion(parts=parts)
