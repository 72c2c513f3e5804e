"""The trie against sets of tuples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymrec.errors import RunError
from asymrec.retrieval.trie import Trie


@st.composite
def catalogues(draw):
    """Codes [n, H] out of few codewords, so that prefixes and whole ids are shared."""
    depth, words = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    row = st.lists(st.integers(0, words - 1), min_size=depth, max_size=depth)
    return np.array(draw(st.lists(row, min_size=1, max_size=40)))


def spelled(trie):
    """For each level the prefix of each of its nodes, found by walking down from the root."""
    levels = [[()]]
    for level in range(trie.depth):
        owners, children = trie.children(level, np.arange(len(levels[-1])))
        assert children.tolist() == list(range(len(children)))  # nodes in order have children in order, none missing
        levels.append([(*levels[-1][owner], trie.tokens[level][child].item()) for owner, child in zip(owners, children)])
    return levels


@given(catalogues())
def test_its_nodes_are_the_distinct_prefixes_in_order(codes):
    trie = Trie(codes)
    assert trie.depth == codes.shape[1] and len(trie) == len({*map(tuple, codes.tolist())})
    for level, prefixes in enumerate(spelled(trie)):
        assert prefixes == sorted({tuple(row[:level]) for row in codes.tolist()})


@given(catalogues(), st.data())
def test_children_of_any_nodes_are_what_may_follow(codes, data):
    trie = Trie(codes)
    levels = spelled(trie)
    level = data.draw(st.integers(0, trie.depth - 1))
    nodes = data.draw(st.lists(st.integers(0, len(levels[level]) - 1), max_size=6))
    owners, children = trie.children(level, np.array(nodes, np.int64))
    found = [(owner, trie.tokens[level][child].item()) for owner, child in zip(owners.tolist(), children.tolist())]
    may_follow = [sorted({row[level] for row in codes.tolist() if tuple(row[:level]) == levels[level][node]}) for node in nodes]
    assert found == [(number, code) for number, allowed in enumerate(may_follow) for code in allowed]


@given(catalogues(), st.data())
def test_leaves_hold_the_items_of_their_codes(codes, data):
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, 99), min_size=len(codes), max_size=len(codes)))))
    trie = Trie(codes, rows)
    owners, items = trie.items(np.arange(len(trie)))
    assert sorted(items.tolist()) == rows.tolist()
    of = dict(zip(rows.tolist(), map(tuple, codes.tolist())))
    ids = spelled(trie)[-1]
    assert all(ids[owner] == of[item] for owner, item in zip(owners.tolist(), items.tolist()))
    assert all(a < b for one, other, a, b in zip(owners, owners[1:], items, items[1:]) if one == other)


@given(st.lists(st.integers(1, 31), min_size=1, max_size=9), st.integers(1, 30), st.integers(0, 99))
def test_codes_of_any_width_are_sorted(widths, n, seed):
    """Wide codes take several words of 64 bits."""
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(1 << width, size=n) >> rng.integers(width) for width in widths], 1)
    trie = Trie(codes)
    assert spelled(trie)[-1] == sorted({*map(tuple, codes.tolist())})
    assert trie.sizes == tuple(codes.max(0) + 1)
    assert trie.rows.tolist() == np.lexsort(codes.T[::-1]).tolist()


@settings(deadline=None, max_examples=30)
@given(catalogues())
def test_a_saved_trie_is_the_same_and_stays_on_the_disk(tmp_path_factory, codes):
    folder, trie = tmp_path_factory.mktemp("trie") / "trie", Trie(codes)
    trie.save(folder)
    for mmap in (True, False):
        again = Trie.load(folder, mmap=mmap)
        assert again.depth == trie.depth and isinstance(again.rows, np.memmap) == mmap
        for ours, theirs in zip((*trie.tokens, *trie.starts, trie.rows), (*again.tokens, *again.starts, again.rows)):
            assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


def test_a_damaged_trie_is_named(tmp_path):
    trie = Trie(np.array([[0, 1], [2, 1]]))
    trie.save(tmp_path / "trie")
    np.save(tmp_path / "trie" / "tokens1.npy", trie.tokens[1][:1])
    with pytest.raises(RunError, match="lengths do not agree"):
        Trie.load(tmp_path / "trie")
    (tmp_path / "trie" / "starts2.npy").write_bytes(b"no array")
    with pytest.raises(RunError, match="starts2"):
        Trie.load(tmp_path / "trie")
    with pytest.raises(RunError, match="rows"):
        Trie.load(tmp_path / "nothing")


@given(catalogues(), st.data())
def test_nodes_are_known_by_item_and_by_their_number_in_the_whole(codes, data):
    whole, codes = Trie(codes), np.asarray(codes)
    named = spelled(whole)  # of each level: the prefix of each node
    for item, nodes in zip(codes.tolist(), whole.prefixes.tolist()):
        assert [named[level][node] for level, node in enumerate(nodes)] == [tuple(item[:level]) for level in range(len(item))]
    assert whole.whole is whole and all((one == np.arange(len(one))).all() for one in whole.numbers)
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, len(codes) - 1), min_size=1))))
    part = Trie(codes[rows], rows, whole)
    own = spelled(part)
    assert part.whole is whole and [len(one) for one in part.numbers] == [len(one) for one in own[:-1]]
    for level, numbers in enumerate(part.numbers):
        assert [named[level][number] for number in numbers] == own[level]


def test_what_is_no_catalogue_is_refused():
    for codes in (np.zeros((0, 3), int), np.zeros((2, 0), int), np.zeros(3, int), np.zeros((2, 2)), np.array([[0], [-1]])):
        with pytest.raises(ValueError, match="codes must be integers"):
            Trie(codes)
    for rows in ([0], [1, 1], [2, 1]):
        with pytest.raises(ValueError, match="rows must be ascending"):
            Trie(np.zeros((2, 2), int), rows)
