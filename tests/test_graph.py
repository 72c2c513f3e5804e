"""Search of the graph of similar items: what it finds is what exact search finds among the items it came to."""

import numpy as np
import pytest

from asymrec.data import Sequences
from asymrec.retrieval.exact import score_codes
from asymrec.retrieval.graph import CodeGraph
from asymrec.retrieval.index import CodeIndex

N, HEADS, WORDS, WIDTH, NEIGHBOURS = 900, 6, 12, 8, 10


@pytest.fixture(scope="module")
def problem():
    """Items around 30 centres, codes by nearest word in each facet, queries near items: similar items score alike."""
    rng = np.random.default_rng(0)
    words = rng.normal(size=(HEADS, WORDS, WIDTH)).astype(np.float32)
    points = rng.normal(size=(30, HEADS, WIDTH))[rng.integers(30, size=N)] + 0.7 * rng.normal(size=(N, HEADS, WIDTH))
    codes = np.einsum("nhd,hkd->nhk", points, words).argmax(2)
    queries = points[rng.integers(N, size=70)] + rng.normal(size=(70, HEADS, WIDTH))
    logits = np.einsum("bhd,hkd->bhk", queries, words)
    tables = (logits - np.log(np.exp(logits).sum(2, keepdims=True))).astype(np.float32)
    index = CodeIndex(codes, (WORDS,) * HEADS)
    similarity = np.einsum("hkd,hjd->hkj", words, words)
    return index, tables, similarity, CodeGraph.build(index, similarity, NEIGHBOURS)


def recall(found, exact):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), exact.tolist())])


def test_neighbours_are_the_most_similar_items(problem):
    index, _, similarity, graph = problem
    alike = sum(similarity[h][index.codes[:, h][:, None], index.codes[:, h][None]] for h in range(HEADS)) / HEADS
    np.fill_diagonal(alike, -np.inf)
    expected = -np.sort(-alike, axis=1)[:, :NEIGHBOURS]
    np.testing.assert_allclose(np.take_along_axis(alike, graph.neighbours, 1), expected, rtol=1e-5)
    assert all(len(set(line)) == NEIGHBOURS for line in graph.neighbours.tolist())
    shared = CodeGraph.build(index, np.stack([np.eye(WORDS)] * HEADS), 3)
    common = (index.codes[:, None] == index.codes[shared.neighbours]).sum(2)
    most = np.stack([np.sort(np.delete((index.codes == codes).sum(1), i))[-3:][::-1] for i, codes in enumerate(index.codes)])
    np.testing.assert_array_equal(common, most)


@pytest.mark.parametrize("queries", [3, 70])
def test_a_beam_as_wide_as_the_catalogue_is_exact_search(problem, queries):
    index, tables, _, graph = problem
    tables = tables[:queries]
    rows, scores, visited = graph.search(tables, 20, beam=N, steps=0)
    exact, values = index.search(tables, 20)
    np.testing.assert_array_equal(visited, N)
    np.testing.assert_allclose(scores, values, rtol=1e-5)
    assert recall(rows, exact) > 0.999  # sums in another order may swap items that tie
    np.testing.assert_allclose(graph.scores(tables, beam=2 * N, steps=1), score_codes(tables, index.codes), rtol=1e-5)


def test_retired_items_are_passed_and_not_found(problem):
    index, tables, _, graph = problem
    first, _, _ = graph.search(tables, 1, beam=N, steps=0)
    without = index.retire(np.unique(first))
    walked = CodeGraph(without, graph.neighbours)
    rows, _, visited = walked.search(tables, 20, beam=N, steps=0)
    assert not np.isin(rows, first).any() and (visited == N).all()
    assert recall(rows, without.search(tables, 20)[0]) > 0.999
    assert np.isneginf(walked.scores(tables, beam=N, steps=0)[:, np.unique(first)]).all()


def test_recall_rises_with_beam_and_steps_and_few_items_are_visited(problem):
    index, tables, _, graph = problem
    exact, _ = index.search(tables, 10)
    found = {(beam, steps): graph.search(tables, 10, beam, steps) for beam, steps in ((2, 3), (10, 3), (40, 3), (10, 0), (10, 1), (10, 8))}
    recalls = {setting: recall(rows, exact) for setting, (rows, _, _) in found.items()}
    assert recalls[2, 3] < recalls[10, 3] < recalls[40, 3]
    assert recalls[10, 0] < recalls[10, 1] < recalls[10, 3] <= recalls[10, 8]
    assert recalls[40, 3] > 0.8
    assert found[10, 3][2].mean() < N / 3
    np.testing.assert_array_equal(found[10, 0][2], 10)


