"""Against scikit-learn, and by hand."""

import numpy as np
import pytest
from sklearn.metrics import log_loss as sk_log_loss
from sklearn.metrics import roc_auc_score

from asymrec.errors import EvaluationError
from asymrec.ranking.metrics import auc, calibration, compare, gauc, log_loss, user_aucs


@pytest.fixture
def drawn():
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 500)
    scores = (random.random(500) * 0.6 + labels * 0.3).round(2)  # with ties
    return labels, scores, random.integers(0, 60, 500)


def test_auc_and_log_loss_are_scikit_learns(drawn):
    labels, scores, _ = drawn
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
    assert log_loss(labels, scores.clip(0.01, 0.99)) == pytest.approx(sk_log_loss(labels, scores.clip(0.01, 0.99)))
    assert np.isnan(auc(np.ones(3), np.arange(3)))


def test_gauc_is_the_weighted_mean_of_users(drawn):
    labels, scores, users = drawn
    values, sizes = [], []
    for user in np.unique(users):
        own = users == user
        if len(set(labels[own])) == 2:
            values.append(roc_auc_score(labels[own], scores[own]))
            sizes.append(own.sum())
    assert np.allclose(user_aucs(labels, scores, users)[1], values)
    assert gauc(labels, scores, users) == pytest.approx(np.average(values, weights=sizes))


def test_calibration_by_hand():
    found = calibration(np.array([0, 1, 1, 1]), np.array([0.1, 0.1, 0.9, 0.9]), bins=2)
    assert found["curve"] == [pytest.approx((0.1, 0.5)), pytest.approx((0.9, 1.0))]
    assert found["error"] == pytest.approx((0.4 + 0.1) / 2)
    assert found["ratio"] == pytest.approx(2.0 / 3)


def test_the_interval_holds_the_difference_and_none_of_equals(drawn):
    labels, scores, users = drawn
    worse = scores + np.random.default_rng(1).normal(size=500)
    found = compare(labels, scores, worse, users, draws=200)
    assert found.low < found.difference < found.high and found.low > 0
    same = compare(labels, scores, scores * 2, users, draws=20)
    assert (same.difference, same.low, same.high) == (0, 0, 0)


def test_what_cannot_be_measured_is_told():
    with pytest.raises(EvaluationError, match="NaN"):
        auc(np.array([0, 1]), np.array([0.1, np.nan]))
    with pytest.raises(EvaluationError, match="0 or 1"):
        auc(np.array([0, 2]), np.array([0.1, 0.2]))


def test_several_runs_are_compared_by_their_mean():
    random = np.random.default_rng(0)
    labels, users = random.integers(0, 2, 400), random.integers(0, 40, 400)
    good, bad = (labels + noise * random.normal(size=(3, 400)) for noise in (1.0, 3.0))
    found = compare(labels, good, bad, users)
    assert found.difference == pytest.approx(np.mean([auc(labels, one) for one in good]) - np.mean([auc(labels, one) for one in bad]))
    assert found.low < found.difference < found.high and found.low > 0
    one = compare(labels, good[:1], bad[:1], users)
    assert one == compare(labels, good[0], bad[0], users)
