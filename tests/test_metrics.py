import ir_measures
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, R, nDCG

from asymrec.errors import EvaluationError
from asymrec.evaluation import metrics as m


class Rows:
    def __init__(self, rows):
        self.offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        self.items = np.array([item for row in rows for item in row], np.int32)


def by_sorting(scores, targets, seen):
    """The definition spelled out: one real ranking a row, ties broken against the targets."""
    found = []
    for line, own, gone in zip(scores, targets, seen):
        items = [i for i in range(len(line)) if i not in gone and line[i] > -np.inf]
        place = {item: at for at, item in enumerate(own)}
        items.sort(key=lambda i: (-line[i], i in place, place.get(i, 0)))
        found += [items.index(t) + 1 if t in items else m.MISSED for t in own]
    return found


@pytest.mark.parametrize("most", [1, 6])
def test_agrees_with_ir_measures(most):
    rng = np.random.default_rng(0)
    n, users = 60, 80
    scores = np.stack([rng.permutation(n) for _ in range(users)]).astype(np.float32)  # distinct in a row
    targets = [rng.choice(n, rng.integers(1, most + 1), replace=False) for _ in range(users)]
    seen = [rng.choice(n, rng.integers(0, 20)) for _ in range(users)]
    for protocol, gone in (("kept", [[]] * users), ("removed", seen)):
        ranks = m.ranks(scores, Rows(targets), None if protocol == "kept" else Rows(seen))
        mine = m.per_user(ranks, Rows(targets).offsets, (5, 10, 20))
        qrels = [ir_measures.Qrel(str(u), str(t), 1) for u in range(users) for t in targets[u]]
        run = [ir_measures.ScoredDoc(str(u), str(i), float(scores[u, i])) for u in range(users) for i in range(n) if i not in set(gone[u])]
        names = {measure @ k: f"{name}@{k}" for measure, name in ((R, "recall"), (nDCG, "ndcg"), (RR, "mrr")) for k in (5, 10, 20)}
        compared = 0
        for value in ir_measures.iter_calc(list(names), qrels, run):
            assert mine[names[value.measure]][int(value.query_id)] == pytest.approx(value.value, abs=1e-6)
            compared += 1
        assert compared == 9 * users
        assert mine["ndcg@20"].mean() > 0.05


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_ranks_are_those_of_a_real_ranking(data):
    n = data.draw(st.integers(1, 12))
    b = data.draw(st.integers(0, 4))
    value = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0, np.inf])
    scores = np.array([[data.draw(value) for _ in range(n)] for _ in range(b)], np.float32).reshape(b, n)
    targets = [data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True)) for _ in range(b)]
    seen = [data.draw(st.lists(st.integers(0, n - 1), max_size=8)) for _ in range(b)]
    assert m.ranks(scores, Rows(targets)).tolist() == by_sorting(scores, targets, [[]] * b)
    removed = m.ranks(torch.from_numpy(scores), Rows(targets), Rows(seen))
    assert removed.tolist() == by_sorting(scores, targets, seen)
    for values in m.per_user(removed, Rows(targets).offsets, (1, 3, 20)).values():
        assert ((values >= 0) & (values <= 1 + 1e-12)).all()


def test_all_ties_give_the_worst_rank():
    scores = np.zeros((2, 30), np.float32)
    assert m.ranks(scores, Rows([[0], [7, 3]])).tolist() == [30, 29, 30]
    assert m.ranks(scores, Rows([[0], [7, 3]]), Rows([[4, 4, 5], []])).tolist() == [28, 29, 30]


def test_an_excluded_target_is_missed_and_counted():
    scores = np.arange(10, dtype=np.float32)[None]
    ranks = m.ranks(scores, Rows([[9, 8]]), Rows([[9]]))
    assert ranks.tolist() == [m.MISSED, 1]
    found = m.per_user(ranks, np.array([0, 2]), (5,))
    assert found["recall@5"].tolist() == [0.5]
    assert found["mrr@5"].tolist() == [1.0]
    assert found["ndcg@5"][0] == pytest.approx(1 / (1 + 1 / np.log2(3)))


def test_half_precision_and_gradients_are_taken():
    scores = torch.arange(8.0, requires_grad=True).to(torch.bfloat16)[None]
    assert m.ranks(scores, Rows([[5]])).tolist() == [3]


@pytest.mark.parametrize(
    ("scores", "targets", "seen", "message"),
    [
        ([[0.0, 1.0], [2.0, np.nan]], [[0], [0]], None, "the score of item 1 in row 1 is NaN"),
        ([[0.0, 1.0]], [[]], None, "row 0 has no target"),
        ([[0.0, 1.0], [0.0, 1.0]], [[0], [1, 1]], None, "row 1 has item 1 twice among its targets"),
        ([[0.0, 1.0]], [[2]], None, r"targets hold an item outside 0 \.\. 1"),
        ([[0.0, 1.0]], [[0]], [[-1]], "seen items hold an item outside"),
        ([[0.0, 1.0]], [[0], [1]], None, "2 rows of targets for 1 rows of scores"),
        ([0.0, 1.0], [[0]], None, "two dimensions"),
    ],
)
def test_refusals(scores, targets, seen, message):
    with pytest.raises(EvaluationError, match=message):
        m.ranks(np.array(scores, np.float32), Rows(targets), None if seen is None else Rows(seen))


def test_exposure_metrics():
    lists = np.array([[0, 1, 2], [0, 1, -1], [0, 3, -1]])
    assert m.exposure(lists, 5, 1).tolist() == [3, 0, 0, 0, 0]
    counts = m.exposure(lists, 5, 3)
    assert counts.tolist() == [3, 2, 1, 1, 0]
    assert m.coverage(counts) == pytest.approx(0.8)
    # by the definition: mean absolute difference over twice the mean
    expected = np.abs(counts[:, None] - counts[None]).mean() / (2 * counts.mean())
    assert m.gini(counts) == pytest.approx(expected)
    assert m.gini(np.full(7, 3)) == pytest.approx(0)
    assert m.gini(np.zeros(4, np.int64)) == 0
    train = np.array([7, 3, 0, 1, 0])
    share = (train + 1) / 16
    assert m.novelty(counts, train) == pytest.approx(-(counts * np.log2(share)).sum() / 7)
    assert m.novelty(np.array([0, 0, 1, 0, 0]), train) > m.novelty(np.array([1, 0, 0, 0, 0]), train)


def test_effective_rank():
    rng = np.random.default_rng(0)
    assert m.effective_rank(np.ones((20, 1)) * rng.normal(size=50)) == pytest.approx(1)
    assert m.effective_rank(np.eye(12)) == pytest.approx(12)
    assert m.effective_rank(np.zeros((3, 4))) == 0
    matrix = rng.normal(size=(40, 90)).astype(np.float32)
    values = np.linalg.svd(matrix, compute_uv=False)
    share = values / values.sum()
    assert m.effective_rank(matrix) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)
    assert m.effective_rank(torch.from_numpy(matrix.T.copy())) == pytest.approx(m.effective_rank(matrix))
