"""Beam search against exhaustive search and against a plain one over tuples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymrec.retrieval.beam import beam_search
from asymrec.retrieval.trie import Trie

WORDS = 5


class Language:
    """Log-probabilities of the next code that depend on the query and all codes before; remembers the prefixes as a model would."""

    def __init__(self, seed, n, tied=False):
        self.seed, self.n, self.tied, self.prefixes, self.asked = seed, n, tied, None, 0

    def ahead(self, query, prefix):
        if self.tied:
            return np.zeros(WORDS, np.float32)
        logits = np.random.default_rng([self.seed, query, *prefix]).normal(size=WORDS) * 2
        return (logits - np.log(np.exp(logits).sum())).astype(np.float32)

    def step(self, parents, tokens):
        if tokens is None:
            assert parents.tolist() == list(range(self.n))
            self.prefixes = [(query, ()) for query in range(self.n)]
        else:
            self.prefixes = [(self.prefixes[p][0], (*self.prefixes[p][1], t)) for p, t in zip(parents.tolist(), tokens.tolist())]
        queries = [query for query, _ in self.prefixes]
        assert queries == sorted(queries) and len(queries) % self.n == 0  # prefixes of a query stand together, equally many for each
        self.asked += 1
        return np.stack([self.ahead(*prefix) for prefix in self.prefixes])

    def score(self, query, codes):
        total = np.float32(0)
        for place, code in enumerate(codes):
            total += self.ahead(query, codes[:place])[code]
        return total


class Logits(Language):
    """The same as logits; a code's probability is its share among those that follow in `whole`."""

    def __init__(self, seed, n, whole):
        super().__init__(seed, n)
        self.whole = whole

    def ahead(self, query, prefix):
        return super().ahead(query, prefix) * 3 + 7

    def score(self, query, codes):
        total = 0.0
        for place, code in enumerate(codes):
            logits, following = self.ahead(query, codes[:place]), {one[place] for one in self.whole if one[:place] == codes[:place]}
            total += logits[code] - np.log(np.exp(logits[sorted(following)]).sum())
        return np.float32(total)


def plain(language, ids, query, width):
    """[(codes, score)], best first: the textbook's beam search over real prefixes."""
    beam = [()]
    for level in range(len(ids[0])):
        following = sorted({one[: level + 1] for one in ids if one[:level] in beam})
        beam = sorted(following, key=lambda prefix: (-language.score(query, prefix), prefix))[:width]
    return [(prefix, language.score(query, prefix)) for prefix in beam]


@st.composite
def problems(draw):
    depth = draw(st.integers(1, 3))
    row = st.tuples(*[st.integers(0, WORDS - 1)] * depth)
    ids = sorted(draw(st.sets(row, min_size=1, max_size=30)))
    return ids, draw(st.integers(0, 99)), draw(st.integers(1, 4)), draw(st.booleans())


@settings(deadline=None)
@given(problems(), st.integers(1, 40))
def test_it_is_beam_search_over_real_ids_and_the_smaller_code_wins_ties(problem, width):
    ids, seed, n, tied = problem
    language = Language(seed, n, tied)
    leaves, scores = beam_search(Trie(np.array(ids)), language.step, n, width)
    assert language.asked == len(ids[0]) and leaves.shape == scores.shape and scores.dtype == np.float32
    for query in range(n):
        expected = plain(language, ids, query, width)
        found = leaves[query] >= 0
        assert [ids[leaf] for leaf in leaves[query][found]] == [codes for codes, _ in expected]
        np.testing.assert_array_equal(scores[query][found], [score for _, score in expected])
        assert np.isneginf(scores[query][~found]).all()


