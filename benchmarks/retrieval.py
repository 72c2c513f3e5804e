"""Exact top-k over codes against what else can be done on a processor: one run, one table, one log, plots.

    pip install -e '.[benchmarks]'
    python benchmarks/retrieval.py --run RUN --out benchmarks/logs/retrieval.json --plots docs/images
    python benchmarks/retrieval.py --sizes 10000 100000 --seconds 1            # a quick look without a fitted run

RUN is a finished asymrec whose heads are linear. Its items' codes are the pool that the simulated catalogue is drawn from: each item
takes each facet (its levels together) with probability 0.7 from one real item and else from another, so codewords and their company
inside a facet are as frequent as measured. Its code embeddings and its users' states are the queries: tables[h, k] = <state, e_hk>, and
an item's vector, for those that search vectors, is the sum of its code embeddings, so that all rank the same catalogue by the same
score. Without a run codebooks are Gaussian and codes follow a power law.

Rivals, turn by turn on the same queries: PQTopK as torch gathers; a float32 product with n x 128 vectors and top-k in chunks, what a
SASRec serves (random vectors: its cost does not depend on them); faiss's exact flat index, IVF-PQ and HNSW over the items' vectors with
their recall of the exact list. A filter that leaves 1 % of the items is timed beside the search without one.

Milliseconds a query of wall time (p50, p95, p99 over turns; a batch's divided by its size); one thread and two. Exit code 1 when a
target is missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from asymrec import Recommender, machine
from asymrec.retrieval.filters import Bitmap
from asymrec.retrieval.index import CodeIndex

WIDTH, CHUNK = 128, 1 << 16
QUERIES = 256


class Catalogue:
    """Simulated items: codes [n, H], code embeddings [H, K, d], states [q, d]."""

    def __init__(self, run: Path | None, n: int, facets: int = 16):
        rng = np.random.default_rng(n)
        if run is None:
            self.embedding = rng.standard_normal((48, 256, WIDTH)).astype(np.float32) * (48 * WIDTH) ** -0.5
            self.states = rng.standard_normal((QUERIES, WIDTH)).astype(np.float32) * 14
            pool = np.minimum(255, (rng.pareto(1.0, (20_000, 48)) * 12).astype(np.int64))
        else:
            model = Recommender.load(run)
            head, pool = model.network.head, model.catalogue()[1]
            facets = model.quantizer.code_shape[0]
            users = np.linspace(0, len(model.dataset.sequences) - 1, QUERIES).astype(int)
            with torch.inference_mode():
                self.states = head.query(model._last_states(model.dataset.sequences.take(users))).numpy()
                self.embedding = head.embeddings().detach().numpy()
        levels = pool.shape[1] // facets
        one, other = rng.integers(0, len(pool), (2, n))
        self.codes = pool[one].astype(np.uint8)
        for facet in range(facets):
            changed = np.flatnonzero(rng.random(n) < 0.3)
            part = slice(facet * levels, (facet + 1) * levels)
            self.codes[changed, part] = pool[other[changed], part]
        self.tables = torch.from_numpy(np.einsum("qd,hkd->qhk", self.states, self.embedding))

    def vectors(self) -> np.ndarray:
        out = np.zeros((len(self.codes), self.embedding.shape[2]), np.float32)
        for head, words in enumerate(self.embedding):
            for start in range(0, len(out), CHUNK):
                out[start : start + CHUNK] += words[self.codes[start : start + CHUNK, head]]
        return out


def gathers(tables: torch.Tensor, columns: torch.Tensor, k: int) -> torch.Tensor:
    """PQTopK in plain torch; columns int64 [H, n]."""
    scores = torch.zeros(len(tables), columns.shape[1])
    for head, column in enumerate(columns):
        scores += tables[:, head, column]
    return scores.topk(k).indices


def product(queries: torch.Tensor, items: torch.Tensor, k: int) -> torch.Tensor:
    """A float32 product and top-k, chunk by chunk with the best so far."""
    values, rows = [], []
    for start in range(0, len(items), CHUNK):
        best = (queries @ items[start : start + CHUNK].T).topk(min(k, len(items) - start))
        values.append(best.values)
        rows.append(best.indices + start)
    best = torch.cat(values, 1).topk(k)
    return torch.cat(rows, 1).gather(1, best.indices)


Call = Callable[[slice], Any]  # some of the queries


def turns(calls: dict[str, Call], batch: int, seconds: float, most: int = 300) -> dict[str, np.ndarray]:
    """Milliseconds a query of each call, all in turn until each has had its seconds (at least three turns, at most `most`)."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(slice(0, batch))
    for turn in range(most):
        waiting = [name for name, done in spent.items() if len(done) < 3 or sum(done) < seconds * 1000]
        for name in waiting:
            began = time.perf_counter()
            calls[name](slice(turn * batch % QUERIES, turn * batch % QUERIES + batch))
            spent[name].append((time.perf_counter() - began) * 1000)
        if not waiting:
            break
    return {name: np.array(done) / batch for name, done in spent.items()}


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, exact)]))


