"""The search over codes against brute force in float64: ties, filters, a catalogue that changes, threads, wide codebooks."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_exact import brute_scores, brute_top, csr, filtered, searches

from asymrec.retrieval import accelerator
from asymrec.retrieval.accelerator import search_codes
from asymrec.retrieval.filters import Bitmap
from asymrec.retrieval.index import ROWS, CodeIndex


def same(found, expected):
    for left, right in zip(found, expected):
        np.testing.assert_array_equal(left, right)


def accelerated(index, tables, k, exclude=None, allowed=None):
    """The road of tables on an accelerator, which here is the processor."""
    columns, own = index._copy_on(torch.device("cpu"))
    return search_codes(torch.from_numpy(tables), columns, k, exclude, allowed or index.alive, own)


@settings(max_examples=300, deadline=None)
@given(searches(), st.booleans())
def test_search_is_brute_force(search, bitmaps):
    tables, codes, sizes, k, exclude, only, deny = search
    expected = brute_top(filtered(brute_scores(tables, codes), exclude, only, deny), k)
    if bitmaps:
        only, deny = (None if rows is None else Bitmap.of_rows(rows, len(codes)) for rows in (only, deny))
    rows, scores = CodeIndex(codes, sizes).search(tables, k, exclude and csr(exclude), only, deny)
    same((rows, scores), expected)
    assert rows.dtype == np.int32 and scores.dtype == np.float32


@settings(max_examples=100, deadline=None)
@given(searches(), st.booleans(), st.booleans())
def test_an_accelerator_finds_the_same(search, by_one, owned):
    tables, codes, sizes, k, exclude, only, deny = search
    own = np.stack((np.arange(len(codes)) % 3 + 1, np.arange(len(codes)) % 2), 1).astype(np.float32) if owned else None
    index = CodeIndex(codes, sizes, own)
    tables = np.nan_to_num(tables, neginf=-100)  # one more way to say that nobody wants these
    expected = index.search(tables, k, exclude and csr(exclude), only, deny)
    allowed, excluded = index.allowed(only, deny), exclude and csr(exclude)
    with pytest.MonkeyPatch.context() as patch:
        if by_one:  # as where all queries' scores would not fit the memory
            patch.setattr(accelerator, "AT_ONCE", 1)
        same(accelerated(index, tables, k, excluded, allowed), expected)


@pytest.mark.parametrize(
    ("n", "heads", "words", "k"), [(5000, 48, 256, 100), (ROWS + 300, 7, 31, 10), (3000, 12, 1000, 20), (700, 300, 9, 5)]
)
def test_real_numbers_over_several_pages(n, heads, words, k):
    """Scores are summed in float32 head after head, on either road."""
    rng = np.random.default_rng(0)
    tables = torch.from_numpy(rng.gumbel(size=(3, heads, words)).astype(np.float32)).log_softmax(-1).numpy()
    codes = rng.integers(0, words, (n, heads))
    codes[: n // 4] = codes[n // 4 : 2 * (n // 4)]  # ties
    scores = np.zeros((3, n), np.float32)
    for head in range(heads):
        scores += (tables[:, head] / np.float32(heads))[:, codes[:, head]]
    index = CodeIndex(codes, (words,) * heads)
    same(index.search(tables, k), brute_top(scores, k))
    same(accelerated(index, tables, k), brute_top(scores, k))
    np.testing.assert_array_equal(index.codes, codes)
    assert index.nbytes <= 1.3 * codes.size * (2 if words > 256 else 1) + 256 * heads * 2


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_items_with_a_factor_and_a_summand(size):
    """As of a catalogue-normalised head: the sum of an item's code vectors has length 1, and every item a bias."""
    rng = np.random.default_rng(5)
    codes, tables = rng.integers(0, 64, (3000, 12)), rng.standard_normal((5, 12, 64)).astype(np.float32)
    codes[1500:2000] = codes[:500]
    own = np.stack((rng.uniform(0.2, 3, 3000), rng.standard_normal(3000) * size), 1).astype(np.float32)
    own[1500:2000] = own[:500]  # ties
    scores = np.zeros((5, 3000), np.float32)
    for head in range(12):
        scores += (tables[:, head] / np.float32(12))[:, codes[:, head]]
    scores = own[:, 0] * scores + own[:, 1]
    whole, part = CodeIndex(codes, (64,) * 12, own), CodeIndex(codes[:700], (64,) * 12, own[:700])
    expected = tuple(brute_top(scores, 50))
    same(whole.search(tables, 50), expected)
    same(accelerated(whole, tables, 50), expected)
    grown = part.add(codes[700:], own[700:])
    same(grown.search(tables, 50), expected)
    np.testing.assert_array_equal(grown.own, own)
    other = grown.change([3, 2999], codes[[5, 6]], own[[5, 6]])
    scores[:, [3, 2999]] = scores[:, [5, 6]]
    same(other.search(tables, 50), brute_top(scores, 50))
    same(grown.search(tables, 50), expected)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_tables_of_any_size_and_without_a_spread(scale):
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 5, (900, 3))
    tables = (rng.integers(-4, 4, (4, 3, 5)) * scale).astype(np.float32)
    tables[1] = -scale
    tables[2, 1] = -np.inf
    tables[3, 0, 1:] = -np.inf
    expected = np.stack([sum((table[h] / np.float32(3))[codes[:, h]] for h in range(3)) for table in tables])
    same(CodeIndex(codes, (5,) * 3).search(tables, 40), brute_top(expected, 40))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_cannot_be_ordered_is_refused(bad):
    tables = np.zeros((2, 2, 4), np.float32)
    tables[1, 1, 3] = bad
    index = CodeIndex([[0, 1]], (4, 3))
    index.search(tables, 1)  # the second head has three words: the fourth entry is nobody's
    tables[1, 1, 2] = bad
    with pytest.raises(ValueError, match="NaN or"):
        index.search(tables, 1)
    with pytest.raises(ValueError, match="NaN or"):
        search_codes(torch.from_numpy(tables), torch.tensor([[0], [2]]), 1, None, Bitmap.all(1))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.sampled_from(["add", "change", "retire", "restore"]), max_size=12))