def test_scores_are_those_of_the_items_visited(problem):
    index, tables, _, graph = problem
    scores = graph.scores(tables, beam=8, steps=2, seed=5)
    rows, best, visited = graph.search(tables, 15, beam=8, steps=2, seed=5)
    reached = scores > -np.inf
    np.testing.assert_array_equal(reached.sum(1), visited)
    np.testing.assert_allclose(scores[reached], score_codes(tables, index.codes)[reached], rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(scores, rows, 1), best, rtol=1e-6)
    np.testing.assert_array_equal(best, -np.sort(-scores, axis=1)[:, :15])


def test_the_walk_is_the_papers(problem):
    """Against a walk with sets: score the neighbours of the beam, keep the best of them and of the beam."""
    index, tables, _, graph = problem
    beam, steps = 6, 4
    start = np.random.default_rng(9).permutation(N)[:beam]
    exact = score_codes(tables, index.codes)
    for scores, reached in zip(exact, graph.scores(tables, beam, steps, seed=9) > -np.inf):
        seen, kept = set(start.tolist()), set(start.tolist())
        for _ in range(steps):
            around = kept | set(graph.neighbours[sorted(kept)].reshape(-1).tolist())
            seen |= around
            kept = set(sorted(around, key=lambda row: (-scores[row], row))[:beam])
        assert seen == set(np.flatnonzero(reached).tolist())


def test_equal_seeds_walk_alike_and_alone_as_in_company(problem):
    _, tables, _, graph = problem
    first, again, other = (graph.search(tables, 10, 5, 2, seed=seed) for seed in (3, 3, 4))
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a, b)
    assert (first[0] != other[0]).any()
    np.testing.assert_array_equal(graph.search(tables[6:7], 10, 5, 2, seed=3)[0][0], first[0][6])


def test_what_is_not_allowed_is_passed_but_not_returned(problem):
    _, tables, _, graph = problem
    free, _, visited = graph.search(tables, 10, 10, 4)
    exclude = Sequences.of(list(free[:, :3]))
    rows, scores, same = graph.search(tables, 10, 10, 4, exclude=exclude)
    np.testing.assert_array_equal(visited, same)
    np.testing.assert_array_equal(rows[:, :7], free[:, 3:])
    assert (rows[:, 7:] >= 0).all() and (rows < N).all() and (np.diff(scores, axis=1) <= 0).all()
    only = np.arange(0, N, 2)
    rows, scores, _ = graph.search(tables, 200, 10, 4, only=only, deny=[0, 2])
    assert set(rows[rows >= 0].tolist()) <= set(only[2:].tolist())
    assert ((rows < 0) == (scores == -np.inf)).all() and (rows < 0).any()


def test_few_items(problem):
    index = CodeIndex([[0, 1], [1, 1], [1, 0]], (2, 2))
    graph = CodeGraph.build(index, np.zeros((2, 2, 2)), 10)
    assert [sorted(line) for line in graph.neighbours.tolist()] == [[1, 2], [0, 2], [0, 1]]
    rows, scores, visited = graph.search([[[-1.0, -2.0], [-3.0, -4.0]]], 5, beam=1, steps=2)
    assert rows.tolist() == [[0, 2, 1, -1, -1]] and visited.tolist() == [3]
    np.testing.assert_allclose(scores, [[-2.5, -2.5, -3.0, -np.inf, -np.inf]])


def test_what_does_not_fit_is_refused(problem):
    index, tables, similarity, graph = problem
    for neighbours in (np.zeros((5, 2), int), np.full((N, 2), N), np.full((N, 2), -1)):
        with pytest.raises(ValueError, match="neighbours"):
            CodeGraph(index, neighbours)
    with pytest.raises(ValueError, match="at least 1"):
        CodeGraph.build(index, similarity, 0)
    broken = tables.copy()
    broken[3, 2, 1] = np.nan
    for arguments, match in (
        ((broken, 5, 3, 2), "NaN"),
        ((tables[:, :4], 5, 3, 2), "do not fit"),
        ((tables, 0, 3, 2), "k must"),
        ((tables, 5, 0, 2), "beam"),
        ((tables, 5, 3, -1), "steps"),
    ):
        with pytest.raises(ValueError, match=match):
            graph.search(*arguments)
