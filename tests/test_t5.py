"""T5's encoder and decoder against plain forms of the same formulas, and the compiled pieces against torch's operations."""

import math

import pytest
import torch
from torch.nn import functional as F

from asymrec.nn import fused
from asymrec.nn.t5 import Stack, padded, relative_buckets

WIDTH, HEADS, HEAD = 16, 3, 6
RUNS = [(2, 1), (3, 4), (1, 7)]  # sequences, tokens in each
TOKENS = sum(count * length for count, length in RUNS)


@pytest.fixture(params=[False, True], ids=["encoder", "decoder"])
def stack(request):
    torch.manual_seed(0)
    return Stack(WIDTH, 2, HEADS, HEAD, 24, dropout=0.2, decoder=request.param).eval()


def norm(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def plain(stack, x, states=None):
    """One sequence [tokens, width] through the layers as T5 has them: keys and values of the encoder's states computed, no fusing."""
    n = len(x)
    bias = stack.distance[:, relative_buckets(n, n, not stack.decoder)]
    if stack.decoder:
        bias = bias + torch.full((n, n), -math.inf).triu(1)

    def attend(q, k, v, bias):
        q, k, v = (part.view(len(part), HEADS, HEAD).transpose(0, 1) for part in (q, k, v))
        return (((q @ k.transpose(1, 2)) + bias).softmax(-1) @ v).transpose(0, 1).reshape(q.shape[1], -1)

    for number, (attention, feed) in enumerate(zip(stack.attention, stack.feed)):
        x = x + attention.out(attend(*attention.qkv(norm(x, attention.norm)).chunk(3, -1), bias))
        if stack.decoder:
            cross = stack.cross[number]
            q, k, v = norm(x, cross.norm) @ cross.query.flatten(0, 1).T, *(states @ w.flatten(0, 1).T for w in (cross.key, cross.value))
            x = x + attend(q, k, v, 0) @ cross.out.transpose(0, 1).flatten(1).T
        x = x + feed.down(F.relu(feed.up(norm(x, feed.norm))))
    return norm(x, stack.norm)


def states_for(stack, over):
    return torch.randn(sum(count * length for count, length in over), WIDTH) if stack.decoder else None


def test_sequences_end_to_end_have_the_states_they_have_alone(stack):
    over = [(1, 2), (3, 3), (2, 5)]  # of the encoder: as many sequences, other lengths
    stack_runs = [(6, 4)] if stack.decoder else RUNS  # of the decoder all are as long, and each encoded one has as many
    x, states = torch.randn(24 if stack.decoder else TOKENS, WIDTH), states_for(stack, over)
    together = stack(x, stack_runs, *(padded(states, over) if stack.decoder else ()))
    lengths = [length for count, length in stack_runs for _ in range(count)]
    parts = states.split([length for count, length in over for _ in range(count)]) if stack.decoder else [None] * 6
    alone = torch.cat([plain(stack, part, keys) for part, keys in zip(x.split(lengths), parts)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_padding_keeps_every_token_and_says_where_there_is_none():
    states = torch.randn(11, WIDTH)
    found, missing = padded(states, [(1, 2), (3, 3)])
    assert found.shape == (4, 3, WIDTH) and missing.tolist() == [[0, 0, -math.inf]] + [[0, 0, 0]] * 3
    torch.testing.assert_close(found[missing == 0], states)


def test_a_decoder_does_not_look_ahead_and_an_encoder_does():
    torch.manual_seed(2)
    x, changed = torch.randn(5, WIDTH), torch.randn(5, WIDTH)
    changed[:3] = x[:3]
    decoder, encoder = (Stack(WIDTH, 1, HEADS, HEAD, 24, dropout=0.0, decoder=kind).eval() for kind in (True, False))
    encoded = padded(torch.randn(2, WIDTH), [(1, 2)])
    before, after = (decoder(one, [(1, 5)], *encoded) for one in (x, changed))
    torch.testing.assert_close(before[:3], after[:3])
    assert (before[3:] - after[3:]).abs().min() > 0
    before, after = (encoder(one, [(1, 5)]) for one in (x, changed))
    assert (before[:3] - after[:3]).abs().max() > 1e-3


def test_buckets_are_single_distances_then_a_logarithmic_scale():
    """By hand from the paper's formula: 32 buckets, the last for 128 and more; both ways: 16 to each side, 8 of them single distances."""
    both, past = relative_buckets(200, 200, True), relative_buckets(200, 200, False)
    at = 150  # the query
    far = (8, 8), (11, 8), (12, 9), (16, 10), (32, 12), (64, 14), (90, 14), (91, 15), (128, 15), (150, 15)
    for back, bucket in ((0, 0), (1, 1), (7, 7), *far):
        assert both[at, at - back] == bucket, back
        if 0 < back < 200 - 50:
            assert both[150 - back, 150] == 16 + bucket, back  # the key lies after the query
    for back, bucket in ((0, 0), (1, 1), (15, 15), (16, 16), (19, 17), (32, 21), (64, 26), (113, 31), (128, 31), (150, 31)):
        assert past[at, at - back] == bucket, back
    assert (past.triu(1) == 0).all()
    assert relative_buckets(3, 5, True).shape == (3, 5)
    assert (relative_buckets(9, 9, True)[2:, 2:] == relative_buckets(7, 7, True)).all()  # distance alone counts


PRECISIONS = pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


def both_ways(function, *inputs, precision, tolerance, monkeypatch):
    """Output and gradients, compiled in this precision and by torch's operations in float32."""
    found = []
    for compiled in (True, False):
        parts = [x.to(precision if compiled else torch.float32, copy=True).requires_grad_() for x in inputs]
        monkeypatch.setattr(fused, "_compiled", lambda *_, answer=compiled: answer)
        out = function(*[part * 1 for part in parts])
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
        found.append((out.float(), *torch.autograd.grad((out.float() * weight).sum(), parts)))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=tolerance, atol=tolerance)


@PRECISIONS
def test_compiled_pieces_are_torchs_operations(precision, tolerance, monkeypatch):
    how = {"precision": precision, "tolerance": tolerance, "monkeypatch": monkeypatch}
    both_ways(lambda u: fused.masked_relu(u, 0.0), drawn(9, 20, seed=0), **how)
    bias = torch.randn(HEADS, 7, 5)
    bias[:, 3, 2] = -math.inf
    both_ways(lambda s: fused.masked_softmax(s, bias, 0.0), drawn(90, HEADS, 7, 5, seed=1), **how)

    def attention(qkv, bias):
        return fused.self_attention(qkv, RUNS, HEADS, bias.float(), 0.0)

    both_ways(attention, drawn(TOKENS, 3 * HEADS * HEAD, seed=2), drawn(HEADS, 7, 7, seed=3), **how)


@PRECISIONS
@pytest.mark.parametrize("begins", [False, True])
def test_the_compiled_norm_is_the_plain_one(begins, precision, tolerance, monkeypatch):
    torch.manual_seed(0)
    x, y, weight = torch.randn(70, WIDTH), torch.randn(70, WIDTH).bfloat16(), torch.rand(WIDTH) + 0.5
    upstream, found = (torch.randn(70, WIDTH), torch.randn(70, WIDTH)), []
    for compiled, kind in ((True, precision), (False, torch.float32)):
        monkeypatch.setattr(fused, "_compiled", lambda *_, answer=compiled: answer)
        leaves = [part.clone().requires_grad_() for part in (x, y.to(kind), weight)]
        total, normed = fused.add_norm(None if begins else leaves[0], *leaves[1:], 0.0, kind)
        assert total.dtype == torch.float32 and normed.dtype == kind
        slope = (total * upstream[0]).sum() + (normed.float() * upstream[1]).sum()
        found.append((total, normed, *torch.autograd.grad(slope, leaves[begins:])))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=min(tolerance, 2e-2), atol=tolerance)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_dropout_keeps_its_share_and_its_mask_on_the_way_back(precision):
    torch.manual_seed(0)
    p, ones = 0.3, torch.ones(200, 64, dtype=precision)
    x = ones.clone().requires_grad_()
    out = fused.masked_relu(x * 1, p)
    assert set(out.unique().tolist()) == {0.0, 1.0} and abs(out.float().mean() - 0.7) < 0.02
    (slope,) = torch.autograd.grad(out, x, ones.clone())
    assert torch.equal(slope, out.detach())
    assert not torch.equal(out, fused.masked_relu(ones.clone(), p))  # another call, another mask
    torch.manual_seed(0)
    assert torch.equal(out, fused.masked_relu(ones.clone(), p))  # the same seed, the same

    y = ones.clone().requires_grad_()
    total, _ = fused.add_norm(torch.zeros(200, 64), y, torch.ones(64), p, precision)
    assert abs((total == 0).float().mean() - p) < 0.02
    torch.testing.assert_close(total[total > 0], torch.tensor(1 / (1 - p)).expand(int((total > 0).sum())))
    (slope,) = torch.autograd.grad(total, y, torch.ones(200, 64))
    assert torch.equal(slope > 0, total > 0)

    scores = torch.zeros(50, 2, 8, 16, dtype=precision, requires_grad=True)
    kept = fused.masked_softmax(scores * 1, torch.zeros(2, 8, 16), p)
    assert set(kept.unique().tolist()) == {0.0, 0.125} and abs((kept == 0).float().mean() - p) < 0.02
    given = torch.randn(kept.shape).to(precision)
    (slope,) = torch.autograd.grad(kept, scores, given.clone())
    mask = (kept > 0).float()
    expected = 0.125 * (mask * given.float() - (0.125 * mask * given.float()).sum(-2, keepdim=True))
    torch.testing.assert_close(slope.float(), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_what_dropout_takes_is_made_good_for(precision):
    """Each branch is linear in its mask: the mean over many masks is what it says without any."""
    torch.manual_seed(3)
    stack, x, states = Stack(WIDTH, 1, HEADS, HEAD, 24, dropout=0.3, decoder=True), torch.randn(8, WIDTH), torch.randn(6, WIDTH)
    branches = {
        "attention": lambda: stack.attention[0](x, [(2, 4)], stack.bias(4)),
        "cross": lambda: stack.cross[0](x, *padded(states, [(1, 2), (1, 4)])),
        "feed": lambda: stack.feed[0](x),
    }
    with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
        means = {name: torch.stack([branch().detach().float() for _ in range(2500)]).mean(0) for name, branch in branches.items()}
        stack.eval()
        for name, branch in branches.items():
            still = branch().detach().float()
            assert (means[name] - still).abs().mean() < 0.03 * still.abs().mean(), name
