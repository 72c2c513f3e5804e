"""Compiled loops of the search over codes. Imported on first use only: numba takes a third of a second.

Codes lie in blocks of 256 items, [heads, 256] one head after another, so that the same head of 64 items is one register. A query's
tables are rounded up to bytes: what a byte stands for is never less than the entry, so the sum of an item's bytes is an upper bound of
its score. One head of 64 items is then two byte permutations of a table that stays in registers (AVX-512 VBMI), 48 look-ups an item
cost a nanosecond, and the codes are read at the speed of memory. An item may have a factor and a summand of its own besides; they
turn the bound of its sum into that of its score. Only the few items whose bound reaches the worst of the k best so far
are scored in float32, so what is found is exact. Elsewhere the same bound is summed by plain loops.
"""

from __future__ import annotations

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from asymrec.compiled import compiled
from asymrec.retrieval.kernels import _holds, _replace_root, _worse

LANES = 256  # items of a block: four registers of codes, eight of 16-bit sums
PAGE = 64  # blocks of a page, what is copied when an item changes
TILE = 16  # blocks that all queries read before the next: 48 codes of them are 192 KiB, a share of the second cache


def _vbmi() -> bool:
    """Whether what numba compiles for has byte permutations over 64 bytes."""
    if config.CPU_FEATURES is not None:
        return "+avx512vbmi" in config.CPU_FEATURES
    return config.CPU_NAME in (None, "host") and bool(llvm.get_host_cpu_features().get("avx512vbmi"))


VBMI = _vbmi()
BYTES, SHORTS, WORD = ir.VectorType(ir.IntType(8), 64), ir.VectorType(ir.IntType(16), 32), ir.IntType(64)


def _loader(bits):
    @intrinsic
    def load(typingctx, address):
        def generate(context, builder, signature, args):
            return builder.zext(builder.load(builder.inttoptr(args[0], ir.IntType(bits).as_pointer())), WORD)

        return types.int64(types.intp), generate

    return load


_byte, _short = _loader(8), _loader(16)


@compiled
def _code(address, narrow):
    """The code at an address: a byte where narrow, else 16 bits."""
    return _byte(address) if narrow else _short(address)


@intrinsic
def _lowest_bit(typingctx, word):
    """Number of the lowest bit that is set in a uint64 that is not 0."""
    return types.int64(types.uint64), lambda context, builder, signature, args: builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))


def _summing(finish):
    """An intrinsic (codes, table, heads, need, out) over the 256 items of the block at address `codes`: the sums over heads of
    table[head, code], table an address of bytes [heads, 256]; what is done with them, `finish` generates."""

    @intrinsic
    def sums(typingctx, codes, table, heads, need, out):
        def generate(context, builder, signature, args):
            codes, table, heads, need, out = args
            kind = ir.FunctionType(BYTES, [BYTES, BYTES, BYTES])
            permute = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpermi2var.qi.512")
            number = lambda value: ir.Constant(WORD, value)  # noqa: E731
            eight = ir.Constant(SHORTS, [8] * 32)

            def load(base, head, part):
                address = builder.add(base, builder.add(builder.mul(head, number(LANES)), number(64 * part)))
                loaded = builder.load(builder.inttoptr(address, BYTES.as_pointer()))
                loaded.align = 1
                return loaded

            before, loop, after = builder.block, builder.append_basic_block("heads"), builder.append_basic_block("done")
            builder.branch(loop)
            builder.position_at_end(loop)
            head = builder.phi(WORD)
            sums = [builder.phi(SHORTS) for _ in range(8)]
            for phi in (head, *sums):
                phi.add_incoming(ir.Constant(phi.type, None if phi is not head else 0), before)
            words = [load(table, head, part) for part in range(4)]
            found = []
            for part in range(4):
                code = load(codes, head, part)
                low, high = (builder.call(permute, [words[half], code, words[half + 1]]) for half in (0, 2))
                value = builder.select(builder.icmp_signed("<", code, ir.Constant(BYTES, None)), high, low)
                # two items in 16 bits: the upper one's sum is kept by itself and taken off the sum of both at the end
                pair = builder.bitcast(value, SHORTS)
                found += [builder.add(sums[2 * part], pair), builder.add(sums[2 * part + 1], builder.lshr(pair, eight))]
            following = builder.add(head, number(1))
            for phi, value in zip((head, *sums), (following, *found)):
                phi.add_incoming(value, loop)
            builder.cbranch(builder.icmp_signed("<", following, heads), loop, after)
            builder.position_at_end(after)
            for part in range(4):
                both, upper = found[2 * part : 2 * part + 2]
                finish(builder, part, builder.sub(both, builder.shl(upper, eight)), upper, need, out)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, types.intp, types.uint16, types.intp), generate

    return sums


