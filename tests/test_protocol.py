import json
from types import SimpleNamespace

import ir_measures
import numpy as np
import pytest
import torch
from ir_measures import RR, R, nDCG

from asymrec.errors import EvaluationError
from asymrec.evaluation import Evaluation, evaluate, paired_bootstrap
from asymrec.evaluation import metrics as m
from asymrec.evaluation.compare import _resample
from asymrec.evaluation.slices import popularity_groups


class Rows:
    def __init__(self, rows):
        self.offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        self.items = np.array([item for row in rows for item in row], np.int32)

    def __len__(self):
        return len(self.offsets) - 1

    def __getitem__(self, row):
        return self.items[self.offsets[row] : self.offsets[row + 1]]

    def take(self, rows):
        return Rows([self[row] for row in rows])


class Scorer:
    """Scores that depend on the history alone: equal histories, equal scores, whatever the batch."""

    def __init__(self, n_items, kind=np.asarray):
        self.table = np.random.default_rng(5).normal(size=(n_items, n_items)).astype(np.float32)
        self.kind, self.most = kind, 0

    def scores(self, histories):
        self.most = max(self.most, len(histories))
        return self.kind(np.stack([self.table[histories[row]].sum(0) for row in range(len(histories))]))


def examples(users=70, n_items=40, seed=0, most=3):
    rng = np.random.default_rng(seed)
    return SimpleNamespace(
        users=np.arange(users, dtype=np.int32) * 3,
        histories=Rows([rng.choice(n_items, rng.integers(0, 9)) for _ in range(users)]),
        targets=Rows([rng.choice(n_items, rng.integers(1, most + 1)) for _ in range(users)]),  # with repeats
    )


COUNTS = np.array([30, 12, 9, 7, 5, 4, 4, 3, 3, 2] + [1] * 10 + [0] * 20)


def test_one_pass_gives_both_protocols_whatever_the_batch():
    data, model = examples(), Scorer(40)
    whole = evaluate(model, data, 40, COUNTS)
    assert model.most == 70
    model.most = 0
    parts = evaluate(model, data, 40, COUNTS, batch=512, memory=4 * 40 * 11)
    assert model.most == 11
    torches = evaluate(Scorer(40, torch.from_numpy), data, 40, COUNTS, batch=7)
    for other in (parts, torches):
        for protocol in ("kept", "removed"):
            np.testing.assert_array_equal(whole.ranks[protocol], other.ranks[protocol])
            assert whole.metrics[protocol] == pytest.approx(other.metrics[protocol])
        assert whole.metrics["slices"] == other.metrics["slices"]
        assert whole.metrics["effective_rank"] == pytest.approx(other.metrics["effective_rank"])
    scores = model.scores(data.histories)
    distinct = Rows([list(dict.fromkeys(data.targets[u].tolist())) for u in range(70)])
    np.testing.assert_array_equal(whole.targets, distinct.items)
    np.testing.assert_array_equal(whole.ranks["kept"], m.ranks(scores, distinct))
    np.testing.assert_array_equal(whole.ranks["removed"], m.ranks(scores, distinct, data.histories))
    assert whole.metrics["kept"]["ndcg@10"] == whole.per_user("ndcg@10").mean()
    assert whole.metrics["removed"]["recall@5"] == whole.per_user("recall@5", "removed").mean()
    assert whole.metrics["removed"]["missed"] == (whole.ranks["removed"] == m.MISSED).sum() > 0
    assert whole.metrics["kept"]["missed"] == 0
    assert json.loads(json.dumps(whole.metrics)) == whole.metrics


def test_exposure_is_of_what_each_protocol_shows():
    data = examples()
    found = evaluate(Scorer(40), data, 40, COUNTS, ks=(5,))
    scores = Scorer(40).scores(data.histories)
    for protocol in ("kept", "removed"):
        if protocol == "removed":
            for row in range(70):
                scores[row, data.histories[row]] = -np.inf
        shown = np.bincount(np.argsort(-scores, axis=1)[:, :5].ravel(), minlength=40)
        assert found.metrics[protocol]["coverage@5"] == pytest.approx((shown > 0).mean())
        assert found.metrics[protocol]["gini@5"] == pytest.approx(m.gini(shown))
        assert found.metrics[protocol]["novelty@5"] == pytest.approx(m.novelty(shown, COUNTS))


