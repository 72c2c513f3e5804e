"""Which column is which, and what its values mean: ids of any type, positions, times in any usual form."""

from __future__ import annotations

import difflib
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asymrec.data.rows import first_bad, first_true, listed
from asymrec.data.tables import Source
from asymrec.errors import DataError

# Compared without case, punctuation and a `:type` suffix; the first in the list that a table has is taken.
NAMES = {
    "user": ("user_id", "user", "uid", "reviewer_id", "customer_id", "visitor_id", "member_id", "account_id", "session_id", "session"),
    "item": (
        *("item_id", "item", "iid", "parent_asin", "asin", "product_id", "product", "sku", "movie_id", "book_id", "article_id"),
        *("track_id", "song_id", "artist_id", "video_id", "game_id", "app_id", "business_id", "content_id"),
    ),
    "time": (
        *("timestamp", "unix_review_time", "unix_time", "time", "ts", "datetime", "date_time", "event_time", "created_at"),
        *("review_time", "date"),
    ),
    "position": ("position", "pos", "rank_in_session", "position_in_session", "sequence_position", "seq_pos"),
}
_LEAST = {"ns": 1e17, "us": 1e14, "ms": 1e11, "s": 1e8}  # numbers from here on are times of our days in that unit
_FIRST, _LAST = 19000101, 21001231  # of the whole numbers that may be dates
_DATES = [(_FIRST * 10**more, (_LAST + 1) * 10**more - 1) for more in (0, 4, 6)]  # with the time of day or not
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # units of time
LEFT_OUT = "; `drop_incomplete` leaves such rows out"
_NOTHING = ("", "null", "none", "nan", "nat", "n/a", "\\n", None)
_WORDS = {"user": "user id", "item": "item id", "time": "timestamp", "position": "position"}


def find_column(source: Source, role: str, named: str | None = None, required: bool = True) -> str | None:
    """The column of a role (`user`, `item`, `time`, `position`): `named`, else found by NAMES; None when absent and not required."""
    columns = source.table.column_names
    if named is not None:
        if named in columns:
            return named
        near = difflib.get_close_matches(named, columns, n=1)
        raise source.error(f"no such column{f'; did you mean {near[0]!r}?' if near else f'; there are {listed(columns)}'}", named)
    plain: dict[str, str] = {}
    for column in columns:
        plain.setdefault(_plain(column), column)
    for name in NAMES[role]:
        if _plain(name) in plain:
            return plain[_plain(name)]
    if required:
        raise source.error(f"no column of the {_WORDS[role]} among {listed(columns)}; name it with the setting `{role}`")
    return None


def id_keys(source: Source, column: str, hint: str = "") -> pa.Array:
    """The ids of a column in the form they are compared in: int64, large_string or large_binary, never null.

    hint: what to do about a null.
    Raises DataError: a null id (first row and how many), a type that cannot be an id.
    """
    values = source.table[column]
    try:
        keys = normal_keys(values)
    except (pa.ArrowException, TypeError):
        raise source.error(f"values of type {values.type} cannot be ids", column) from None
    if keys.null_count:
        raise source.error(f"null id ({_count(keys.null_count, len(keys))}){hint}", column, first_true(keys.is_null()))
    return keys