def measure(catalogue: Catalogue, arguments: argparse.Namespace, threads: int, say: Callable[[dict], None]) -> None:
    n, k = len(catalogue.codes), arguments.k
    index = CodeIndex(catalogue.codes, (256,) * catalogue.codes.shape[1])
    few = Bitmap(np.random.default_rng(1).random(n) < 0.01)
    columns = torch.from_numpy(catalogue.codes.T.astype(np.int64)) if n <= arguments.gathers else None
    items = torch.empty(n, WIDTH).uniform_(-1, 1)
    states = torch.rand(QUERIES, WIDTH)
    calls: dict[str, Call] = {
        "codes, exact": lambda part: index.search(catalogue.tables[part], k),
        "codes, exact, filter of 1 %": lambda part: index.search(catalogue.tables[part], k, only=few),
        "float32 product 128": lambda part: product(states[part], items, k),
    }
    for batch in arguments.batches:
        rival = {}
        if columns is not None and (batch == 1 or n * batch <= arguments.gathers * 8):
            rival["PQTopK, torch gathers"] = lambda part: gathers(catalogue.tables[part], columns, k)
        for name, spent in turns(calls | rival, batch, arguments.seconds).items():
            p50, p95, p99 = (float(value) for value in np.quantile(spent, (0.5, 0.95, 0.99)))
            row = {"method": name, "items": n, "batch": batch, "threads": threads, "turns": len(spent)}
            say(row | {"p50": p50, "p95": p95, "p99": p99, "bytes": index.nbytes if "codes" in name else None})


