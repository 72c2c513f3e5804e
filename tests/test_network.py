"""MSP, the packed decoder and the heads against their plain forms."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from asymrec.data import Sequences
from asymrec.data.batches import pack
from asymrec.nn.decoder import Decoder, causal_mask
from asymrec.nn.fused import dropout
from asymrec.nn.heads import CatalogueHead, FacetHeads
from asymrec.nn.losses import catalogue_cross_entropy
from asymrec.nn.msp import MSP


def test_msp_is_the_gated_sum_of_its_experts():
    torch.manual_seed(0)
    msp, x = MSP(12, 8, experts=3), torch.randn(20, 12) * 3 + 1
    torch.nn.init.normal_(msp.bias)
    msp.standardise(x)
    z = (x - x.mean(0)) / x.std(0)
    alpha = F.softmax(z @ msp.gate.weight.T + msp.gate.bias, -1)
    expected = torch.zeros(20, 8)
    for e in range(3):
        rows = slice(8 * e, 8 * (e + 1))
        inner = F.gelu(z @ msp.first.weight[rows].T + msp.first.bias[rows])
        expected += alpha[:, e : e + 1] * (inner @ msp.second[e] + msp.bias[e])
    torch.testing.assert_close(msp(x), expected, rtol=1e-4, atol=1e-5)


def test_msp_reads_no_dimension_in_which_training_is_all_alike():
    msp = MSP(3, 4)
    vectors = torch.tensor([[1.0, 5.0, 0.0], [3.0, 5.0, 0.0], [2.0, 5.0, 1e-9]])
    msp.standardise(vectors)
    assert msp.scale.tolist() == pytest.approx([1.0, 0.0, 0.0])
    assert torch.equal(msp(torch.tensor([[2.0, 5.0, 0.0]])), msp(torch.tensor([[2.0, 9.0, 1.0]])))
    msp.standardise(vectors[:1])  # of one item nothing is told apart
    assert msp.scale.tolist() == [0, 0, 0]


def test_the_mask_lets_a_place_see_its_own_past_and_nothing_else():
    segment = torch.tensor([[0, 0, 1, 1, -1]])
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert causal_mask(segment)[0, 0].int().tolist() == expected


@pytest.fixture
def decoder():
    torch.manual_seed(1)
    decoder = Decoder(width=16, layers=2, heads=4, ffn=32, dropout=0.3, history=9).eval()
    for weight in decoder.parameters():  # the start is almost linear and blind to positions: test a decoder that has learned
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.4)
    return decoder


def run(decoder, table, histories):
    """States of packed histories, [total, width]."""
    batch = pack(Sequences.of(histories), None, 9)
    items = torch.from_numpy(np.maximum(batch.items, 0))
    out = decoder(table[items], torch.from_numpy(batch.segment), torch.from_numpy(batch.position))
    return out.flatten(0, 1)[torch.from_numpy(batch.places)]


def test_a_packed_history_has_the_states_it_has_alone(decoder):
    rng = np.random.default_rng(0)
    table = torch.randn(30, 16)
    histories = [rng.integers(30, size=n) for n in (1, 9, 4, 3, 2, 7, 5, 1)]
    together = run(decoder, table, histories)
    alone = torch.cat([run(decoder, table, [history]) for history in histories])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_state_does_not_depend_on_what_comes_later(decoder):
    table = torch.randn(30, 16)
    first = run(decoder, table, [[1, 2, 3, 4, 5]])
    other = run(decoder, table, [[1, 2, 3, 9, 8]])
    torch.testing.assert_close(first[:3], other[:3])
    assert (first[3] - other[3]).abs().max() > 1e-3


def test_order_matters(decoder):
    table = torch.randn(30, 16)
    assert (run(decoder, table, [[1, 2, 3]])[-1] - run(decoder, table, [[2, 1, 3]])[-1]).abs().max() > 1e-3


def test_facet_heads_are_parallel_two_layer_mlps():
    torch.manual_seed(2)
    heads, states = FacetHeads(heads=5, words=7, width=16, inner=6, temperature=0.1), torch.randn(9, 16)
    codes = torch.randint(7, (9, 5))
    total = 0.0
    for h in range(5):
        rows = slice(6 * h, 6 * (h + 1))
        inner = F.gelu(states @ heads.first.weight[rows].T + heads.first.bias[rows])
        logits = F.cosine_similarity(inner[:, None], heads.second[h][None], dim=-1) / 0.1
        total += F.cross_entropy(logits, codes[:, h])
        torch.testing.assert_close(heads.log_probabilities(states)[:, h], logits.log_softmax(-1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(heads.loss(states, codes, torch.float32), total / 5, rtol=1e-4, atol=1e-5)


def test_catalogue_head_scores_by_the_cosine_with_the_sum_of_code_embeddings():
    torch.manual_seed(3)
    codes, states = torch.randint(7, (13, 4)), torch.randn(9, 16)
    head = CatalogueHead(codes, words=7, width=16, temperature=0.05)
    torch.nn.init.normal_(head.bias)
    vectors = torch.stack([sum(head.embedding[h, c] for h, c in enumerate(row)) for row in codes.tolist()])
    bias = torch.stack([sum(head.bias[h, c, 0] for h, c in enumerate(row)) for row in codes.tolist()])
    logits = F.cosine_similarity(states[:, None], vectors[None], dim=-1) / 0.05 + bias
    table, item_bias = head.items()
    torch.testing.assert_close(head.query(states) @ table.T + item_bias, logits, rtol=1e-4, atol=1e-4)
    targets = torch.randint(13, (9,))
    ours = catalogue_cross_entropy(head.query(states), table, targets, item_bias)
    torch.testing.assert_close(ours, F.cross_entropy(logits, targets), rtol=1e-4, atol=1e-4)


def test_embeddings_of_codes_are_learned_ones_plus_a_map_of_their_codewords():
    torch.manual_seed(4)
    codes, words = torch.randint(5, (11, 6)), torch.randn(2, 3, 5, 4)  # two facets of three levels
    head = CatalogueHead(codes, words=5, width=16, temperature=0.05, codewords=words)
    vectors = torch.stack(
        [sum(head.embedding[h, c] + words[h // 3, h % 3, c] @ head.map[h // 3] for h, c in enumerate(row)) for row in codes.tolist()]
    )
    torch.testing.assert_close(head.vectors(), vectors, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.vectors(torch.tensor([7, 2])), vectors[[7, 2]], rtol=1e-4, atol=1e-5)
    assert "codewords" not in head.state_dict()  # they are the quantizer's to keep


def test_embeddings_of_the_contents_codes_are_used_at_their_rate():
    torch.manual_seed(5)
    codes, words = torch.randint(5, (11, 7)), torch.randn(2, 3, 5, 4)  # six of the content and one behind them
    head = CatalogueHead(codes, words=5, width=400, temperature=0.05, codewords=words, content=6, rate=0.1)
    known = torch.einsum("mlkd,mdw->mlkw", words, head.map).flatten(0, 1)
    torch.testing.assert_close(head.embeddings()[:6], known + 0.1 * head.embedding[:6], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.embeddings()[6], head.embedding[6])
    torch.nn.init.normal_(head.bias)
    bias = torch.stack([sum(head.bias[h, c, 0] * (0.1 if h < 6 else 1) for h, c in enumerate(row)) for row in codes.tolist()])
    torch.testing.assert_close(head.items()[1], bias, rtol=1e-4, atol=1e-5)
    spread = (head.embeddings()[:6] - known).std() / head.embedding[6].std()
    assert 0.9 < spread < 1.1  # whatever the rate, they start alike

    def moved(rate):  # how far one step of the optimiser takes the items
        head = CatalogueHead(codes, words=5, width=400, temperature=0.05, content=6, rate=rate)
        before = head.vectors().detach()
        head.vectors()[:, 0].sum().backward()
        torch.optim.Adam(head.parameters(), lr=0.01).step()
        return (head.vectors() - before)[:, 0]

    torch.testing.assert_close(moved(1.0), torch.full((11,), -0.07), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(moved(0.1), torch.full((11,), -0.016), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_dropout_keeps_its_share_and_gives_the_same_mask_backwards(precision):
    torch.manual_seed(0)
    x = torch.ones(50, 40, 64, dtype=precision, requires_grad=True)
    out = dropout(x, 0.3)
    kept = out != 0
    assert abs(kept.float().mean() - 0.7) < 0.005
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / 0.7))
    out.backward(torch.full_like(out, 2.0))
    assert ((x.grad != 0) == kept).all()
    torch.testing.assert_close(x.grad[kept], torch.full_like(out[kept], 2 / 0.7))
    assert (dropout(x, 0.3) != 0).ne(kept).any()  # another draw
    torch.manual_seed(0)
    assert (dropout(x.transpose(0, 1).contiguous().transpose(0, 1), 0.3) == out).all()  # what is drawn does not depend on the layout
    assert dropout(x, 0.3, training=False) is x and dropout(x, 0.0) is x