def test_one_protocol_alone():
    both, kept = (evaluate(Scorer(40), examples(), 40, COUNTS, history=history) for history in ("both", "kept"))
    assert "removed" not in kept.metrics
    assert "removed" not in kept.metrics["slices"]["history"]["1-5"]
    assert kept.metrics["kept"] == both.metrics["kept"]
    with pytest.raises(EvaluationError, match="no ranks with the history removed"):
        kept.per_user("ndcg@10", "removed")


def test_popularity_groups_are_thirds_of_interactions():
    groups = popularity_groups(COUNTS)
    assert COUNTS.sum() == 89
    # 30 is before 1/3 of 89 = 29.67 only for item 0; 42, 51, 58 are before 2/3 = 59.33
    assert groups.tolist() == [0] + [1] * 4 + [2] * 15 + [3] * 20
    np.testing.assert_array_equal(popularity_groups(COUNTS[::-1])[::-1] == 3, COUNTS == 0)
    assert popularity_groups(np.zeros(3)).tolist() == [3, 3, 3]


def test_slices_hold_their_own_targets_at_ranks_in_the_whole_catalogue():
    data = examples(users=200, seed=3)
    found = evaluate(Scorer(40), data, 40, COUNTS)
    groups = popularity_groups(COUNTS)[found.targets]
    rows = np.repeat(np.arange(200), np.diff(found.offsets))
    slices = found.metrics["slices"]["popularity"]
    assert sum(part["items"] for part in slices.values()) == 40
    assert sum(part["interactions"] for part in slices.values()) == 89
    for index, name in enumerate(("head", "mid", "tail", "cold")):
        own = [found.ranks["kept"][(rows == u) & (groups == index)] for u in range(200)]
        own = [ranks for ranks in own if len(ranks)]
        assert slices[name]["users"] == len(own)
        assert slices[name]["kept"]["recall@10"] == pytest.approx(np.mean([(ranks <= 10).mean() for ranks in own]))
        assert slices[name]["kept"]["mrr@20"] == pytest.approx(np.mean([1 / ranks.min() if ranks.min() <= 20 else 0 for ranks in own]))
    bins = found.metrics["slices"]["history"]
    lengths = np.diff(data.histories.offsets)
    assert list(bins) == ["0", "1-5", "6-10"]
    assert [part["users"] for part in bins.values()] == [(lengths == 0).sum(), ((lengths > 0) & (lengths < 6)).sum(), (lengths > 5).sum()]
    weighted = sum(part["users"] * part["removed"]["ndcg@10"] for part in bins.values()) / 200
    assert weighted == pytest.approx(found.metrics["removed"]["ndcg@10"])


class Distinct(Scorer):
    """No two items alike, after an empty history either."""

    def scores(self, histories):
        return super().scores(histories) + np.linspace(0, 1e-3, 40, dtype=np.float32)


class Tied(Scorer):
    """Few distinct scores, and some that say "never"."""

    def scores(self, histories):
        scores = np.round(super().scores(histories))
        return np.where(scores < -3, -np.inf, scores).astype(np.float32)


def judged(scores, targets, seen):
    """What ir_measures finds: {"ndcg@10": mean, ...}. scores: a row a user of its candidates, {name: score}; distinct in a row."""
    qrels = [ir_measures.Qrel(str(u), str(t), 1) for u, own in enumerate(targets) for t in own]
    run = [ir_measures.ScoredDoc(str(u), str(i), float(v)) for u, row in enumerate(scores) for i, v in row.items() if i not in seen[u]]
    names = {measure @ k: f"{name}@{k}" for measure, name in ((R, "recall"), (nDCG, "ndcg"), (RR, "mrr")) for k in (5, 10, 20)}
    sums = dict.fromkeys(names.values(), 0.0)
    for value in ir_measures.iter_calc(list(names), qrels, run):
        sums[names[value.measure]] += value.value
    return {name: value / len(targets) for name, value in sums.items()}


def rank_of(place, candidates, scores, order):
    """1 + the others at least as good; of the user's own targets only those that `order` names before it. MISSED where there is none."""
    if place not in candidates or scores[place] == -np.inf:
        return m.MISSED
    later = order[order.index(place) + 1 :]
    return 1 + sum(scores[i] > scores[place] or (scores[i] == scores[place] and i not in later) for i in candidates if i != place)


