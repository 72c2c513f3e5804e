"""Exact retrieval against brute force in float64 and against a full stable sort."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asymrec.retrieval import exact
from asymrec.retrieval.exact import score_codes, search_dense, top_k
from asymrec.retrieval.index import CodeIndex


def brute_scores(tables, codes):
    return np.stack([np.mean([table[h, codes[:, h]] for h in range(codes.shape[1])], axis=0, dtype=np.float64) for table in tables])


def brute_top(scores, k):
    """Full stable sort, best first; -inf is not allowed."""
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, rows, axis=1)
    rows = np.where(np.isneginf(best), -1, rows)
    short = k - rows.shape[1]
    return (np.pad(array, ((0, 0), (0, max(short, 0))), constant_values=fill) for array, fill in ((rows, -1), (best, -np.inf)))


def csr(lists):
    return SimpleNamespace(offsets=np.cumsum([0, *map(len, lists)]), items=np.array([x for part in lists for x in part], np.int32))


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (3, 17, 5, 7), (7, 10, 48, 256), (40, 9001, 6, 300), (300, 50, 3, 4)])
def test_scores_are_the_mean_over_heads(shape):
    b, n, heads, codewords = shape
    rng = np.random.default_rng(0)
    tables, codes = rng.standard_normal((b, heads, codewords)).astype(np.float32), rng.integers(0, codewords, (n, heads))
    scores = score_codes(tables, codes)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, brute_scores(tables, codes), rtol=1e-5, atol=1e-6)


def test_a_query_scores_the_same_alone_and_in_a_batch():
    rng = np.random.default_rng(1)
    tables, codes = rng.standard_normal((70, 11, 64)).astype(np.float32), rng.integers(0, 64, (203, 11))
    batch = score_codes(tables, codes)
    alone = np.concatenate([score_codes(table[None], codes) for table in tables])
    np.testing.assert_array_equal(batch, alone)


def test_torch_tensors_of_low_precision_are_read():
    tables, codes = torch.randn(2, 3, 4, dtype=torch.bfloat16, requires_grad=True), torch.randint(0, 4, (6, 3))
    np.testing.assert_array_equal(score_codes(tables, codes), score_codes(tables.detach().float().numpy(), codes.numpy()))


few_values = st.sampled_from([-np.inf, -2.0, -1.0, -0.0, 0.0, 1.0])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4), st.integers(0, 90), st.integers(1, 12), st.data())
def test_top_k_is_a_stable_sort(b, n, k, data):
    scores = np.array(data.draw(st.lists(few_values, min_size=b * n, max_size=b * n)), np.float32).reshape(b, n)
    rows, best = top_k(scores, k)
    expected_rows, expected = brute_top(scores, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(best, expected)


def test_top_k_of_everything_is_the_full_order():
    scores = np.random.default_rng(2).integers(0, 40, (5, 1000)).astype(np.float32)
    rows, best = top_k(torch.from_numpy(scores), 1000)
    expected_rows, expected = brute_top(scores, 1000)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(best, expected)


@pytest.mark.parametrize("at", [0, 50, 99])
def test_nan_is_refused(at):
    scores = np.zeros((2, 100), np.float32)
    scores[1, at] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        top_k(scores, 3)
    tables = np.zeros((10, 1, 100), np.float32)
    tables[1, 0, at] = np.nan
    for queries in (slice(0, 2), slice(None)):  # both ways of scoring
        with pytest.raises(ValueError, match="NaN"):
            CodeIndex(np.arange(100)[:, None], (100,)).search(tables[queries], 3)


@st.composite
def searches(draw):
    """Small whole numbers as table entries, and a power of two of heads, so that float32 is exact and ties abound."""
    b, n, heads, k = draw(st.integers(1, 12)), draw(st.integers(1, 40)), draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 45))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = tuple(rng.integers(1, 5, heads).tolist())
    tables = rng.integers(-3, 3, (b, heads, max(sizes))).astype(np.float32)
    tables[rng.random(tables.shape) < 0.05] = -np.inf
    codes = np.stack([rng.integers(0, size, n) for size in sizes], axis=1)
    rows = st.lists(st.integers(0, n - 1), max_size=n)
    exclude = draw(st.none() | st.lists(rows, min_size=b, max_size=b))
    return tables, codes, sizes, k, exclude, draw(st.none() | rows), draw(st.none() | rows)


def filtered(scores, exclude, only, deny):
    scores = scores.copy()
    for line, rows in zip(scores, exclude or []):
        line[rows] = -np.inf
    if only is not None:
        scores[:, np.setdiff1d(np.arange(scores.shape[1]), only)] = -np.inf
    if deny is not None:
        scores[:, deny] = -np.inf
    return scores


@settings(max_examples=100, deadline=None)
@given(searches(), st.sampled_from([3, 8192]))
def test_dense_search_is_brute_force(search, chunk):
    tables, codes, _, k, exclude, only, deny = search
    states, items = np.nan_to_num(tables[:, 0, :], neginf=-5), np.eye(tables.shape[2])[codes[:, 0]] * 2
    expected_rows, expected = brute_top(filtered(states @ items.T, exclude, only, deny), k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "CHUNK", chunk)
        rows, scores = search_dense(states, torch.from_numpy(items), k, exclude and csr(exclude), only, deny)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected)


def test_more_queries_than_a_group():
    rng = np.random.default_rng(3)
    tables, codes = rng.integers(-9, 9, (261, 4, 9)).astype(np.float32), rng.integers(0, 9, (1000, 4))
    np.testing.assert_array_equal(score_codes(tables, codes), brute_scores(tables, codes))


def test_no_queries_and_no_candidates():
    index = CodeIndex([[0, 1], [1, 1]], (2, 2))
    rows, scores = index.search(np.zeros((0, 2, 2)), 3)
    assert rows.shape == scores.shape == (0, 3)
    rows, scores = index.search(np.zeros((9, 2, 2)), 3, only=[])
    assert (rows == -1).all() and np.isneginf(scores).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CodeIndex([[0, 4]], (4, 4)), "outside its codebook"),
        (lambda: CodeIndex([[0, -1]], (4, 4)), "outside its codebook"),
        (lambda: CodeIndex([[0.0, 1.0]], (4, 4)), "integers"),
        (lambda: CodeIndex([[0]], (4, 4)), r"\[n, 2\]"),
        (lambda: CodeIndex([[0, 1]], (4, 4)).search(np.zeros((1, 2, 3)), 1), "do not fit"),
        (lambda: CodeIndex([[0, 1]], (4, 4)).search(np.zeros((1, 2, 4)), 0), "k must be"),
        (lambda: CodeIndex([[0, 1]], (4, 4)).search(np.zeros((1, 2, 4)), 1, only=[1]), "only holds rows outside"),
        (lambda: CodeIndex([[0, 1]], (4, 4)).search(np.zeros((1, 2, 4)), 1, deny=[-1]), "deny holds rows outside"),
        (lambda: CodeIndex([[0, 1]], (4, 4)).search(np.zeros((2, 2, 4)), 1, exclude=csr([[0]])), "1 lists for 2"),
        (lambda: CodeIndex([[0, 1]], (4, 4)).search(np.zeros((1, 2, 4)), 1, exclude=csr([[7]])), "exclude holds rows outside"),
        (lambda: search_dense(np.zeros((1, 3)), np.zeros((5, 2)), 1), "3 wide, items 2"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_compiler_is_loaded_on_first_use_only():
    program = "import sys, asymrec.retrieval.exact; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
