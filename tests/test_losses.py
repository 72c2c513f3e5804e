"""The fused losses against torch's own, value and gradients."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from asymrec.models import catalogue
from asymrec.nn import losses
from asymrec.nn.losses import CodeSum, Pairs, catalogue_cross_entropy, heads_cross_entropy, sample_candidates


def leaf(*shape, seed, scale=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).requires_grad_()


@pytest.fixture
def problem():
    n, items, width = 37, 53, 16
    generator = torch.Generator().manual_seed(4)
    pairs = torch.unique(torch.randint(n * items, (90,), generator=generator))
    return {
        "states": leaf(n, width, seed=0),
        "table": leaf(items, width, seed=1),
        "bias": leaf(items, seed=2),
        "at_target": torch.linspace(-1, 2, n),
        "repeat": torch.tensor(-0.7, requires_grad=True),
        "targets": torch.randint(items, (n,), generator=generator),
        "seen": Pairs(pairs // items, pairs % items),
    }


def plain(p):
    logits = p["states"] @ p["table"].T
    if p["bias"] is not None:
        logits = logits + p["bias"]
    if p["seen"] is not None:
        mask = torch.zeros_like(logits)
        mask[p["seen"].rows, p["seen"].columns] = 1
        logits = logits + mask * p["repeat"]
    if p["at_target"] is not None:
        logits = logits + F.one_hot(p["targets"], logits.shape[1]) * p["at_target"][:, None]
    return F.cross_entropy(logits, p["targets"])


def gradients(loss, p):
    learned = [p[name] for name in ("states", "table", "bias", "repeat") if p[name] is not None]
    return torch.autograd.grad(3 * loss, learned)  # 3: what comes from upstream is passed on


@pytest.mark.parametrize("chunk", [1 << 22, 53 * 5, 1])
@pytest.mark.parametrize("without", [(), ("bias",), ("seen", "repeat"), ("bias", "at_target", "seen", "repeat")])
def test_catalogue_cross_entropy_is_cross_entropy(problem, monkeypatch, chunk, without):
    monkeypatch.setattr(losses, "CHUNK", chunk)
    monkeypatch.setattr(losses, "ROWS", 1)
    monkeypatch.setattr(losses, "COLUMNS", 20)
    problem |= dict.fromkeys(without)
    fused = catalogue_cross_entropy(**problem)
    expected = plain(problem)
    torch.testing.assert_close(fused, expected)
    for ours, theirs in zip(gradients(fused, problem), gradients(expected, problem)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])  # 1e-2: one rounding
def test_the_compiled_kernel_agrees_with_the_plain_one(precision, tolerance):
    generator = torch.Generator().manual_seed(7)
    logits = (torch.randn(29, 301, generator=generator) * 5).to(precision)
    targets = torch.randint(301, (29,), generator=generator)
    keys = torch.unique(torch.randint(29 * 301, (200,), generator=generator))
    seen, repeat = Pairs(keys // 301, keys % 301), torch.tensor(-2.5)
    bias, ramp = torch.randn(301, generator=generator), torch.linspace(-2, 2, 29)
    for pairs, shift, added in ((seen, None, bias), (None, ramp, None), (seen, ramp, bias)):
        loss, slope, by_repeat = losses._gradient(logits.clone(), targets, added, shift, pairs, repeat)
        loss_c, slope_c, by_repeat_c = losses._gradient_compiled(logits.clone(), targets, added, shift, pairs, repeat)
        torch.testing.assert_close(loss_c, loss, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(slope_c.float(), slope.float(), rtol=tolerance, atol=1e-5)
        if pairs is not None:
            torch.testing.assert_close(by_repeat_c, by_repeat, rtol=1e-4, atol=1e-4)


def test_threads_and_a_cold_start_change_no_bit(tmp_path):
    """What is compiled in this process, and what another process takes from the cache, on one thread and on three."""
    program = """
