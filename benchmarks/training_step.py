"""Interactions a second of the shipped training step against the plain version of the same model, turn by turn in one run.

    python benchmarks/training_step.py DATA                       # a data folder: real lengths of histories, real catalogue
    python benchmarks/training_step.py DATA --steps 8 --out log.json

The plain version is what research code does: histories padded to 50, MSP at every place, one `nn.Linear` after another for experts
and heads, `F.cross_entropy` on all logits at once, dropout where the shipped one has it. Both take the same batches of users and the
same AdamW, and before any clock runs their losses on one batch, with equal weights and no dropout, are compared. The plain version
runs in float32, its usual way, and under the same bfloat16 autocast as the shipped one. Vectors and codes are random: the work does
not depend on them. Target: 3 times more interactions a second than either, for the shipped objective. Exit code 1 when it is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from asymrec import Dataset, Recipe, machine
from asymrec.data import Sequences
from asymrec.device import choose_precision
from asymrec.models import AsymRec
from asymrec.models.asymrec import Network
from asymrec.models.trained import cut, history_of

TARGET = 3.0


class Plain(nn.Module):
    """The network of `asymrec.models.asymrec.Network`, written the plain way, with its weights."""

    def __init__(self, network: Network, recipe: Recipe, history: int):
        super().__init__()
        net, self.objective, self.temperature = recipe.network, recipe.training.objective, recipe.training.temperature
        self.vectors, self.codes = network.vectors, network.codes.long()
        self.dropout, self.heads, self.history = net.dropout, net.heads, history
        msp, width = network.msp, net.width
        self.mean, self.scale = msp.mean, msp.scale
        self.gate = _linear(msp.gate.weight, msp.gate.bias)
        parts = [slice(width * e, width * (e + 1)) for e in range(net.experts)]
        self.first = nn.ModuleList(_linear(msp.first.weight[part], msp.first.bias[part]) for part in parts)
        self.second = nn.ModuleList(_linear(msp.second[e].T, msp.bias[e]) for e in range(net.experts))
        self.norm, self.decoder = network.norm, network.decoder
        head = network.head
        if self.objective == "heads":
            parts = zip(head.first.weight.chunk(len(head.second)), head.first.bias.chunk(len(head.second)))
            self.inner = nn.ModuleList(_linear(weight, bias) for weight, bias in parts)
            self.words = nn.ModuleList(_linear(words, None) for words in head.second)
        else:
            self.embeddings = nn.ModuleList(nn.Embedding.from_pretrained(words.detach().clone(), freeze=False) for words in head.embedding)
            self.biases = nn.ModuleList(nn.Embedding.from_pretrained(bias.detach().clone(), freeze=False) for bias in head.bias)
            self.repeat = None if network.again is None else nn.Parameter(network.again.detach().clone())

    def forward(self, pieces: Sequences) -> torch.Tensor:
        n, width = len(pieces), self.history
        items = torch.zeros(n, width, dtype=torch.long)
        targets = torch.full((n, width), -100)
        for i in range(n):
            piece = torch.from_numpy(pieces[i].astype(np.int64))
            items[i, : len(piece) - 1], targets[i, : len(piece) - 1] = piece[:-1], piece[1:]
        x = (self.vectors[items] - self.mean) * self.scale
        alpha = F.softmax(self.gate(x), -1)
        read = sum(alpha[..., e : e + 1] * self.second[e](F.gelu(self.first[e](x))) for e in range(len(self.first)))
        states = self._decode(self.norm(read.float())).float()
        if self.objective == "heads":
            codes = self.codes[targets.clamp_min(0)].masked_fill((targets < 0).unsqueeze(-1), -100)
            losses = []
            for h, (inner, words) in enumerate(zip(self.inner, self.words)):
                hidden = F.normalize(F.gelu(inner(states)).float(), dim=-1)
                logits = F.linear(hidden, F.normalize(words.weight, dim=-1)).float() / self.temperature
                losses.append(F.cross_entropy(logits.flatten(0, 1), codes[..., h].flatten(), ignore_index=-100))
            return torch.stack(losses).mean()
        table = F.normalize(sum(words(self.codes[:, h]) for h, words in enumerate(self.embeddings)), dim=-1)
        bias = sum(words(self.codes[:, h]) for h, words in enumerate(self.biases)).squeeze(-1)
        logits = (F.normalize(states, dim=-1) / self.temperature @ table.T).float() + bias
        if self.repeat is not None:
            seen = torch.zeros(n, width, len(table), dtype=torch.bool)
            for place in range(width):  # everything at or before the place
                seen[:, place:].scatter_(2, items[:, None, place : place + 1].expand(-1, width - place, 1), True)
            logits = logits + seen * (self.repeat / self.temperature)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)

    def _decode(self, x: torch.Tensor) -> torch.Tensor:
        """The decoder's own layers on padded histories: causal attention needs no further mask, padding comes last."""
        n, places, width = x.shape
        drop = self.dropout if self.training else 0.0
        x = F.dropout(x + self.decoder.position.weight[:places], drop)
        for block in self.decoder.blocks:
            q, k, v = block.qkv(block.norm_attention(x)).view(n, places, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=drop)
            x = x + F.dropout(block.out(attended.transpose(1, 2).reshape(n, places, width)), drop)
            x = x + F.dropout(block.down(F.gelu(block.up(block.norm_ffn(x)))), drop)
        return self.decoder.norm(x)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


