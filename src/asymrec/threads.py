"""Independent pieces of work side by side, each on one thread of its own.

Torch splits every single operation over its threads and waits for the last of them; on cores that others use too, that waiting
costs more than it gains. Pieces that do not wait for each other (batches of texts, blocks of queries) lose nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

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