import sys, zlib, numpy as np, torch
from asymrec.models import catalogue
from asymrec.nn import losses
torch.set_num_threads(int(sys.argv[1]))
generator = torch.Generator().manual_seed(8)
states, table = torch.randn(64, 32, generator=generator) * 4, torch.randn(1201, 32, generator=generator)
states.requires_grad_(), table.requires_grad_()
bias = torch.randn(1201, generator=generator, requires_grad=True)
loss = losses.catalogue_cross_entropy(states, table, torch.arange(64), bias, precision=torch.bfloat16)
loss.backward()
print(*(zlib.crc32(t.detach().numpy().tobytes()) for t in (loss, states.grad, table.grad, bias.grad)))
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def run(threads: int) -> str:
        command = [sys.executable, "-c", program, str(threads)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    cold = run(1)
    assert cold == run(1) == run(3)


def test_extreme_logits_stay_finite():
    for precision in (torch.float32, torch.bfloat16):
        states = torch.tensor([[300.0], [-300.0]], requires_grad=True)
        table = torch.tensor([[1.0], [-1.0], [0.5]], requires_grad=True)
        loss = catalogue_cross_entropy(states, table, torch.tensor([1, 1]), precision=precision)
        loss.backward()
        torch.testing.assert_close(loss, torch.tensor(300.0))
        assert torch.isfinite(states.grad).all() and torch.isfinite(table.grad).all()


def test_bfloat16_is_close_to_float32(problem):
    exact = catalogue_cross_entropy(**problem)
    low = catalogue_cross_entropy(**problem, precision=torch.bfloat16)
    assert abs(exact - low) < 0.02 * abs(exact)


@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize("chunk", [1 << 22, 1])
def test_heads_cross_entropy_is_the_mean_over_heads(monkeypatch, chunk, some):
    monkeypatch.setattr(losses, "CHUNK", chunk)
    heads, n, words, width = 5, 11, 7, 4
    states, tables = leaf(heads, n, width, seed=0), leaf(heads, words, width, seed=1)
    codes = torch.randint(words, (heads, n), generator=torch.Generator().manual_seed(2))
    logits, among = 2.5 * torch.einsum("hnd,hkd->hnk", states, tables), None
    if some:  # the softmax runs over some words of each place, in one of them over the target's alone
        among = torch.rand(logits.shape, generator=torch.Generator().manual_seed(3)) < 0.4
        among[0, 0] = False
        among.scatter_(2, codes.unsqueeze(2), True)
        logits = logits.masked_fill(~among, -torch.inf)
    fused = heads_cross_entropy(2.5 * states, tables, codes, among=among)
    low = heads_cross_entropy(2.5 * states, tables, codes, torch.bfloat16, among)
    assert abs(low - fused) < 0.02 * fused
    expected = torch.stack([F.cross_entropy(logits[h], codes[h]) for h in range(heads)]).mean()
    torch.testing.assert_close(fused, expected)
    for ours, theirs in zip(torch.autograd.grad(fused, (states, tables)), torch.autograd.grad(expected, (states, tables))):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_code_sum_is_the_sum_of_looked_up_rows_and_so_is_its_gradient():
    codes = torch.randint(6, (40, 3), generator=torch.Generator().manual_seed(0))  # some codewords are not used by any item
    codes[:, 2] = 1
    table = leaf(3, 6, 4, seed=1)
    expected = sum(table[h][codes[:, h]] for h in range(3))
    weight = torch.randn(40, 4, generator=torch.Generator().manual_seed(2))
    fold = CodeSum(codes, 6)
    torch.testing.assert_close(fold(table), expected)
    (ours,) = torch.autograd.grad((fold(table) * weight).sum(), table)
    (theirs,) = torch.autograd.grad((expected * weight).sum(), table, retain_graph=True)
    torch.testing.assert_close(ours, theirs)
    rows = torch.tensor([3, 3, 17])
    torch.testing.assert_close(fold(table, rows), expected[rows])


def test_what_only_scores_makes_no_inverted_lists():
    summed = CodeSum(torch.tensor([[0, 1], [1, 1]]), 2)
    table = torch.randn(2, 2, 3, requires_grad=True)
    with torch.no_grad():
        plain = summed(table)
    assert summed._inverted is None and torch.equal(summed(table), plain) and summed._inverted is not None


@pytest.mark.parametrize("gathered", [0, 128])
@pytest.mark.parametrize("at_once", [1, 1 << 26])
def test_products_of_a_places_own_candidates(monkeypatch, gathered, at_once):
    monkeypatch.setattr(catalogue, "GATHERED", gathered)
    monkeypatch.setattr(catalogue, "PRODUCTS_AT_ONCE", at_once)
    query, table = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    where, upstream = torch.randint(9, (6, 3)), torch.randn(6, 3)
    expected = torch.einsum("nd,nkd->nk", query, table[where])
    found = catalogue.products(query, table, where)
    torch.testing.assert_close(found, expected)
    for left, right in zip(torch.autograd.grad(found, (query, table), upstream), torch.autograd.grad(expected, (query, table), upstream)):
        torch.testing.assert_close(left, right)


def test_candidates_that_a_history_holds():
    seen = Pairs(torch.tensor([0, 0, 1, 2, 2]), torch.tensor([1, 4, 0, 0, 3]))
    candidates = torch.tensor([[1, 2, 4], [1, 0, 3], [3, 3, 4]])
    assert catalogue.repeated(seen, candidates, 5).tolist() == [[1, 0, 1], [0, 1, 0], [1, 1, 0]]


def test_the_sampled_softmax_estimates_the_full_one():
    """Over batches of targets drawn by popularity, the corrected loss on a sample is that on the catalogue; uncorrected it is not."""
    items, n, width = 3000, 64, 8
    table = torch.randn(items, width, generator=torch.Generator().manual_seed(0))
    counts = np.random.default_rng(0).zipf(1.3, items).clip(max=2000)
    rng = np.random.default_rng(1)
    full, corrected, uncorrected = [], [], []
    for draw in range(150):
        torch.manual_seed(draw)
        targets = rng.choice(items, n, p=counts / counts.sum())
        states = torch.randn(n, width) * 0.7 + 0.3 * table[targets]
        sample = sample_candidates(targets, counts, negatives=400)
        assert set(targets) <= set(sample.rows) and (sample.rows[sample.slot[targets]] == targets).all()
        part, goals, correction = table[sample.rows], torch.from_numpy(sample.slot[targets]), torch.from_numpy(sample.correction)
        full.append(catalogue_cross_entropy(states, table, torch.from_numpy(targets)).item())
        corrected.append(catalogue_cross_entropy(states, part, goals, correction, -correction[goals]).item())
        uncorrected.append(catalogue_cross_entropy(states, part, goals).item())
    assert abs(np.mean(corrected) - np.mean(full)) < 0.02 * np.mean(full)
    assert abs(np.mean(uncorrected) - np.mean(full)) > 0.1 * np.mean(full)
