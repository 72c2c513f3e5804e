"""The interactions table as users' sequences: every user's interactions in order, stable by (user, position or time, original row)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asymrec.data.columns import LEFT_OUT, common_keys, find_column, id_keys, no_value, null_times, read_positions, read_times
from asymrec.data.ids import Ids
from asymrec.data.sequences import Sequences
from asymrec.data.tables import Source

# A column that is merely called `position` may count something else (the place on a page). It is taken for the order of a user's
# sequence unless the times say otherwise at more than this share of the steps.
_CONTRADICTION = 0.01


@dataclass(frozen=True)
class Interactions:
    """What the interactions table holds, in the order of `sequences`."""

    users: Ids
    sequences: Sequences
    rest: pa.Table | None
    time_unit: str | None
    notes: tuple[str, ...]


def read_interactions(source: Source, items: Ids, items_name: str, columns: dict[str, str | None], drop: dict[str, bool]) -> Interactions:
    """Read and order the interactions.

    columns: names chosen for `user`, `item`, `time`, `position` (None: find it). items_name: how messages call the item table.
    drop: what is left out. `unknown`: interactions with items that the item table does not hold, which are refused else; `duplicates`: all
    but the first of one user, item and time, which are told of else; `incomplete`: without user, item, time or position, refused else.
    Raises DataError: a missing column, null ids, unusable times, nothing left.
    """
    notes: list[str] = []
    user, item = (find_column(source, role, columns[role]) for role in ("user", "item"))
    time, position = (find_column(source, role, columns[role], required=False) for role in ("time", "position"))
    if len(used := [name for name in (user, item, time, position) if name is not None]) > len(set(used)):
        raise source.error("one column cannot be two of user, item, time and position", max(used, key=used.count))
    source = source.of_ids(user)
    if drop["incomplete"]:
        source = _complete(source, used, notes)
    user_keys = id_keys(source, user, LEFT_OUT)
    item_rows = _item_rows(source, item, items)

    known = item_rows >= 0
    dropped = len(known) - int(known.sum())
    if dropped:
        _tell_unknown(source, item, known, items, items_name, drop["unknown"], notes)
    users, ranks = _rank_users(source.table[user], user_keys, known if dropped else None)

    places = read_positions(source, position) if position else None
    times, null, unit = read_times(source, time, notes) if time else (None, None, None)
    if dropped:
        item_rows, ranks = item_rows[known], ranks[known]
        places = None if places is None else places[known]
        missing = None if null is None else null[known]
        times = None if times is None else times[known]
    else:
        missing = null
    if times is not None and missing.all():
        if position is None:
            raise null_times(source, time, null)
        notes.append(f"every timestamp in column '{time}' is null: there are no times")
        times, unit = None, None

    order = None
    if places is not None:
        order = _sorted(ranks, places)
        share = 0.0 if times is None or columns["position"] else _backward(ranks[order], times[order], missing[order])
        if share > _CONTRADICTION:
            notes.append(f"column '{position}' runs against the timestamps at {share:.0%} of the steps: timestamps order the sequences")
            places, order, used = None, None, [name for name in used if name != position]
    if places is None and times is not None:
        if missing.any():
            raise null_times(source, time, null)
        order = _sorted(ranks, times)
    if places is None and times is None:
        notes.append("no timestamps and no positions: file order is used")
        order = _sorted(ranks, None)
    if places is not None and times is None:
        notes.append(f"no timestamps: column '{position}' orders the sequences")

    if times is not None and (again := _repeated(ranks[order], times[order], item_rows[order]) & ~missing[order]).any():
        told = f"{int(again.sum()):,} of {len(again):,} interactions repeat the user, item and time of another"
        notes.append(f"{told}: left out" if drop["duplicates"] else f"{told}; `drop_duplicates` leaves them out")
        order = order[~again] if drop["duplicates"] else order

    offsets = np.zeros(len(users) + 1, np.int64)
    np.cumsum(np.bincount(ranks[order], minlength=len(users)), out=offsets[1:])
    if times is not None:
        times = times[order]
        if places is not None:
            times = _non_decreasing(ranks[order], times, missing[order], time, notes)
    if unit not in (None, "s"):
        notes.append(f"times are kept in {unit}")
    rest = [name for name in source.table.column_names if name not in used]
    table = None
    if rest:
        rows = order if not dropped else np.flatnonzero(known)[order]
        table = source.table.select(rest)
        if not np.array_equal(rows, np.arange(source.table.num_rows)):
            table = table.take(pa.array(rows))
        table = table.combine_chunks()
    return Interactions(users, Sequences(offsets, item_rows[order], times), table, unit, tuple(notes))


def _item_rows(source: Source, column: str, items: Ids) -> np.ndarray:
    keys, theirs = common_keys(id_keys(source, column, LEFT_OUT), items.keys)
    if theirs is not items.keys and len(pc.unique(known := theirs.drop_null())) < len(known):
        raise source.error("holds bytes, which the item table writes as text, some of them in two ways", column)
    return (items if theirs is items.keys else Ids(items.values, items.noun, theirs)).find(keys)


def _complete(source: Source, columns: list[str], notes: list[str]) -> Source:
    """Without the rows that have no value in one of the columns; notes: is told how many."""
    bad = np.logical_or.reduce([no_value(source.table[column]).to_numpy() for column in columns])
    if not bad.any():
        return source
    told = f"{int(bad.sum()):,} of {len(bad):,} interactions have no {' or no '.join(columns)}"
    if bad.all():
        raise source.error(f"{told}: none would be left")
    notes.append(f"{told}: left out")
    return source.keeping(~bad)


def _tell_unknown(source: Source, column: str, known: np.ndarray, items: Ids, items_name: str, drop: bool, notes: list[str]) -> None:
    rows = np.flatnonzero(~known)
    keys = id_keys(source, column).take(pa.array(rows)).dictionary_encode()
    first = rows[np.unique(keys.indices.to_numpy(), return_index=True)[1]]  # where each of the unknown stands first
    examples = ", ".join(repr(source.table[column][int(row)].as_py()) for row in first[:3]) + (", ..." if len(first) > 3 else "")
    told = f"{len(rows):,} of {len(known):,} interactions are with {len(first):,} items that {items_name} does not hold ({examples})"
    told += _alike(keys.dictionary, items)
    if not known.any():
        raise source.error(f"{told}: none would be left", column, int(rows[0]))
    if not drop:
        raise source.error(f"{told}; `drop_unknown` leaves these interactions out", column, int(rows[0]))
    notes.append(f"{told}: left out")


def _alike(names: pa.Array, items: Ids) -> str:
    """A word on ids that would be known if they were written as the items' are. names: their keys."""
    unknown, known = _simplified(names), _simplified(items.keys)
    if unknown.type != known.type:
        return ""
    places = pc.index_in(unknown, value_set=known)
    if places.null_count == len(places):
        return ""
    at = pc.index(places.is_valid(), pa.scalar(True)).as_py()
    pair = f"{names[at].as_py()!r} here, {items.values[places[at].as_py()].as_py()!r} there"
    return f", but {len(places) - places.null_count:,} of them but for spaces, capitals, leading zeros or decimals ({pair})"


