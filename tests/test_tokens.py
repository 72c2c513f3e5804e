"""Who sees whom in TokenFormer's layers: by hand, against the paper's rule on the whole square, and with more padding."""

import pytest
import torch
from torch.nn import functional as F

from asymrec.nn.token_rivals import HSTULayer, MixedLayer, distance_buckets, full_mask
from asymrec.nn.tokens import Rotary, Stream, TokenLayer, TokenLayers, by_blocks, by_square, prefix_mask, reach

SHAPES = [[None, None], [None, 4, 2], [5, 3], [4, None, 2], [None, None, 2, 1]]


def stream(B=3, M=2, T=14, K=3, lengths=(14, 9, 3), cuts=((14, 14, 14), (14, 12, 10), (14, 14, 12)), width=16, seed=0):
    torch.manual_seed(seed)
    lengths, cuts = torch.tensor(lengths[:B]), torch.tensor(cuts[:B])
    column, pad = torch.arange(T), (T - lengths).unsqueeze(1)
    tokens = torch.randn(B, M, width), torch.randn(B, T, width), torch.randn(B, K, width)
    return Stream(*tokens, (column - pad).clamp_min(0), cuts - pad, column >= pad, cuts)


def layers(windows, gate=True, bands=True):
    torch.manual_seed(1)
    found = TokenLayers([TokenLayer(16, 2, 24, 0.0, window, gate, bands) for window in windows], windows, 16)
    if gate:
        for layer in found.layers:
            torch.nn.init.normal_(layer.gate.weight)
    return found.eval()


def by_the_rule(network, s, row, target):
    """One target of one stream, unpadded, every token in every layer, and visible(q, k) written out as the paper has it."""
    there = s.valid[row] & (torch.arange(s.columns.shape[1]) < s.cuts[row, target])
    M = s.static.shape[1]
    x = torch.cat([s.static[row], s.columns[row, there], s.targets[row, target : target + 1]])
    places = torch.cat([torch.zeros(M, dtype=torch.long), s.places[row, there], s.target_places[row, target : target + 1]])
    q, k = torch.arange(len(x)).unsqueeze(1), torch.arange(len(x))
    for layer, window in zip(network.layers, network.windows):
        visible = k <= q
        if window is not None:
            visible = visible & ((q - k < window) | (q < M)) & ~((q >= M) & (k < M))
        normed, attention = layer.norm_attention(x), layer.attention
        turn = Rotary(places.unsqueeze(0), 8)
        keys, values = attention.key_value(normed).unflatten(-1, (2, 2, 8)).permute(1, 2, 0, 3)
        queries = turn(attention.query(normed).unflatten(-1, (2, 8)).transpose(0, 1).unsqueeze(0))[0]
        logits = queries @ turn(keys.unsqueeze(0))[0].transpose(1, 2) / 8**0.5
        mixed = logits.masked_fill(~visible, float("-inf")).softmax(-1) @ values
        branch = attention.out(mixed.transpose(0, 1).flatten(1))
        if layer.gate is not None:
            branch = torch.sigmoid(layer.gate(normed)) * branch
        x = x + branch
        inner, value = layer.up(layer.norm_ffn(x)).chunk(2, -1)
        x = x + layer.down(F.silu(inner) * value)
    return network.norm(x)[-1]


def test_the_full_mask_by_hand():
    found = prefix_mask(1, torch.tensor([[False, True, True]]))[0, 0].int().tolist()
    # one static token, one empty column, two columns
    assert found == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]


def test_what_each_layer_takes_in_by_hand():
    assert reach([None, None, 32, 16], 200, 200) == [0, 0, 154, 185, 200]
    assert reach([None, None], 200, 200) == [0, 0, 200]
    assert reach([4, 2], 10, 12) == [6, 9, 12]  # a target at place 10 sees 9 of the last layer, which sees 6 .. 9


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("windows", SHAPES, ids=str)
def test_every_target_is_what_the_rule_says(windows, gate):
    s, network = stream(), layers(windows, gate)
    found = network(s)
    for row in range(3):
        for target in range(3):
            assert torch.allclose(found[row, target], by_the_rule(network, s, row, target), atol=1e-5)


