"""Exact top-k over codes: PQTopK (arXiv 2408.09992), and what RecJPQPrune (arXiv 2505.00560) adds to it, an upper bound that spares most
of the work, here of an item instead of a group of items.

An item with codes c_1 .. c_H scores the mean over heads of tables[h, c_h], the head's log-probability of the item's own code. The bound
is the same sum over tables rounded up to bytes (`retrieval/scan.py`); an item is scored in float32 only where its bound reaches the
worst of the k best so far. No item is missed, and order and scores are those of scoring them all: higher score first, among equal
scores the smaller row. Pruning by partial sums, which long codes make useless (after 32 of 48 heads no block of items could be left
out), is not there.

An index never changes. `add`, `retire`, `restore` and `change` give another one that shares all pages of codes but those that differ,
so whoever searches the one before goes on undisturbed.

Arrays in are numpy or torch, arrays out are numpy. Tables on an accelerator are searched there (`retrieval/accelerator.py`).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch

from asymrec.retrieval.exact import Barred, Best, as_codes, as_tables, merge
from asymrec.retrieval.filters import Bitmap, as_bitmap, in_range
from asymrec.threads import spread

LANES, PAGE = 256, 64  # as in `scan`: items of a block, blocks of a page
ROWS = LANES * PAGE
ALONE = 4096  # blocks that one query reads in less time than another thread takes to begin


class CodeIndex:
    """The codes of a catalogue, ready to be searched exactly.

    Args:
        codes: int [n, H].
        codebook_sizes: H sizes, at most 65,536; code h of every item is below codebook_sizes[h]. Held as 8 bits where all are at most
            256, else as 16.
        own: float [n, 2], a positive factor of the mean and a summand for each item, where scores have them: an item whose code vectors'
            sum is brought to length 1 before it is compared has 1 / length, and its bias. None: scores are the mean.

    Takes n * H bytes, or twice as many, up to a full block of 256 items, and n / 8 for what is retired; 8 n more with `own`.
    """

    def __init__(self, codes: Any, codebook_sizes: tuple[int, ...], own: Any = None):
        self.codebook_sizes = tuple(int(size) for size in codebook_sizes)
        codes = as_codes(codes, self.codebook_sizes)
        if codes.dtype.itemsize > 2:
            raise ValueError(f"a codebook of {max(self.codebook_sizes):,} codewords: more than 65,536 cannot be searched")
        own = np.empty((len(codes), 0), np.float32) if own is None else _checked(own, len(codes))
        self._set(_pages(codes), len(codes), Bitmap.all(len(codes)), _blocks(own))

    def _set(self, pages: list[np.ndarray], n: int, alive: Bitmap, own: np.ndarray) -> None:
        self._pages, self._n, self.alive, self._own = pages, n, alive, own
        self._copies: dict[torch.device, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._addresses = np.array([page.ctypes.data for page in pages], np.int64)

    def _with(self, pages: list[np.ndarray], n: int, alive: Bitmap, own: np.ndarray) -> CodeIndex:
        made = object.__new__(CodeIndex)
        made.codebook_sizes = self.codebook_sizes
        made._set(pages, n, alive, own)
        return made

    def __len__(self) -> int:
        """Rows, retired ones among them."""
        return self._n

    @property
    def nbytes(self) -> int:
        return sum(page.nbytes for page in self._pages) + self.alive.words.nbytes + self._own.nbytes

    @property
    def codes(self) -> np.ndarray:
        """[n, H], a copy."""
        heads = len(self.codebook_sizes)
        lines = [_lines(page) for page in self._pages]
        return np.concatenate(lines)[: self._n] if lines else np.zeros((0, heads), np.uint8)

    @property
    def own(self) -> np.ndarray | None:
        """float32 [n, 2], a copy; None where items have none."""
        return _lines(self._own)[: self._n] if self._own.shape[1] else None

    # A living catalogue

    def add(self, codes: Any, own: Any = None) -> CodeIndex:
        """With further items, rows n, n + 1, ...; codes int [m, H], own [m, 2] where the others have that. Costs a page of codes,
        whatever n, and a copy of `own`."""
        codes = as_codes(codes, self.codebook_sizes)
        own = self._owned(own, len(codes))
        full = self._n // ROWS
        rest = [_lines(page)[: self._n % ROWS] for page in self._pages[full:]]
        lines = np.concatenate([*rest, codes.astype(rest[0].dtype if rest else codes.dtype)])
        n = self._n + len(codes)
        pages = self._pages[:full] + _pages(lines)
        new = np.arange(n) >= self._n
        own = _blocks(np.concatenate((_lines(self._own)[: self._n], own)))
        return self._with(pages, n, self.alive.resized(n) | Bitmap(new), own)

    def change(self, rows: Any, codes: Any, own: Any = None) -> CodeIndex:
        """With other codes, int [m, H], for some distinct rows [m]; costs the pages that they are in, and a copy of `own`."""
        rows, codes = in_range(rows, self._n, "rows"), as_codes(codes, self.codebook_sizes)
        own = self._owned(own, len(codes))
        if len(rows) != len(codes) or len(np.unique(rows)) != len(rows):
            raise ValueError(f"{len(codes)} lines of codes for {len(np.unique(rows))} distinct rows of {len(rows)}")
        pages = list(self._pages)
        for page in np.unique(rows // ROWS):
            mine = rows // ROWS == page
            block, lane = np.divmod(rows[mine] % ROWS, LANES)
            pages[page] = pages[page].copy()
            pages[page][block, :, lane] = codes[mine]
        held = self._own.copy()
        held[rows // LANES, :, rows % LANES] = own
        return self._with(pages, self._n, self.alive, held)

    def retire(self, rows: Any) -> CodeIndex:
        """Without some rows: they keep their numbers and are never found."""
        return self._with(self._pages, self._n, self.alive - as_bitmap(rows, self._n, "rows"), self._own)

    def restore(self, rows: Any) -> CodeIndex:
        """With some retired rows again."""
        return self._with(self._pages, self._n, self.alive | as_bitmap(rows, self._n, "rows"), self._own)

    def _owned(self, own: Any, n: int) -> np.ndarray:
        if (own is None) != (self._own.shape[1] == 0):
            raise ValueError("all items of an index have a factor and a summand, or none has")
        return np.empty((n, 0), np.float32) if own is None else _checked(own, n)

    # Search

    def search(self, tables: Any, k: int, exclude: Any = None, only: Any = None, deny: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """The k best items of each query by the mean over heads of tables[b, h, codes[i, h]], times own[i, 0] plus own[i, 1].

        tables: float [b, H, K], K at least the largest codebook size; -inf: a code that must not be. exclude: CSR (`.offsets` [b + 1],
        `.items`), the rows that query b must not get. only, deny: rows that all queries may, or may not, get, or a `Bitmap` of them.
        Returns rows int32 [b, k] (-1 where fewer than k remain) and scores float32 [b, k] (there -inf), best first.
        Raises ValueError: shapes that do not fit, rows out of range, NaN or +inf among the tables.
        """
        if isinstance(tables, torch.Tensor) and tables.device.type != "cpu":
            from asymrec.retrieval.accelerator import search_codes

            columns, own = self._copy_on(tables.device)
            return search_codes(self._check(tables), columns, k, exclude, self.allowed(only, deny), own)
        from asymrec.retrieval import scan

        tables = self._check(as_tables(tables))
        b, heads, words = tables.shape
        allowed = self.allowed(only, deny).words
        barred = Barred.of(exclude, b, self._n)
        narrow = max(self.codebook_sizes) <= 256
        exact, scale = np.empty_like(tables), np.empty((b, 3))
        bounds = np.zeros((b, heads, 256 if narrow else words), np.uint8)
        sizes = np.array(self.codebook_sizes)

        def prepare(queries: slice) -> bool:
            return scan.round_up(tables[queries], sizes, exact[queries], bounds[queries], scale[queries])

        blocks = -(-self._n // LANES)
        threads = torch.get_num_threads() if b * blocks >= 2 * ALONE else 1
        if not all(spread(prepare, _cuts(b, threads))):
            raise ValueError("NaN or +inf among the scores")

        def collect(queries: slice, part: slice) -> tuple[np.ndarray, np.ndarray]:
            best = Best(queries.stop - queries.start, k)
            own = barred.of_queries(queries)
            scan.search(
                self._addresses, narrow, (part.start, part.stop), allowed, self._own, exact[queries], bounds[queries], scale[queries],
                best.scores, best.rows, own.offsets, own.rows,
            )  # fmt: skip
            return best.lists()

        if b < 2 * threads:  # the catalogue is cut, else the queries
            return merge(spread(lambda part: collect(slice(0, b), part), _cuts(blocks, threads)))
        lists = spread(lambda queries: collect(queries, slice(0, blocks)), _cuts(b, threads))
        return tuple(np.concatenate(parts) for parts in zip(*lists))

    def _copy_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Codes uint8 or int32 [H, n] and float32 [n, 2] on an accelerator, brought there once."""
        if device not in self._copies:
            codes, own = np.ascontiguousarray(self.codes.T), self.own
            columns = torch.from_numpy(codes if codes.dtype == np.uint8 else codes.astype(np.int32)).to(device)
            self._copies[device] = columns, None if own is None else torch.from_numpy(own).to(device)
        return self._copies[device]

    def allowed(self, only: Any = None, deny: Any = None) -> Bitmap:
        """What may be found: of the rows `only`, without `deny`, those that are not retired."""
        allowed = self.alive
        if only is not None:
            allowed = allowed & as_bitmap(only, self._n, "only")
        return allowed if deny is None else allowed - as_bitmap(deny, self._n, "deny")

    def _check(self, tables: Any) -> Any:
        heads, largest = len(self.codebook_sizes), max(self.codebook_sizes)
        if tables.ndim != 3 or tables.shape[1] != heads or tables.shape[2] < largest:
            raise ValueError(f"tables {list(tables.shape)} do not fit {heads} codebooks of up to {largest}")
        return tables


