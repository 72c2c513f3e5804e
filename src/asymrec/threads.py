"""Independent pieces of work side by side, each on one thread of its own.

Torch splits every single operation over its threads and waits for the last of them; on cores that others use too, that waiting
costs more than it gains. Pieces that do not wait for each other (batches of texts, blocks of queries) lose nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def spread(work: Callable[[Piece], Result], pieces: Iterable[Piece]) -> list[Result]:
    """`[work(piece) for piece in pieces]` on as many threads as torch would use in one operation (`torch.set_num_threads`)."""
    pieces, threads = list(pieces), torch.get_num_threads()
    if min(threads, len(pieces)) < 2:
        return [work(piece) for piece in pieces]
    try:
        with ThreadPoolExecutor(min(threads, len(pieces)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, pieces))
    finally:
        torch.set_num_threads(threads)  # a thread that sets its own number also sets that of threads yet to start


def by_rows(kernel: Callable[..., None], n: int, *arguments: Any) -> None:
    """`kernel(begin, end, *arguments)` over 0 .. n, a piece for each of torch's threads. The kernel is compiled and lets others run.

    Not numba's own parallel loops: what they compile has other last bits when it comes from the cache than when it is new, so a first
    fit on a machine differed from all later ones.
    """
    pieces = min(torch.get_num_threads(), n)
    if pieces < 2:
        kernel(0, n, *arguments)
        return
    edges = [n * piece // pieces for piece in range(pieces + 1)]
    others = [_pool(pieces - 1).submit(kernel, begin, end, *arguments) for begin, end in pairwise(edges[1:])]
    kernel(0, edges[1], *arguments)
    for other in others:
        other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "rows")


@contextmanager
def team() -> Iterator[Callable[[Callable[[Piece], Result], Iterable[Piece]], list[Result]]]:
    """A `spread` for many short rounds with single operations between them: inside the block each of these stays on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield lambda work, pieces: list(pool.map(work, pieces) if threads > 1 else map(work, pieces))
    finally:
        torch.set_num_threads(threads)