def test_a_living_catalogue_is_an_index_made_anew_and_older_ones_do_not_change(seed, steps):
    rng = np.random.default_rng(seed)
    sizes = (6, 300) if seed % 2 else (6, 7)
    draw = lambda n: np.stack([rng.integers(0, size, n) for size in sizes], 1)  # noqa: E731
    codes, gone = draw(int(rng.integers(0, 600))), set()
    index, history = CodeIndex(codes, sizes), []
    tables = rng.integers(-9, 9, (2, 2, 300)).astype(np.float32)
    for step in steps:
        history.append((index, codes.copy(), set(gone)))
        rows = np.flatnonzero(rng.random(len(codes)) < 0.1)
        if step == "add":
            new = draw(int(rng.integers(0, 300)))
            codes, index = np.concatenate((codes, new)), index.add(new)
        elif step == "change":
            new = draw(len(rows))
            codes = codes.copy()
            codes[rows] = new
            index = index.change(rows, new)
        elif step == "retire":
            gone, index = gone | set(rows.tolist()), index.retire(rows)
        else:
            gone, index = gone - set(rows.tolist()), index.restore(rows)
    for then, held, retired in [*history, (index, codes, gone)]:
        assert len(then) == len(held)
        np.testing.assert_array_equal(then.codes, held)
        expected = brute_top(filtered(brute_scores(tables, held), None, None, sorted(retired)), 20)
        same(then.search(tables, 20), expected)


def test_readers_and_a_writer_at_once():
    """What a reader finds is what its own index held, whatever is written meanwhile."""
    rng = np.random.default_rng(2)
    codes, tables = rng.integers(0, 256, (40_000, 8)), rng.standard_normal((1, 8, 256)).astype(np.float32)
    first = index = CodeIndex(codes, (256,) * 8)
    expected = first.search(tables, 50)
    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(first.search, tables, 50) for _ in range(60)]
        for _ in range(60):
            rows = rng.permutation(len(codes))[:200]
            index = index.change(rows, rng.integers(0, 256, (200, 8))).retire(rows[:50]).add(rng.integers(0, 256, (100, 8)))
        for reader in readers:
            same(reader.result(), expected)
    assert len(index) == 46_000