class Runner:
    """One way of making a step, and the seconds of each step so far."""

    def __init__(self, name: str, network: nn.Module, loss, precision: torch.dtype):
        self.name, self.network, self.loss, self.precision, self.seconds = name, network, loss, precision, []
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)

    def __call__(self, batch: Sequences) -> None:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == torch.bfloat16):
            value = self.loss(batch)
        self.optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)


def compare(data: Dataset, objective: str, users: int, steps: int) -> dict:
    # what the plain version is
    plain = {"read": "vectors", "codeword_map": False, "code_rate": 1.0, "popularity_codes": False, "time_codes": False}
    recipe = Recipe.of(objective=objective, **plain)
    train, quantizer = data.split().train, recipe.quantizer
    codes = torch.randint(quantizer.codewords, (data.n_items, quantizer.facets * quantizer.levels))
    model = AsymRec(recipe)  # as its `fit` makes it, but for vectors and codes: their values make no difference to a step's time
    model.history, model.precision = history_of(train.lengths), torch.float32
    model._counts, model._prepared = data.split().train_counts(data.n_items), {"vectors": torch.randn(data.n_items, 384), "codes": codes}
    pieces = cut(train, model.history)
    order = np.random.default_rng(0).permutation(len(pieces))
    batches = [pieces.take(order[i * users : (i + 1) * users]) for i in range(steps + 1)]
    precision = choose_precision("auto", torch.device("cpu"))

    network = model.network = model._network(data.n_items)
    plain = Plain(network, recipe, model.history)
    network.eval(), plain.eval()
    with torch.no_grad():
        few = batches[0].take(np.arange(16))
        ours, theirs = model._loss(few).item(), plain(few).item()
    if abs(ours - theirs) > 1e-4 * abs(theirs):
        raise SystemExit(f"the two versions are not the same model: losses {ours} and {theirs}")
    network.train(), plain.train()
    model.precision = precision
    other = Plain(network, recipe, model.history).train()
    runners = [
        Runner("shipped", network, model._loss, torch.float32),  # its step sets autocast by itself
        Runner(f"plain {str(precision).removeprefix('torch.')}", other, other, precision),
        Runner("plain float32", plain, plain, torch.float32),
    ]
    runners = runners[:1] + runners[2:] if precision == torch.float32 else runners
    for number, batch in enumerate(batches):
        for runner in runners:
            runner(batch)
        if number == 0:  # first use compiles kernels and touches memory
            for runner in runners:
                runner.seconds.clear()
    interactions = sum(int((batch.lengths - 1).sum()) for batch in batches[1:])
    rates = {runner.name: interactions / sum(runner.seconds) for runner in runners}
    return {
        "objective": objective,
        "loss_difference": abs(ours - theirs),
        "interactions_a_step": interactions / steps,
        "interactions_a_second": rates,
        "ratio": {name: rates["shipped"] / rate for name, rate in rates.items() if name != "shipped"},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--users", type=int, default=256, help="users a step; default 256")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each version; default 10")
    parser.add_argument("--objective", choices=("catalogue", "heads", "both"), default="both")
    parser.add_argument("--out", type=Path, help="JSON log")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    data = Dataset.read(arguments.data)
    console, table = Console(), Table("objective", "version", "interactions / s", "shipped is faster by")
    results = []
    for objective in ("catalogue", "heads") if arguments.objective == "both" else (arguments.objective,):
        found = compare(data, objective, arguments.users, arguments.steps)
        results.append(found)
        for name, rate in found["interactions_a_second"].items():
            table.add_row(objective, name, f"{rate:,.0f}", f"{found['ratio'][name]:.1f} x" if name in found["ratio"] else "")
    console.print(table)
    passed = all(ratio >= TARGET for ratio in results[0]["ratio"].values())
    log = {"data": arguments.data.name, "users_a_step": arguments.users, "steps": arguments.steps, "results": results}
    log |= {"target": TARGET, "passed": passed, "machine": machine.facts("cpu")}
    if arguments.out:
        arguments.out.write_text(json.dumps(log, indent=1) + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