@settings(deadline=None)
@given(problems())
def test_a_beam_as_wide_as_the_catalogue_is_exhaustive_search(problem):
    ids, seed, n, _ = problem
    language = Language(seed, n)
    leaves, scores = beam_search(Trie(np.array(ids)), language.step, n, len(ids))
    for query in range(n):
        all_scores = np.array([language.score(query, one) for one in ids])
        np.testing.assert_array_equal(leaves[query], np.lexsort((np.arange(len(ids)), -all_scores)))
        np.testing.assert_array_equal(scores[query], all_scores[leaves[query]])


@settings(deadline=None)
@given(problems(), st.integers(1, 40), st.data())
def test_probabilities_among_the_codes_that_follow_in_the_whole_catalogue(problem, width, data):
    ids, seed, n, _ = problem
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, len(ids) - 1), min_size=1))))
    whole, some, language = Trie(np.array(ids)), [ids[row] for row in rows], Logits(seed, n, ids)
    for trie, known in ((whole, ids), (Trie(np.array(some), rows, whole), some)):
        leaves, scores = beam_search(trie, language.step, n, width, among=True)
        for query in range(n):
            expected, found = plain(language, known, query, width), leaves[query] >= 0
            assert [known[leaf] for leaf in leaves[query][found]] == [codes for codes, _ in expected]
            np.testing.assert_allclose(scores[query][found], [score for _, score in expected], rtol=1e-4, atol=1e-5)
    total = np.exp(beam_search(whole, language.step, n, len(ids), among=True)[1]).sum(1)
    np.testing.assert_allclose(total, 1, rtol=1e-4)


def test_what_can_only_be_one_item_is_not_asked_for():
    ids = [(0, 0, 1, 2), (0, 1, 0, 0), (1, 2, 2, 0), (1, 2, 2, 1), (2, 0, 0, 0)]
    language, called = Logits(0, 2, ids), []

    def step(parents, tokens):
        ahead = language.step(parents, tokens)
        called.append([codes for query, codes in language.prefixes if query == 0])
        return ahead

    leaves, scores = beam_search(Trie(np.array(ids)), step, 2, 5, among=True)
    assert called == [[()], [(0,), (1,)], [(1, 2)], [(1, 2, 2)]]
    for query in range(2):
        expected = [language.score(query, one) for one in ids]
        np.testing.assert_array_equal(leaves[query], np.argsort(-np.array(expected)))
        np.testing.assert_allclose(scores[query], sorted(expected, reverse=True), rtol=1e-5)
    # two items left of five: what may follow in the whole catalogue is asked for all the same
    some = Trie(np.array([ids[1], ids[3]]), np.array([1, 3]), Trie(np.array(ids)))
    called.clear()
    beam_search(some, step, 2, 5, among=True)
    assert called == [[()], [(0,), (1,)], [(1, 2)], [(1, 2, 2)]]
    # a single item is certain
    called.clear()
    leaves, scores = beam_search(Trie(np.array(ids[:1])), step, 2, 5, among=True)
    assert not called and leaves.tolist() == [[0], [0]] and not scores.any()


def test_codes_that_cannot_come_next_stay_behind_and_nonsense_is_refused():
    trie = Trie(np.array([[0, 0], [0, 1], [1, 0]]))
    never = np.array([0.0, -np.inf], np.float32)
    leaves, scores = beam_search(trie, lambda parents, tokens: np.tile(never, (len(parents), 1)), 1, 3)
    assert leaves.tolist() == [[0, 1, 2]] and scores.tolist() == [[0, -np.inf, -np.inf]]
    with pytest.raises(ValueError, match="NaN"):
        beam_search(trie, lambda parents, tokens: np.full((len(parents), 2), np.nan), 1, 3)
    for shape in ((1, 1), (2, 2)):
        with pytest.raises(ValueError, match=r"must be \[1, at least 2\]"):
            beam_search(trie, lambda parents, tokens, shape=shape: np.zeros(shape), 1, 3)
    with pytest.raises(ValueError, match="at least 1 wide"):
        beam_search(trie, lambda parents, tokens: np.zeros((len(parents), 2)), 1, 0)