def _simplified(keys: pa.Array) -> pa.Array:
    if pa.types.is_large_binary(keys.type):
        return keys
    text = pc.utf8_lower(pc.utf8_trim_whitespace(keys.cast(pa.large_string())))
    for pattern, instead in ((r"\.0+$", ""), (r"^0+([^.])", r"\1")):
        text = pc.replace_substring_regex(text, pattern, instead)
    return text


def _rank_users(values: pa.ChunkedArray, keys: pa.Array, known: np.ndarray | None) -> tuple[Ids, np.ndarray]:
    """The users in order of their ids, and the user of every interaction as a row: int32 [rows]."""
    encoded = keys.dictionary_encode()
    found, codes = encoded.dictionary, encoded.indices.to_numpy()
    order = pc.sort_indices(found).to_numpy()
    if known is not None:  # users whose every interaction is left out are no users
        counts = np.bincount(codes[known], minlength=len(found))
        order = order[counts[order] > 0]
    ranks = np.full(len(found), -1, np.int32)
    ranks[order] = np.arange(len(order), dtype=np.int32)
    if values.type == keys.type:
        own = found.take(pa.array(order))
    else:
        first = np.empty(len(found), np.int64)
        first[codes[::-1]] = np.arange(len(codes))[::-1]
        own = values.unify_dictionaries() if pa.types.is_dictionary(values.type) else values
        own = own.take(pa.array(first[order])).combine_chunks()
    return Ids(own, "user", found.take(pa.array(order))), ranks[codes]