@pytest.mark.parametrize("queries", [1, 3, 70])
def test_threads_find_the_same(queries, monkeypatch):
    from asymrec.retrieval import index as module

    monkeypatch.setattr(module, "ALONE", 1)
    rng = np.random.default_rng(3)
    codes, tables = rng.integers(0, 9, (2 * ROWS + 77, 4)), rng.integers(-9, 9, (queries, 4, 9)).astype(np.float32)
    index, seen = CodeIndex(codes, (9,) * 4), csr([[row, 0] for row in range(queries)])
    expected = brute_top(filtered(brute_scores(tables, codes), [[row, 0] for row in range(queries)], None, None), 30)
    expected = tuple(expected)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            same(index.search(tables, 30, seen), expected)
    finally:
        torch.set_num_threads(1)


def test_processors_without_byte_permutations_find_the_same():
    """The loops are compiled anew for a processor that has nothing but the basics."""
    program = """
import numpy as np
from asymrec.retrieval import scan
from asymrec.retrieval.index import CodeIndex
assert not scan.VBMI
rng = np.random.default_rng(4)
index = CodeIndex(rng.integers(0, 256, (3000, 16)), (256,) * 16)
rows, scores = index.search(rng.standard_normal((2, 16, 256)), 20)
print(rows.tolist()); print(scores.view(np.int32).tolist())
"""
    rng = np.random.default_rng(4)
    index = CodeIndex(rng.integers(0, 256, (3000, 16)), (256,) * 16)
    rows, scores = index.search(rng.standard_normal((2, 16, 256)), 20)
    run = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"NUMBA_CPU_NAME": "generic"}, capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines() == [str(rows.tolist()), str(scores.view(np.int32).tolist())]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), max_size=200), st.data())
def test_bitmaps_are_sets(left, data):
    n = len(left)
    right = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    a, b = np.array(left, np.bool_), np.array(right, np.bool_)
    one, other = Bitmap(a), Bitmap(b)
    for made, expected in ((one & other, a & b), (one | other, a | b), (one - other, a & ~b), (~one, ~a)):
        np.testing.assert_array_equal(made.mask(), expected)
        np.testing.assert_array_equal(made.rows(), np.flatnonzero(expected))
        assert made.count() == expected.sum() and made == Bitmap(expected) == Bitmap.of_rows(np.flatnonzero(expected), n)
    grown = one.resized(n + 70)
    np.testing.assert_array_equal(grown.rows(), one.rows())
    assert len(grown) == n + 70


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda index: Bitmap(np.zeros(3)), "must be bool"),
        (lambda index: Bitmap.of_rows([3], 3), "outside 0 .. 2"),
        (lambda index: Bitmap.all(3) & Bitmap.all(4), "3 and 4 rows"),
        (lambda index: Bitmap.all(3).resized(2), "cannot shrink"),
        (lambda index: index.search(np.zeros((1, 2, 4)), 1, only=Bitmap.all(3)), "bitmap of 3 rows, the catalogue has 2"),
        (lambda index: index.retire([2]), "outside 0 .. 1"),
        (lambda index: index.change([0, 0], [[1, 1], [1, 1]]), "distinct rows"),
        (lambda index: index.change([0], [[1, 1], [1, 1]]), "distinct rows"),
        (lambda index: index.add([[0, 4]]), "outside its codebook"),
        (lambda index: CodeIndex([[0]], (100_000,)), "more than 65,536"),
        (lambda index: CodeIndex([[0]], (4,), [[0.0, 1.0]]), "first column above 0"),
        (lambda index: CodeIndex([[0]], (4,), [[1.0, np.nan]]), "must be finite"),
        (lambda index: index.add([[0, 1]], [[1.0, 1.0]]), "all items of an index"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(CodeIndex([[0, 1], [1, 1]], (4, 4)))