def measure_faiss(catalogue: Catalogue, arguments: argparse.Namespace, say: Callable[[dict], None]) -> None:
    """faiss over the items' vectors, and ours over their codes, with the recall of the flat index's list."""
    import faiss

    vectors, states, k = catalogue.vectors(), catalogue.states, arguments.k
    n, width = vectors.shape
    flat = faiss.IndexFlatIP(width)
    flat.add(vectors)
    kinds = {"faiss flat, exact": (flat, "")}
    lists = int(4 * n**0.5)
    if n <= arguments.ivfpq:
        ivfpq = faiss.index_factory(width, f"IVF{lists},PQ{width // 4}", faiss.METRIC_INNER_PRODUCT)
        ivfpq.train(vectors[np.random.default_rng(2).permutation(n)[: 40 * lists]])
        ivfpq.add(vectors)
        ivfpq.nprobe = max(8, lists // 64)
        kinds["faiss IVF-PQ"] = ivfpq, f"{lists} lists, {ivfpq.nprobe} probed, {width // 4} bytes"
    if n <= arguments.hnsw:
        hnsw = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
        hnsw.add(vectors)
        hnsw.hnsw.efSearch = max(k, 128)
        kinds["faiss HNSW"] = hnsw, f"32 links, {hnsw.hnsw.efSearch} kept"
    exact = flat.search(states, k)[1]
    index = CodeIndex(catalogue.codes, (256,) * catalogue.codes.shape[1])
    tables = catalogue.tables
    calls = {"codes, exact": lambda part: index.search(tables[part], k)[0]}
    calls |= {name: (lambda part, kind=kind: kind.search(states[part], k)[1]) for name, (kind, _) in kinds.items()}
    for threads, batch in itertools.product(arguments.threads, arguments.batches):
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
        for name, times in turns(calls, batch, arguments.seconds).items():
            found = calls[name](slice(0, QUERIES))
            p50, p95, p99 = (float(value) for value in np.quantile(times, (0.5, 0.95, 0.99)))
            row = {"method": name, "items": n, "batch": batch, "threads": threads, "turns": len(times), "beside": "faiss"}
            how = "" if name.startswith("codes") else kinds[name][1]
            say(row | {"p50": p50, "p95": p95, "p99": p99, "recall": recall(found, exact), "width": width, "how": how})


def verdicts(rows: list[dict]) -> list[dict]:
    """Each target that the run can tell of."""

    def p50(method: str, items: int, batch: int, threads: int) -> float | None:
        fits = (row for row in rows if (row["method"], row["items"], row["batch"], row["threads"]) == (method, items, batch, threads))
        return next((row["p50"] for row in fits if "beside" not in row), None)

    million, out = 10**6, []
    for threads in sorted({row["threads"] for row in rows}):
        ours = p50("codes, exact", million, 1, threads)
        for name, rival, own, least in (
            ("torch gathers / codes, 1 M, one query", p50("PQTopK, torch gathers", million, 1, threads), ours, 50),
            ("float32 product / codes, 1 M, one query", p50("float32 product 128", million, 1, threads), ours, 5),
            (
                "float32 product / codes, 1 M, batch of 64",
                p50("float32 product 128", million, 64, threads), p50("codes, exact", million, 64, threads), 4,
            ),
            ("unfiltered / filter of 1 %, 1 M, one query", ours, p50("codes, exact, filter of 1 %", million, 1, threads), 0.95),
        ):  # fmt: skip
            if rival and own:
                out.append({"what": name, "threads": threads, "ratio": rival / own, "at least": least, "met": rival / own >= least})
        ten = p50("codes, exact", 10 * million, 1, threads)
        if ten and ours:
            out.append({"what": "10 M / 1 M, one query", "threads": threads, "ratio": ten / ours, "at most": 10, "met": ten / ours <= 10})
    for row in rows:
        if (row["method"], row["items"], row["batch"], row["threads"]) == ("codes, exact", 10 * million, 1, 1) and row.get("bytes"):
            share = row["bytes"] / (row["items"] * row["heads"])
            out.append({"what": "memory / codes, 10 M", "threads": 1, "ratio": share, "at most": 1.3, "met": share <= 1.3})
    return out


def plot(rows: list[dict], folder: Path) -> None:
    """Time against catalogue size, a picture for each batch, and against batch at the size nearest to a million."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "retrieval"
    from matplotlib import pyplot

    threads = min(row["threads"] for row in rows)
    rows = [row for row in rows if row["threads"] == threads]

    def draw(mine: list[dict], over: str, name: str, title: str) -> None:
        figure, axes = pyplot.subplots(figsize=(7, 4.5))
        for method in dict.fromkeys(row["method"] for row in mine):
            points = sorted({row[over]: row["p50"] for row in mine if row["method"] == method}.items())
            axes.loglog(*zip(*points), marker="o", label=method)
        axes.set(xlabel={"items": "items", "batch": "queries at once"}[over], ylabel="ms a query (p50)", title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"retrieval_{name}.svg", bbox_inches="tight", metadata={"Date": None})

    for batch in sorted({row["batch"] for row in rows}):
        mine = [row for row in rows if row["batch"] == batch]
        draw(mine, "items", str(batch), f"{batch} at once, {threads} thread")
    size = min({row["items"] for row in rows}, key=lambda items: abs(items - 10**6))
    draw([row for row in rows if row["items"] == size], "batch", "batch", f"{size:,} items, {threads} thread")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="a finished asymrec: its codes, embeddings and users")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each method, size, batch and number of threads")
    parser.add_argument("--gathers", type=int, default=10**6, help="most items for torch gathers (8 bytes a code)")
    parser.add_argument("--faiss", type=int, default=10**6, help="most items for faiss, 0: none")
    parser.add_argument("--ivfpq", type=int, default=10**6)
    parser.add_argument("--hnsw", type=int, default=10**5, help="most items for HNSW, whose building takes minutes a million")
    parser.add_argument("--out", type=Path, help="JSON log, written after every row")
    parser.add_argument("--plots", type=Path, help="folder for pictures")
    arguments = parser.parse_args()
    rows: list[dict] = []
    facts: dict[str, Any] = {"k": arguments.k, "codes": "a run's" if arguments.run else "simulated", "machine": machine.facts("cpu")}

    for n in arguments.sizes:
        catalogue = Catalogue(arguments.run, n)
        heads = catalogue.codes.shape[1]

        def say(row: dict, heads: int = heads) -> None:
            rows.append(row | {"heads": heads})
            shown = (f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items() if value)
            print("  ".join(shown), flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps(facts | {"rows": rows, "verdicts": verdicts(rows)}, indent=1) + "\n")

        for threads in arguments.threads:
            torch.set_num_threads(threads)
            measure(catalogue, arguments, threads, say)
        if n <= arguments.faiss:
            measure_faiss(catalogue, arguments, say)
    table = Table("", "threads", "ratio", "target", "met")
    for verdict in verdicts(rows):
        bound = f"≥ {verdict['at least']}" if "at least" in verdict else f"≤ {verdict['at most']}"
        table.add_row(verdict["what"], str(verdict["threads"]), f"{verdict['ratio']:.2f}", bound, "yes" if verdict["met"] else "NO")
    Console().print(table)
    if arguments.plots:
        plot(rows, arguments.plots)
    sys.exit(0 if all(verdict["met"] for verdict in verdicts(rows)) else 1)


if __name__ == "__main__":
    main()
