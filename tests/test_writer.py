"""What is written token by token, with beams, against the same encoder and decoder reading whole sequences."""

import numpy as np
import pytest
import torch

from asymrec.nn import writer
from asymrec.nn.t5 import Stack, padded
from asymrec.nn.writer import Writer

WIDTH, TOKENS, RUNS = 16, 11, [(2, 3), (1, 4)]
N, READ = 3, 10


@pytest.fixture(scope="module")
def stacks():
    torch.manual_seed(0)
    shape = WIDTH, 2, 3, 6, 24, 0.2
    found = [Stack(*shape, decoder=kind).eval() for kind in (False, True)]
    for stack in found:  # norms that do something
        for name, weight in stack.named_parameters():
            if name.endswith("norm"):
                torch.nn.init.uniform_(weight, 0.5, 1.5)
    return found, torch.randn(TOKENS, WIDTH)


def forced(stacks, read, sequences):
    """The decoder's states at the last of each sequence's tokens; sequences int64 [N, beams, length], of each encoded one."""
    (encoder, decoder), table = stacks
    encoded = padded(encoder(table[read], RUNS), RUNS)
    n, beams, length = sequences.shape
    return decoder(table[sequences].flatten(0, 2), [(n * beams, length)], *encoded).view(n, beams, length, WIDTH)[:, :, -1]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-2)])
@torch.no_grad()
def test_beams_have_the_states_of_their_whole_sequences(stacks, precision, tolerance, compiled, monkeypatch):
    monkeypatch.setattr(writer, "in_kernels", lambda *_: compiled)
    rng = np.random.default_rng(0)
    read = torch.from_numpy(rng.integers(TOKENS, size=READ))
    made = Writer(*stacks[0], stacks[1], (4, 5), precision)
    beams = made.begin(read, RUNS, N * (1 + 2 + 4 + 3 + 3))
    sequences = np.empty((N, 1, 0), np.int64)
    for width in (1, 2, 4, 3, 3):  # beams of a sequence: they split, and some end
        came = rng.integers(sequences.shape[1], size=(N, width))
        added = rng.integers(TOKENS, size=(N, width))
        parents = (came + np.arange(N)[:, None] * sequences.shape[1]).reshape(-1)
        sequences = np.concatenate((np.take_along_axis(sequences, came[..., None], 1), added[..., None]), 2)
        states = beams.step(parents, torch.from_numpy(added.reshape(-1)))
        assert states.dtype == torch.float32
        expected = forced(stacks, read, torch.from_numpy(sequences)).flatten(0, 1)
        torch.testing.assert_close(states, expected, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_it_keeps_the_weights_that_it_was_made_of(stacks):
    torch.manual_seed(1)
    pair, table = [Stack(WIDTH, 1, 3, 6, 24, 0.0, decoder=kind).eval() for kind in (False, True)], stacks[1].clone()
    made, read, tokens = Writer(*pair, table, (4, 2), torch.float32), torch.arange(READ), torch.zeros(N, dtype=torch.int64)
    before = made.begin(read, RUNS, N).step(np.arange(N), tokens)
    for weight in (table, *(weight for stack in pair for weight in stack.parameters())):
        weight.zero_()
    assert torch.equal(made.begin(read, RUNS, N).step(np.arange(N), tokens), before)