@pytest.mark.parametrize("model", [Distinct(40), Tied(40)], ids=["distinct", "tied"])
@pytest.mark.parametrize("batch", [512, 9])
def test_cold_targets_among_cold_items(model, batch):
    data = examples(users=90, seed=4)
    slices = evaluate(model, data, 40, COUNTS, batch=batch).metrics["slices"]
    assert (slices["warmth"]["warm"]["items"], slices["warmth"]["cold"]["items"]) == (20, 20)
    assert slices["warmth"]["cold"] == slices["popularity"]["cold"]
    scores = model.scores(data.histories)
    own = [[t for t in dict.fromkeys(data.targets[u].tolist()) if COUNTS[t] == 0] for u in range(90)]
    users = [u for u in range(90) if own[u]]
    found = slices["warmth"]["cold_only"]
    assert (found["users"], found["items"], found["interactions"]) == (len(users), 20, 0)
    assert 20 < len(users) < 90
    for protocol in ("kept", "removed"):
        gone = {u: set(data.histories[u].tolist()) if protocol == "removed" else set() for u in users}
        ranks = [[rank_of(t, [i for i in range(20, 40) if i not in gone[u]], scores[u], own[u]) for t in own[u]] for u in users]
        flat = np.concatenate(ranks)
        assert found[protocol] == pytest.approx(m.means(flat, np.cumsum([0, *map(len, ranks)])))
        if type(model) is Distinct:
            rows = [{i: scores[u, i] for i in range(20, 40)} for u in users]
            assert found[protocol] == pytest.approx(judged(rows, [own[u] for u in users], [gone[u] for u in users]))
    assert found["kept"]["recall@10"] > slices["warmth"]["cold"]["kept"]["recall@10"]


def test_frequency_bins_and_warm_items():
    data = examples(users=200, seed=3)
    found = evaluate(Scorer(40), data, 40, COUNTS)
    rows = np.repeat(np.arange(200), np.diff(found.offsets))
    slices = found.metrics["slices"]
    assert list(slices["frequency"]) == ["0-2", "3-5", "6-10", "11-20", "21+"]
    inside = {"0-2": COUNTS <= 2, "3-5": (COUNTS > 2) & (COUNTS < 6), "6-10": (COUNTS > 5) & (COUNTS < 11), "11-20": COUNTS == 12}
    inside = [*((slices["frequency"][name], items) for name, items in inside.items()), (slices["warmth"]["warm"], COUNTS > 0)]
    for part, items in inside:
        own = [found.ranks["removed"][(rows == u) & items[found.targets]] for u in range(200)]
        own = [ranks for ranks in own if len(ranks)]
        assert (part["users"], part["items"], part["interactions"]) == (len(own), items.sum(), COUNTS[items].sum())
        assert part["removed"]["recall@10"] == pytest.approx(np.mean([(ranks <= 10).mean() for ranks in own]))


@pytest.mark.parametrize("model", [Distinct(40), Tied(40)], ids=["distinct", "tied"])
@pytest.mark.parametrize("batch", [512, 9])
def test_code_level_hits(model, batch):
    data = examples(users=80, seed=6)
    groups = np.random.default_rng(1).choice([3, 7, 8, 11, 12, 20, 21, 22, 30, 99, 100, 101, 102, 103, 104, 105], 40)
    found = evaluate(model, data, 40, COUNTS, groups=groups, batch=batch).metrics
    assert found["code_level"]["ids"] == len(set(groups))
    scores = model.scores(data.histories)
    own = [list(dict.fromkeys(groups[data.targets[u]].tolist())) for u in range(80)]
    for protocol in ("kept", "removed"):
        ranks, rows = [], []
        for u in range(80):
            gone = set(data.histories[u].tolist()) if protocol == "removed" else set()
            left = [i for i in range(40) if i not in gone]
            best = {g: max((scores[u, i] for i in left if groups[i] == g), default=-np.inf) for g in set(groups)}
            rows.append({g: v for g, v in best.items() if v > -np.inf})
            ranks.append([rank_of(g, best, best, own[u]) for g in own[u]])
        flat = np.concatenate(ranks)
        assert found["code_level"][protocol] == pytest.approx(m.means(flat, np.cumsum([0, *map(len, ranks)])))
        if type(model) is Distinct:
            assert found["code_level"][protocol] == pytest.approx(judged(rows, own, [()] * 80))
        assert found["code_level"][protocol]["recall@10"] > found[protocol]["recall@10"]