def padded(s, more=6):
    garbage = torch.randn(len(s.columns), more, s.columns.shape[2])
    columns, places, valid = torch.cat([garbage, s.columns], 1), F.pad(s.places, (more, 0)), F.pad(s.valid, (more, 0))
    return Stream(s.static, columns, s.targets, places, s.target_places, valid, s.cuts + more)


@pytest.mark.parametrize("windows", SHAPES, ids=str)
def test_more_padding_moves_nothing(windows):
    s, network = stream(), layers(windows)
    assert torch.allclose(network(s), network(padded(s)), atol=1e-5)


def rival(name):
    torch.manual_seed(1)
    made = [HSTULayer(16, 2, 0.0) if name == "hstu" else MixedLayer(16, 2, 24, 0.0, 2) for _ in range(3)]
    return TokenLayers(made, [None] * 3, 16).eval()


@pytest.mark.parametrize("name", ["hstu", "onetrans"])
class TestRivals:
    def test_more_padding_moves_nothing(self, name):
        s, network = stream(), rival(name)
        assert torch.allclose(network(s), network(padded(s)), atol=1e-5)

    def test_a_target_sees_the_past_and_itself_alone(self, name):
        s, network = stream(), rival(name)
        found = network(s)
        alone = Stream(s.static, s.columns, s.targets[:, 1:2], s.places, s.target_places[:, 1:2], s.valid, s.cuts[:, 1:2])
        assert torch.allclose(network(alone)[:, 0], found[:, 1], atol=1e-5)
        changed = s.columns.clone()
        changed[:, 12:] = 9.0  # row 1: target 1 sees the columns before 12, target 0 all 14
        later = network(Stream(**(vars(s) | {"columns": changed})))
        assert torch.allclose(later[1, 1:], found[1, 1:], atol=1e-5) and not torch.allclose(later[1, 0], found[1, 0], atol=1e-3)

    def test_everything_that_is_seen_matters(self, name):
        s, network = stream(), rival(name)
        for part in ("static", "columns", "targets"):
            other = Stream(**(vars(s) | {part: getattr(s, part).flip(0)}))
            assert not torch.allclose(network(other)[0], network(s)[0], atol=1e-3)


def test_the_whole_mask_by_hand():
    s = stream(B=1, M=1, T=3, K=2, lengths=(2,), cuts=((3, 2),))
    assert full_mask(s)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],  # static
        [1, 1, 0, 0, 0, 0],  # an empty column
        [1, 0, 1, 0, 0, 0],
        [1, 0, 1, 1, 0, 0],
        [1, 0, 1, 1, 1, 0],  # a target after both columns
        [1, 0, 1, 0, 0, 1],  # one after the first
    ]


def test_distances_have_buckets():
    found = distance_buckets(torch.tensor([[0, 5, 40, 1000]]))[0]
    assert found[1].tolist() == [5, 0, 0, 0] and 16 < found[2, 0] < found[3, 0] == 31


@pytest.mark.parametrize("n", [1, 5, 8, 23])
def test_blocks_give_what_the_square_gives(n):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 2, n, 8), torch.randn(2, 2, 23, 8), torch.randn(2, 2, 23, 8)
    valid = torch.arange(23) >= torch.tensor([[0], [9]])
    a, b = (attend(q, k, v, valid, 4) for attend in (by_blocks, by_square))
    seen = valid[:, 23 - n :]
    assert torch.allclose(a.transpose(1, 2)[seen], b.transpose(1, 2)[seen], atol=1e-5)


def test_static_tokens_reach_a_target_only_through_full_layers():
    s = stream()
    other = Stream(**(vars(s) | {"static": torch.randn_like(s.static)}))
    assert torch.equal(layers([5, 3])(s), layers([5, 3])(other))
    assert not torch.allclose(layers([None, 3])(s), layers([None, 3])(other))


def test_the_gate_starts_as_one_number():
    layer = TokenLayer(16, 2, 24, 0.0, None, True)
    assert torch.sigmoid(layer.gate(torch.randn(4, 16))).unique().tolist() == [pytest.approx(0.7311, abs=1e-4)]
