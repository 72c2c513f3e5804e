"""RPG's graph-constrained decoding against exact search, on the validation part of a fitted run.

    asymrec fit DATA -o RUN --model rpg
    python benchmarks/graph_decoding.py RUN --out log.json

Both get the same tables of log-probabilities. For each number of neighbours, beam and steps: how many of the 10 best items of exact
search are found, the share of the catalogue that was scored, NDCG@10 with the history removed, and processor milliseconds a query (of the
search, without the network).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from asymrec import Recommender, machine
from asymrec.models import RPG
from asymrec.retrieval.index import CodeIndex

GRID = [
    (neighbours, beam, steps)
    for neighbours, settings in (
        (10, ((50, 5), (200, 5))),
        (50, ((10, 3), (10, 10), (50, 2), (50, 3), (50, 5), (50, 10), (100, 5), (200, 5))),
        (100, ((10, 5), (20, 5), (50, 3), (50, 5), (100, 5))),
        (200, ((5, 5), (10, 5), (20, 5))),
    )
    for beam, steps in settings
]


def timed(call: Callable, *arguments: object, **options: object) -> tuple:
    """What a call gives, and its processor seconds."""
    began = time.process_time()
    result = call(*arguments, **options)
    return result, time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a fitted rpg")
    parser.add_argument("--users", type=int, default=2000, help="validation users, default 2000")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--out", type=Path, help="JSON log")
    arguments = parser.parse_args()
    model, k = Recommender.load(arguments.run), arguments.k
    if not isinstance(model, RPG):
        parser.error(f"{arguments.run} is no rpg")
    data = model.recipe.data
    validation = model.dataset.split(data.split, data.validation_share, data.test_share).validation
    known = np.flatnonzero(validation.histories.lengths)
    validation = validation.take(known[np.unique(np.linspace(0, len(known) - 1, arguments.users).astype(int))])
    histories, targets, users = validation.histories, validation.targets, len(validation.users)
    tables = model.tables(histories)
    index = CodeIndex(model.catalogue()[1], model.quantizer.codebook_sizes)

    def quality(rows: np.ndarray) -> float:
        hits = rows[targets.owners] == targets.items[:, None]
        gains = np.bincount(targets.owners, (hits / np.log2(np.arange(2, k + 2))).sum(1), users)
        best = np.cumsum(1 / np.log2(np.arange(2, k + 2)))
        return float((gains / best[np.minimum(targets.lengths, k) - 1]).mean())

    index.search(tables[:64], k)  # loads the compiled loops
    (exact, _), seconds = timed(index.search, tables, k, exclude=histories)
    figures = {"recall": 1.0, "scored": 1.0, "ndcg": quality(exact), "ms": 1e3 * seconds / users}
    lines = [{"neighbours": None, "beam": None, "steps": None} | figures]
    graphs = {}
    for neighbours, beam, steps in GRID:
        if neighbours not in graphs:
            graphs[neighbours], built = timed(model.graph, neighbours)
            graphs[neighbours].search(tables[:64], k, beam, steps)
            lines.append({"neighbours": neighbours, "build_seconds": built})
        graph = graphs[neighbours]
        (rows, _, visited), seconds = timed(graph.search, tables, k, beam, steps, exclude=histories)
        found = float((rows[:, :, None] == exact[:, None, :]).any(2).mean())
        figures = {"recall": found, "scored": float(visited.mean() / len(index)), "ndcg": quality(rows), "ms": 1e3 * seconds / users}
        lines.append({"neighbours": neighbours, "beam": beam, "steps": steps} | figures)
    heads = ("neighbours", "beam", "steps", f"recall of the exact {k}", "share scored", f"NDCG@{k}", "ms a query")
    table = Table(*heads, title=f"{len(index):,} items, {users:,} users")
    for line in lines:
        if "recall" in line:
            where = [str(line[name] or "exact") for name in ("neighbours", "beam", "steps")]
            table.add_row(*where, f"{line['recall']:.4f}", f"{line['scored']:.4f}", f"{line['ndcg']:.4f}", f"{line['ms']:.3f}")
    Console().print(table)
    if arguments.out:
        log = {"run": arguments.run.name, "items": len(index), "users": users, "k": k, "rows": lines, "machine": machine.facts("cpu")}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