WOVEN = ir.Constant(ir.VectorType(ir.IntType(32), 64), [i // 2 + 32 * (i % 2) for i in range(64)])  # lower, upper, lower, ...


def _store_bits(builder, part, lower, upper, need, out):
    """Bit i of the four words at `out` is set where item i's sum is at least `need`."""
    least = builder.insert_element(ir.Constant(SHORTS, ir.Undefined), need, ir.Constant(ir.IntType(32), 0))
    least = builder.shuffle_vector(least, least, ir.Constant(ir.VectorType(ir.IntType(32), 32), None))
    reached = (builder.icmp_unsigned(">=", half, least) for half in (lower, upper))
    bits = builder.bitcast(builder.shuffle_vector(*reached, WOVEN), WORD)
    builder.store(bits, builder.inttoptr(builder.add(out, ir.Constant(WORD, 8 * part)), WORD.as_pointer()))


def _store_sums(builder, part, lower, upper, need, out):
    """The 256 sums of 16 bits at `out`."""
    ordered = builder.shuffle_vector(lower, upper, WOVEN)
    stored = builder.store(ordered, builder.inttoptr(builder.add(out, ir.Constant(WORD, 128 * part)), ordered.type.as_pointer()))
    stored.align = 2


_permuted_bits, _permuted_sums = _summing(_store_bits), _summing(_store_sums)


@compiled
def _plain_sums(codes, narrow, table, heads, out):
    """The sums by plain loops; table: bytes [heads, K], codes of 8 or 16 bits, out: uint16 [256]."""
    size = 1 if narrow else 2
    out[:] = 0
    for head in range(heads):
        at, words = codes + head * LANES * size, table[head]
        for lane in range(LANES):
            out[lane] += words[_code(at + lane * size, narrow)]


@compiled
def _plain_bits(codes, narrow, table, heads, need, sums, out):
    """Bit i of the four words `out` is set where item i's sum is at least `need`."""
    _plain_sums(codes, narrow, table, heads, sums)
    for part in range(4):
        bits = np.uint64(0)
        for lane in range(64):
            if sums[64 * part + lane] >= need:
                bits |= np.uint64(1) << np.uint64(lane)
        out[part] = bits


if VBMI:

    @compiled
    def _sums(codes, narrow, table, heads, out):
        if narrow:
            _permuted_sums(codes, table.ctypes.data, heads, np.uint16(0), out.ctypes.data)
        else:
            _plain_sums(codes, False, table, heads, out)

    @compiled
    def _bits(codes, narrow, table, heads, need, sums, out):
        if narrow:
            _permuted_bits(codes, table.ctypes.data, heads, np.uint16(need), out.ctypes.data)
        else:
            _plain_bits(codes, False, table, heads, need, sums, out)
else:
    _sums, _bits = _plain_sums, _plain_bits


@compiled
def round_up(tables, sizes, exact, bounds, scale):
    """Tables of bytes that bound tables of numbers from above.

    tables: float32 [b, H, K]; sizes: int64 [H], entries of a head that count. Filled are exact [b, H, K] = tables / H, what scores are
    summed of; bounds uint8 [b, H, at least K]; scale float64 [b, 3]: a score is at most scale[0] + scale[1] * (sum of bytes), and
    scale[2] is what float32 may add to it. Returns False for NaN or +inf.
    """
    b, heads, _ = tables.shape
    levels = min(255, 65535 // heads)  # sums must fit 16 bits
    low = np.empty(heads)
    for q in range(b):
        base = spread = size = 0.0
        for h in range(heads):
            least, most = np.inf, -np.inf
            for c in range(sizes[h]):
                value = tables[q, h, c] / np.float32(heads)
                exact[q, h, c] = value
                if not value < np.inf:
                    return False
                if value > -np.inf:
                    least, most = min(least, value), max(most, value)
            if least > most:  # no code of this head may be
                least = most = 0.0
            low[h] = least
            base += least
            spread = max(spread, most - least)
            size += max(abs(least), abs(most))
        step = spread / levels if spread > 0 else 1.0
        for h in range(heads):
            for c in range(sizes[h]):
                bounds[q, h, c] = min(levels, max(0.0, np.ceil((exact[q, h, c] - low[h]) / step)))
        scale[q, 0], scale[q, 1] = base, step
        scale[q, 2] = ((heads + 8) * 2.0**-23) * size + 1e-9 * step  # 8: for bounds that are computed in float32 themselves
    return True


@compiled
def _needed(worst, base, step, slack):
    """The least sum of bytes with which an item may be as good as the worst of the best."""
    if worst == -np.inf:
        return 0
    return int(min(65535.0, max(0.0, np.floor((worst - base - slack) / step))))


@compiled
def _own_bits(sums, own, worst, base, step, slack, out):
    """The same for items with a factor and a summand, own float32 [2, 256]: where the score may be as good as the worst of the best."""
    least, unit, bar = np.float32(base + slack), np.float32(step), np.float32(worst)
    for part in range(4):
        bits = np.uint64(0)
        for lane in range(64):
            item = 64 * part + lane
            product = own[0, item] * (least + unit * np.float32(sums[item]))
            # a millionth of both: more than the arithmetic here errs downwards and that of the score upwards
            if product + own[1, item] + (abs(product) + abs(own[1, item])) * np.float32(1e-6) >= bar:
                bits |= np.uint64(1) << np.uint64(lane)
        out[part] = bits


@compiled
def search(pages, narrow, blocks, words, own, exact, bounds, scale, best_scores, best_rows, offsets, excluded):
    """Offers the items of some blocks to the heaps [b, k] of all queries.

    pages: int64, addresses of pages of codes, 8-bit where narrow, else 16-bit; blocks: (first, last + 1); words: uint64, the items that
    may be found; own: float32 [blocks, 2, 256], the items' factors and summands, or [blocks, 0, 256]; exact, bounds, scale: of
    `round_up`; excluded as in `kernels.keep`.
    """
    b, heads, _ = exact.shape
    k = best_scores.shape[1]
    size = 1 if narrow else 2
    sums, reached = np.empty(LANES, np.uint16), np.empty(4, np.uint64)
    affine = own.shape[1] > 0
    for tile in range(blocks[0], blocks[1], TILE):
        for q in range(b):
            base, step, slack = scale[q]
            need = _needed(best_scores[q, 0], base, step, slack)
            for block in range(tile, min(tile + TILE, blocks[1])):
                last = min(4 * block + 4, len(words))
                allowed = np.uint64(0)
                for word in range(4 * block, last):
                    allowed |= words[word]
                if allowed == 0:
                    continue
                address = pages[block // PAGE] + (block % PAGE) * heads * LANES * size
                if affine:
                    _sums(address, narrow, bounds[q], heads, sums)
                    _own_bits(sums, own[block], best_scores[q, 0], base, step, slack, reached)
                else:
                    _bits(address, narrow, bounds[q], heads, need, sums, reached)
                for word in range(4 * block, last):
                    bits = reached[word - 4 * block] & words[word]
                    while bits != 0:
                        row = word * 64 + _lowest_bit(bits)
                        bits &= bits - np.uint64(1)
                        lane = row - block * LANES
                        at = address + lane * size
                        score = np.float32(0)
                        for h in range(heads):
                            score += exact[q, h, _code(at + h * LANES * size, narrow)]
                        if affine:
                            score = own[block, 0, lane] * score + own[block, 1, lane]
                        better = _worse(best_scores[q, 0], best_rows[q, 0], score, row) and score > -np.inf
                        if better and not _holds(excluded, offsets[q], offsets[q + 1], row):
                            _replace_root(best_scores[q], best_rows[q], k, score, row)
                            need = _needed(best_scores[q, 0], base, step, slack)