def _sorted(users: np.ndarray, keys: np.ndarray | None) -> np.ndarray:
    """int64 [rows]: the stable order by (user, key)."""
    if keys is None:
        return np.argsort(users, kind="stable")
    if keys.dtype == np.int64:
        low, high = int(keys.min()), int(keys.max())
        if (high - low + 1) * (int(users.max()) + 1) < 2**63:  # one key of both: one sort, a quick one where the file is sorted
            return np.argsort(users * np.int64(high - low + 1) + (keys - low), kind="stable")
    return np.lexsort((keys, users))


def _repeated(users: np.ndarray, times: np.ndarray, items: np.ndarray) -> np.ndarray:
    """bool [rows]: which of interactions ordered by user have the user, time and item of an earlier one."""
    found = np.zeros(len(users), bool)
    new = np.r_[True, (users[1:] != users[:-1]) | (times[1:] != times[:-1])]
    steps = np.cumsum(new)
    several = np.flatnonzero(np.bincount(steps, minlength=steps[-1] + 1)[steps] > 1) if len(steps) else np.empty(0, np.int64)
    ordered = several[np.lexsort((items[several], steps[several]))]  # stable: an earlier row stays before a later one
    same = (steps[ordered][1:] == steps[ordered][:-1]) & (items[ordered][1:] == items[ordered][:-1])
    found[ordered[1:][same]] = True
    return found


def _backward(users: np.ndarray, times: np.ndarray, null: np.ndarray) -> float:
    """The share of steps inside the sequences at which the time falls, where both times are known."""
    steps = (users[1:] == users[:-1]) & ~null[1:] & ~null[:-1]
    return float((steps & (times[1:] < times[:-1])).sum() / max(1, steps.sum()))


def _non_decreasing(users: np.ndarray, times: np.ndarray, null: np.ndarray, column: str, notes: list[str]) -> np.ndarray:
    """Times along sequences that positions have ordered: a null takes the last known before it in its sequence, else the first
    known after it, else (a user without times) the earliest of all; a time before its predecessor's is lifted to that."""
    starts = np.flatnonzero(np.r_[True, users[1:] != users[:-1]])
    sequence = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(users)]))
    if null.any():
        known = np.flatnonzero(~null)
        before = np.searchsorted(known, np.arange(len(times)), side="right") - 1
        last = known[np.maximum(before, 0)]
        after = known[np.minimum(before + 1, len(known) - 1)]
        own = (before >= 0) & (sequence[last] == sequence)
        later = ~own & (sequence[after] == sequence)
        times = np.where(own, times[last], np.where(later, times[after], times[known].min()))
        notes.append(f"{int(null.sum()):,} null timestamps in column '{column}': filled from their neighbours in the sequence")
    # a running maximum inside each sequence: the rank of a time, offset so that later sequences rank above all earlier ones
    distinct, ranks = np.unique(times, return_inverse=True)
    lifted = distinct[np.maximum.accumulate(ranks + sequence * len(distinct)) - sequence * len(distinct)]
    if changed := int((lifted != times).sum()):
        notes.append(f"{changed:,} timestamps in column '{column}' lay before their predecessor's: lifted to it")
    return lifted
