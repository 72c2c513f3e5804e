"""Exact scoring of a whole catalogue by codes: `CodeIndex.search` against the plain torch version of the same.

    python benchmarks/scoring.py                              # 12,101 items x 48 codes of 256, 22,363 users, the 20 best kept
    python benchmarks/scoring.py --users 2048 --out log.json

Both get the same tables [users, heads, codewords] batch by batch, in turn, and give the k best rows and scores of each user. The plain
version gathers a column of scores for each head, adds them up and calls `topk`. Codes and tables are random by seed: the work does not
depend on them. Target: 5 times faster with equal results. The exit code is 1 when it is missed.
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

from asymrec import machine
from asymrec.retrieval.exact import score_codes
from asymrec.retrieval.index import CodeIndex

TARGET = 5.0


def gather_search(tables: torch.Tensor, codes: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The plain version: tables [b, H, K], codes int64 [n, H]."""
    scores = torch.zeros(len(tables), len(codes))
    for head in range(codes.shape[1]):
        scores += tables[:, head, codes[:, head]]
    scores /= codes.shape[1]
    best = scores.topk(k)
    return best.indices, best.values


class Clock:
    def __init__(self):
        self.wall = self.cpu = 0.0

    def __call__(self, call):
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu
        return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("users", 22363), ("items", 12101), ("heads", 48), ("codewords", 256), ("k", 20), ("batch", 512), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--rival-users", type=int, help="users that the plain version scores; default all, else its time is scaled up")
    parser.add_argument("--threads", type=int, help="threads of torch; by default its own choice")
    parser.add_argument("--out", type=Path, help="JSON log")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    users, k = arguments.users, arguments.k
    rival_users = min(arguments.rival_users or users, users)

    codes = np.random.default_rng(arguments.seed).integers(0, arguments.codewords, (arguments.items, arguments.heads), np.int64)
    plain = torch.from_numpy(codes)
    index = CodeIndex(codes, (arguments.codewords,) * arguments.heads)
    generator = torch.Generator().manual_seed(arguments.seed)

    def tables(b: int) -> torch.Tensor:
        return torch.randn(b, arguments.heads, arguments.codewords, generator=generator).log_softmax(-1)

    first, clock = Clock(), {"ours": Clock(), "gather": Clock()}
    warm = tables(min(users, arguments.batch))
    first(lambda: index.search(warm, k))  # loads the compiled loops; they are compiled on the first run after an installation
    np.testing.assert_allclose(score_codes(warm[:32], codes), _scores(warm[:32], plain), rtol=1e-5, atol=1e-6)

    swapped, largest = 0, 0.0
    for start in range(0, users, arguments.batch):
        batch = tables(min(arguments.batch, users - start))
        rows, scores = clock["ours"](lambda batch=batch: index.search(batch, k))
        both = batch[: max(rival_users - start, 0)]
        if len(both):
            other_rows, other = (each.numpy() for each in clock["gather"](lambda both=both: gather_search(both, plain, k)))
            rows, scores = rows[: len(both)], scores[: len(both)]
            np.testing.assert_allclose(scores, other, rtol=1e-5, atol=1e-6)
            # two items may change places only where their scores are equal within the rounding of 48 additions
            places = rows != other_rows
            swapped += int(places.sum())
            if places.any():
                again = np.stack([_scores(both[u : u + 1], plain[rows[u]])[0] for u in np.flatnonzero(places.any(1))])
                largest = max(largest, float(np.abs(again - other[places.any(1)]).max()))
    assert largest <= 1e-5, f"other items, and their scores differ by {largest}"

    scale = users / rival_users
    ratio = clock["gather"].wall * scale / clock["ours"].wall
    facts = machine.facts("cpu")
    log = {
        "settings": {name: value for name, value in vars(arguments).items() if name != "out"},
        "seconds": {"ours": clock["ours"].wall, "gather": clock["gather"].wall * scale, "first call": first.wall},
        "processor_seconds": {"ours": clock["ours"].cpu, "gather": clock["gather"].cpu * scale},
        "ratio": ratio,
        "processor_ratio": clock["gather"].cpu * scale / clock["ours"].cpu,
        "compared_users": rival_users,
        "places_swapped_by_rounding": swapped,
        "largest_difference_of_their_scores": largest,
        "peak_memory_mib": machine.peak_memory(),
        "machine": facts,
    }
    table = Table("", "seconds", "processor seconds", "users / s", "times faster")
    table.title = f"{arguments.items:,} items x {arguments.heads} codes, {users:,} users, top {k}"
    for name, told, times in (("gather", "torch gathers", 1.0), ("ours", "CodeIndex.search", ratio)):
        wall, cpu = log["seconds"][name], log["processor_seconds"][name]
        table.add_row(told, f"{wall:.2f}", f"{cpu:.2f}", f"{users / wall:,.0f}", f"{times:.1f}")
    console = Console()
    console.print(table)
    equal = f"equal results for {rival_users:,} users ({swapped} of {rival_users * k:,} places swapped by rounding)"
    console.print(f"{equal}; {facts}", soft_wrap=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    return 0 if ratio >= TARGET else 1


def _scores(tables: torch.Tensor, codes: torch.Tensor) -> np.ndarray:
    """float32 [b, n], by one gather in float64."""
    heads = torch.arange(codes.shape[1])
    return tables.double()[:, heads, codes].mean(-1).float().numpy()


if __name__ == "__main__":
    sys.exit(main())