def normal_keys(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """int64 for whole numbers, large_binary for bytes and UUIDs, large_string for all else; NaN becomes null."""
    if isinstance(values, pa.Array):
        values = pa.chunked_array([values])
    if isinstance(values.type, pa.BaseExtensionType):
        values = values.cast(values.type.storage_type)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    kind = values.type
    if pa.types.is_nested(kind):
        raise TypeError(f"{kind} cannot be an id")
    if pa.types.is_floating(kind):
        values = pc.if_else(pc.is_finite(values), values, pa.scalar(None, kind))
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        try:
            return values.cast(pa.int64()).combine_chunks()
        except pa.ArrowException:  # fractions, or beyond 63 bits
            return values.cast(pa.large_string()).combine_chunks()
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    return values.cast(pa.large_binary() if binary else pa.large_string()).combine_chunks()


def common_keys(one: pa.Array, other: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Keys of two tables in one form: numbers beside text as text; text beside bytes as the bytes that it is the UUID or hexadecimal of,
    null where it is of none."""
    if one.type == other.type:
        return one, other
    if pa.types.is_large_binary(one.type):
        return one, _as_bytes(other)
    if pa.types.is_large_binary(other.type):
        return _as_bytes(one), other
    return one.cast(pa.large_string()), other.cast(pa.large_string())


def _as_bytes(keys: pa.Array) -> pa.Array:
    if pa.types.is_integer(keys.type):
        return pa.nulls(len(keys), pa.large_binary())
    encoded = keys.cast(pa.large_string()).dictionary_encode()
    return pa.array([bytes_of(text) for text in encoded.dictionary.to_pylist()], pa.large_binary()).take(encoded.indices)


def bytes_of(text: str) -> bytes | None:
    """What a UUID or a hexadecimal number stands for, None where a text is neither."""
    try:
        return uuid.UUID(text).bytes if text.count("-") == 4 else bytes.fromhex(text)
    except ValueError:
        return None


def no_value(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which values are null, no number, or text that stands for nothing, such as `NULL`: bool."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_floating(values.type):
        return pc.invert(pc.is_finite(values).fill_null(False))
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        text = pc.utf8_lower(pc.utf8_trim_whitespace(values))
        return pc.is_in(text, value_set=pa.array(_NOTHING, text.type)).fill_null(True)
    return values.is_null()


def _known(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """With nulls where there is `no_value`."""
    return pc.if_else(no_value(values), pa.scalar(None, values.type), values)


def read_positions(source: Source, column: str) -> np.ndarray:
    """int64 or float64 [rows]. Raises DataError: a null, a value that is no number."""
    values = source.table[column]
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        row = -1
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            row = first_bad(values, lambda part: part.cast(pa.float64()))
        raise source.error(f"positions must be numbers, found {values.type}", column, row if row >= 0 else None)
    if pa.types.is_floating(values.type):
        values = _known(values)
    if values.null_count:
        told = f"null position ({_count(values.null_count, len(values))}){LEFT_OUT}"
        raise source.error(told, column, first_true(values.is_null()))
    return values.cast(pa.float64() if pa.types.is_floating(values.type) else pa.int64()).to_numpy()


def read_times(source: Source, column: str, notes: list[str]) -> tuple[np.ndarray, np.ndarray, str]:
    """Times as whole numbers since 1970: int64 [rows], a mask of the nulls (their time is 0) and the unit. notes: is told what was decided.

    Numbers are taken as seconds, milli-, micro- or nanoseconds by their size; whole numbers that are all dates (20240531) as those; text
    as numbers or as ISO 8601.
    The unit is `s` where no fraction of a second is lost by it, else the finest that is used: `ms`, `us` or `ns`.
    Raises DataError at the first value that is no time.
    """
    values = _spelled(source, column)
    kind = values.type
    if pa.types.is_floating(kind):
        values = _known(values.cast(pa.float64()))
    null = values.is_null().to_numpy() if values.null_count else np.zeros(len(values), bool)
    dates = None
    if pa.types.is_integer(kind):
        try:
            times = values.cast(pa.int64()).fill_null(0).to_numpy()
        except pa.ArrowException:
            row = first_bad(values, lambda part: part.cast(pa.int64()))
            raise source.error(f"cannot read {values[row].as_py()!r} as a time", column, row) from None
        dates = _dates(times[~null])
        if dates is None:
            unit = _unit(source, column, times)
    elif pa.types.is_floating(kind):
        times = values.fill_null(0.0).to_numpy()
        known = times[~null]
        whole = bool((known == np.floor(known)).all() and (np.abs(known) < 2**53).all())  # as pandas has them where one is missing
        dates = _dates(known.astype(np.int64)) if whole else None
        if dates is None:
            times, unit = _from_floats(source, column, times)
    elif pa.types.is_timestamp(kind):
        times, unit = values.cast(pa.int64()).fill_null(0).to_numpy(), kind.unit
    elif pa.types.is_date(kind):
        times, unit = values.cast(pa.timestamp("s")).cast(pa.int64()).fill_null(0).to_numpy(), "s"
    elif pa.types.is_null(kind):
        times, unit = np.zeros(len(values), np.int64), "s"
    else:
        raise source.error(f"values of type {kind} cannot be times", column)
    if dates is not None:
        notes.append(f"whole numbers in column '{column}' are read as dates, such as {int(times[~null][0])}")
        times, unit = np.zeros(len(times), np.int64), "s"
        times[~null] = dates
    a_second = PER_SECOND[unit]
    if a_second > 1 and not (times % a_second).any():
        return times // a_second, null, "s"
    return times, null, unit


def times_in(unit: str | None, source: Source, column: str) -> np.ndarray:
    """Times in a unit that is known before (None: seconds), less what is finer: int64 [rows].

    As `read_times` reads them, but each by itself, for what stands beside it depends on who asks: a number counts what its size says, a
    small one `unit`.
    Raises DataError: a value that is no time, a null, a number that may be a date (20240531), one beyond what 64 bits count.
    """
    if not source.table.num_rows:
        return np.empty(0, np.int64)
    values = _spelled(source, column)
    kind, unit = values.type, unit or "s"
    if pa.types.is_floating(kind):
        values = _known(values.cast(pa.float64()))
    if pa.types.is_int64(kind):  # what a missing moment ends up as
        values = pc.if_else(pc.equal(values, np.iinfo(np.int64).min), pa.scalar(None, kind), values)
    if values.null_count:
        raise source.error("null time", column, first_true(values.is_null()))
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        own = kind.unit if pa.types.is_timestamp(kind) else "s"
        times, per_second = values.cast(pa.timestamp(own)).cast(pa.int64()).to_numpy(), PER_SECOND[own]
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        times = values.to_numpy()
        sizes = np.abs(times.astype(np.float64))
        if (dates := np.any([(least <= sizes) & (sizes <= most) for least, most in _DATES], 0)).any():
            row = int(dates.argmax())
            raise source.error(f"{int(times[row])} may be a date: write 2024-05-31 for 20240531", column, row)
        per_second = np.select([sizes >= least for least in _LEAST.values()], [PER_SECOND[own] for own in _LEAST], PER_SECOND[unit])
    else:
        raise source.error(f"values of type {kind} cannot be times", column)
    beyond = np.abs(times.astype(np.float64)) / per_second >= 2.0**63 / PER_SECOND[unit]
    if beyond.any():
        row = int(beyond.argmax())
        raise source.error(f"cannot count {values[row].as_py()} in {unit} since 1970", column, row)
    times = times if times.dtype.kind == "f" else times.astype(np.int64)
    more, less = np.maximum(1, PER_SECOND[unit] // per_second), np.maximum(1, per_second // PER_SECOND[unit])
    return np.floor_divide(times * more, less).astype(np.int64)


def _spelled(source: Source, column: str) -> pa.ChunkedArray:
    """Times of a column as they are, text as the numbers or moments that it spells."""
    values = source.table[column]
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    return _parsed(source, column, values) if text else values


def null_times(source: Source, column: str, null: np.ndarray) -> DataError:
    """The error for the first null time."""
    told = f"null timestamp ({_count(int(null.sum()), len(null))}){LEFT_OUT}"
    return source.error(told, column, int(null.argmax()))


_TIMES = (pa.int64(), pa.float64(), *(pa.timestamp(unit, zone) for unit in ("us", "ns") for zone in (None, "UTC")))


def _parsed(source: Source, column: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text as int64, float64 or timestamps: whichever reads all of it, else the error at the first row that the best cannot read."""
    values = _known(pc.utf8_trim_whitespace(values))
    furthest = -1
    for kind in _TIMES:
        try:
            return values.cast(kind)
        except pa.ArrowException:
            furthest = max(furthest, first_bad(values, lambda part, kind=kind: part.cast(kind)))
    text = values[furthest].as_py()
    told = f"cannot read {text!r} as a time (unix time, or ISO 8601 such as 2024-05-31 or 2024-05-31T12:30:00Z)"
    if _reads(text):
        told = f"{text!r} is a time in another form than those before it: all are numbers, or all with a time zone, or all without"
    raise source.error(told, column, furthest)


def _reads(text: str) -> bool:
    """Whether a text would be a time if it stood alone."""
    for kind in _TIMES:
        try:
            pa.array([text]).cast(kind)
        except pa.ArrowException:
            continue
        return True
    return False


def _from_floats(source: Source, column: str, values: np.ndarray) -> tuple[np.ndarray, str]:
    unit = _unit(source, column, values)
    if (values != np.floor(values)).any():  # the next finer unit that a float64 still tells apart
        factor, unit = {"s": (1e6, "us"), "ms": (1e3, "us"), "us": (1e3, "ns"), "ns": (1.0, "ns")}[unit]
        values = np.rint(values * factor)
    beyond = np.abs(values) >= 2.0**63
    if beyond.any():
        row = int(beyond.argmax())
        raise source.error(f"cannot read {float(values[row])!r} as a time", column, row)
    return values.astype(np.int64), unit


def _dates(values: np.ndarray) -> np.ndarray | None:
    """Seconds since 1970 of whole numbers that are all written as dates of 1900 to 2100, such as 20240531, or with the time of day,
    202405311230 or 20240531123000; None where one is not, and where there is but one date without a time, which may be any number."""
    if not len(values) or values.min() == values.max() <= _LAST:
        return None
    clock = np.zeros(len(values), np.int64)
    for digits in (6, 4):  # of the time of day
        if values.min() >= _FIRST * 10**digits:
            values, clock = values // 10**digits, values % 10**digits * 100 ** (3 - digits // 2)
            break
    hour, minute, second = clock // 10_000, clock // 100 % 100, clock % 100
    if hour.max() > 23 or minute.max() > 59 or second.max() > 60 or values.min() < _FIRST or values.max() > _LAST:
        return None
    clock = hour * 3600 + minute * 60 + second
    year, month, day = values // 10_000, values // 100 % 100, values % 100
    if month.min() < 1 or month.max() > 12 or day.min() < 1:
        return None
    months = (year - 1970).astype("datetime64[Y]").astype("datetime64[M]") + (month - 1)
    days = months.astype("datetime64[D]") + (day - 1)
    if (days.astype("datetime64[M]") != months).any():  # a 31st of April
        return None
    return days.astype("datetime64[s]").astype(np.int64) + clock


def unit_of(time: float) -> str | None:
    """What a number of this size counts since 1970: 1e11 seconds are the year 5138, 1e11 milliseconds are 1973. None for a small one,
    which may stand for no time."""
    return next((unit for unit, least in _LEAST.items() if abs(time) >= least), None)


def _unit(source: Source, column: str, values: np.ndarray) -> str:
    """What all of these count, see `unit_of`.

    Raises DataError: some are times of our days in another unit than others. Such as in the largest's unit lie within its first days of
    1970, zeros and small numbers, stand for no time in most data, and are let pass.
    """
    sizes = np.abs(values)
    unit = unit_of(sizes.max()) or "s"
    other = (sizes >= _LEAST["s"]) & (sizes < _LEAST[unit])
    if other.any():
        row, most = int(other.argmax()), int(sizes.argmax())
        told = f"{values[row].item()!r} and {values[most].item()!r} are not of one unit: the latter counts {unit} since 1970"
        raise source.error(told, column, row)
    return unit


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.split(":")[0].lower()))


def _count(bad: int, rows: int) -> str:
    return f"{bad:,} of {rows:,} rows"