def test_the_code_level_rank_of_one_target():
    """1 + the other ids whose best item scores at least as high as the best item of the target's id."""

    class One:
        def scores(self, histories):
            return np.array([[0.9, 0.8, 0.7, 0.6, 0.5, 0.1, 0.7]], np.float32)

    groups = np.array([0, 0, 1, 2, 2, 3, 4])
    data = SimpleNamespace(users=np.array([0]), histories=Rows([[0, 5]]), targets=Rows([[4]]))
    found = evaluate(One(), data, 7, np.ones(7, int), groups=groups, ks=(3, 4, 5))
    assert found.ranks["kept"].tolist() == [6] and found.ranks["removed"].tolist() == [5]
    level = found.metrics["code_level"]
    assert level["kept"]["mrr@5"] == 1 / 4 and level["kept"]["recall@3"] == 0  # ids 0, 1 and 4 come first; a tie does not help
    assert level["removed"]["mrr@5"] == 1 / 4  # id 0 still has an item
    data.targets = Rows([[5, 4, 3]])  # the id of 5 has no other item; those of 4 and 3 are one id, one target
    found = evaluate(One(), data, 7, np.ones(7, int), groups=groups, ks=(5,)).metrics["code_level"]
    assert found["kept"]["recall@5"] == 1 and found["removed"]["recall@5"] == 1 / 2


def test_ids_of_one_item_each_are_items():
    for model in (Scorer(40), Tied(40)):
        found = evaluate(model, examples(), 40, COUNTS, groups=np.random.default_rng(0).permutation(40) * 5).metrics
        for protocol in ("kept", "removed"):
            level = found["code_level"][protocol]
            assert level == {name: found[protocol][name] for name in level}
    assert "code_level" not in evaluate(Scorer(40), examples(), 40, COUNTS).metrics


def test_without_cold_items():
    slices = evaluate(Scorer(40), examples(), 40, COUNTS + 1).metrics["slices"]
    assert slices["warmth"]["cold_only"] == slices["warmth"]["cold"] == {"users": 0, "items": 0, "interactions": 0}


def test_a_group_without_users_has_no_metrics():
    data = SimpleNamespace(users=np.array([4]), histories=Rows([[1]]), targets=Rows([[0]]))
    slices = evaluate(Scorer(40), data, 40, COUNTS).metrics["slices"]["popularity"]
    assert slices["cold"] == {"users": 0, "items": 20, "interactions": 0}
    assert slices["head"]["users"] == 1


def test_never_is_never_recommended():
    class Popular:
        def scores(self, histories):
            return np.tile(np.where(COUNTS > 0, COUNTS, -np.inf).astype(np.float32), (len(histories), 1))

    found = evaluate(Popular(), examples(), 40, COUNTS, ks=(40,))
    assert found.metrics["kept"]["coverage@40"] == 0.5
    assert (found.ranks["kept"][found.targets >= 20] == m.MISSED).all()
    assert found.metrics["effective_rank"] is None