def _pages(codes: np.ndarray) -> list[np.ndarray]:
    """Codes [m, H] -> pages [at most 64, H, 256]. They share one memory, so that the system can back it by large pages of its own."""
    blocks = _blocks(codes)
    return [blocks[start : start + PAGE] for start in range(0, len(blocks), PAGE)]


def _blocks(lines: np.ndarray) -> np.ndarray:
    """[m, width] -> [ceil(m / 256), width, 256], zeros after the last line."""
    m, width = lines.shape
    blocks = np.zeros((-(-m // LANES), width, LANES), lines.dtype)
    whole = m // LANES
    blocks[:whole] = lines[: whole * LANES].reshape(whole, LANES, width).transpose(0, 2, 1)
    if m % LANES:
        blocks[whole, :, : m % LANES] = lines[whole * LANES :].T
    return blocks


def _lines(blocks: np.ndarray) -> np.ndarray:
    """[blocks, width, 256] -> [blocks * 256, width]."""
    return blocks.transpose(0, 2, 1).reshape(len(blocks) * LANES, blocks.shape[1])


def _checked(own: Any, n: int) -> np.ndarray:
    own = np.asarray(own, np.float32)
    if own.shape != (n, 2) or not np.isfinite(own).all() or not (own[:, 0] > 0).all():
        raise ValueError(f"own must be finite, [{n}, 2], its first column above 0")
    return own


def _cuts(n: int, parts: int) -> list[slice]:
    """0 .. n in at most `parts` equal pieces, at least one."""
    edges = np.linspace(0, n, max(1, min(parts, n)) + 1).astype(int)
    return [slice(int(begin), int(end)) for begin, end in pairwise(edges)]