def test_save_and_load(tmp_path):
    found = evaluate(Scorer(40), examples(), 40, COUNTS)
    found.save(tmp_path / "ranks.parquet")
    again = Evaluation.load(tmp_path / "ranks.parquet")
    assert again.metrics == found.metrics
    for name in ("users", "offsets", "targets"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    for protocol in ("kept", "removed"):
        np.testing.assert_array_equal(again.per_user("ndcg@7", protocol), found.per_user("ndcg@7", protocol))
    (tmp_path / "other").write_text("no parquet")
    with pytest.raises(EvaluationError, match="does not hold the ranks"):
        Evaluation.load(tmp_path / "other")
    with pytest.raises(EvaluationError, match="cannot read"):
        Evaluation.load(tmp_path / "nowhere")


def test_refusals():
    data = examples()

    class Bad:
        def __init__(self, value):
            self.value = value

        def scores(self, histories):
            return self.value(len(histories))

    def nan(b):
        scores = np.zeros((b, 40), np.float32)
        scores[-1, 33] = np.nan
        return scores

    with pytest.raises(EvaluationError, match="examples 0 to 69: the score of item 33 in row 69 is NaN"):
        evaluate(Bad(nan), data, 40, COUNTS)
    with pytest.raises(EvaluationError, match=r"expected scores \[70, 40\], got \[70, 39\]"):
        evaluate(Bad(lambda b: np.zeros((b, 39))), data, 40, COUNTS)
    with pytest.raises(EvaluationError, match="39 training counts for 40 items"):
        evaluate(Scorer(40), data, 40, COUNTS[1:])
    with pytest.raises(EvaluationError, match=r"groups must be integers \[40\], not int64 \[39\]"):
        evaluate(Scorer(40), data, 40, COUNTS, groups=np.arange(39))
    with pytest.raises(EvaluationError, match="groups must be integers"):
        evaluate(Scorer(40), data, 40, COUNTS, groups=np.zeros(40))
    with pytest.raises(EvaluationError, match="no example"):
        evaluate(Scorer(40), SimpleNamespace(users=np.zeros(0), histories=Rows([]), targets=Rows([])), 40, COUNTS)
    with pytest.raises(EvaluationError, match="two examples"):
        evaluate(Scorer(40), SimpleNamespace(users=np.zeros(70), histories=data.histories, targets=data.targets), 40, COUNTS)
    with pytest.raises(EvaluationError, match="example 1 has no target"):
        evaluate(Scorer(40), SimpleNamespace(users=np.arange(2), histories=Rows([[], []]), targets=Rows([[1], []])), 40, COUNTS)
    with pytest.raises(EvaluationError, match="'accuracy' is no metric"):
        evaluate(Scorer(40), data, 40, COUNTS).per_user("accuracy")


def system(ranks, users=None):
    n = len(ranks)
    users = np.arange(n, dtype=np.int32) if users is None else users
    return Evaluation({}, users, np.arange(n + 1), users.copy(), {"kept": np.asarray(ranks, np.int32)})


def test_bootstrap_finds_a_real_difference():
    rng = np.random.default_rng(0)
    ranks = rng.integers(1, 60, 3000)
    better = np.where(rng.random(3000) < 0.1, np.maximum(ranks // 4, 1), ranks)
    found = paired_bootstrap(system(better), system(ranks))
    assert 0 < found.low < found.difference < found.high
    assert found.p < 0.001
    assert found.difference == pytest.approx(found.a - found.b)
    # the normal approximation of the mean's error is an oracle at n = 3000
    d = system(better).per_user("ndcg@10") - system(ranks).per_user("ndcg@10")
    error = d.std() / np.sqrt(3000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_bootstrap_of_equal_systems():
    rng = np.random.default_rng(1)
    ranks = rng.integers(1, 60, 2000)
    same = paired_bootstrap(system(ranks), system(ranks))
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    inside = 0
    for seed in range(40):
        a, b = (system(np.random.default_rng([seed, side]).integers(1, 60, 500)) for side in (0, 1))
        found = paired_bootstrap(a, b, samples=1000, seed=seed)
        inside += found.low <= 0 <= found.high
    assert inside >= 34  # 95 % of 40 is 38


def test_bootstrap_is_antisymmetric():
    rng = np.random.default_rng(2)
    a, b = system(rng.integers(1, 40, 800)), system(rng.integers(1, 40, 800))
    one, two = paired_bootstrap(a, b, "mrr@20", seed=3), paired_bootstrap(b, a, "mrr@20", seed=3)
    assert (two.difference, two.low, two.high) == pytest.approx((-one.difference, -one.high, -one.low))
    assert two.p == one.p
    assert paired_bootstrap(a, b, "mrr@20", seed=3) == one


def test_drawing_differences_is_drawing_users():
    d = np.random.default_rng(4).choice([0.0, 0.0, 0.0, 0.5, -1.0, 0.3], 200)
    rng = np.random.default_rng(5)
    plain = d[rng.integers(200, size=(20_000, 200))].mean(1)
    mine = _resample(d, 20_000, rng)
    np.testing.assert_allclose(np.percentile(mine, [2.5, 25, 50, 75, 97.5]), np.percentile(plain, [2.5, 25, 50, 75, 97.5]), atol=0.003)


def test_bootstrap_aligns_by_user():
    rng = np.random.default_rng(6)
    ranks = rng.integers(1, 30, 100)
    shuffled = rng.permutation(100)
    users = np.arange(100, dtype=np.int32)
    found = paired_bootstrap(system(ranks), system(ranks[shuffled][:90], users[shuffled][:90]))
    assert (found.difference, found.users, found.left_out) == (0, 90, 10)
    with pytest.raises(EvaluationError, match="no user in common"):
        paired_bootstrap(system(ranks), system(ranks, users + 100))
    other = system(ranks)
    other.targets[17] += 1
    with pytest.raises(EvaluationError, match=r"1 users have other targets .* user row 17"):
        paired_bootstrap(system(ranks), other)
