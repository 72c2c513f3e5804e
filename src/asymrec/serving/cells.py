"""Cells of an item table as JSON knows them, and back: what a server tells of an item can be sent to it again."""

from __future__ import annotations

import json
import re
from datetime import time
from typing import Any

import numpy as np
import pyarrow as pa

from asymrec.data.columns import PER_SECOND, bytes_of
from asymrec.errors import DataError

_DURATION = re.compile(r"(?:(-?\d+) days?,? \+?)?(\d+):(\d\d):(\d\d)(?:\.(\d{1,9}))?")  # as Python and pandas write them
UUID = pa.uuid()
LARGEST = {pa.float16(): 65504.0, pa.float32(): float(np.finfo(np.float32).max)}  # larger ones would be infinite


def as_id(value: Any) -> str | int:
    """An id as JSON knows it: whole numbers and text as they are, bytes as hexadecimal text, all else as text."""
    if isinstance(value, (str, int)):
        return value
    return value.hex() if isinstance(value, bytes) else str(value)


def as_json(value: Any) -> Any:
    """A cell as JSON knows it: bytes are hexadecimal text, maps lists of pairs, days, moments, durations and decimals text."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, dict):
        return {name: as_json(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(part) for part in value]
    return value.hex() if isinstance(value, bytes) else str(value)


def cell(column: pa.ChunkedArray) -> Any:
    """The only value of a column, as JSON knows it."""
    try:
        return as_json(column[0].as_py())
    except (ValueError, OverflowError):  # a moment outside of Python's years, or finer than its microseconds
        return column.cast(pa.string())[0].as_py()


def as_column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Values as JSON has them, in the type of a column. Raises ArrowException, TypeError, ValueError, OverflowError, AttributeError."""
    if kind == UUID:
        found = [bytes_of(value) if isinstance(value, str) else None for value in values]
        if any(value is not None and len(own or ()) != 16 for value, own in zip(values, found)):
            raise ValueError("no UUID")
        return pa.ExtensionArray.from_storage(kind, pa.array(found, kind.storage_type))
    if is_binary(kind):
        return pa.array([None if value is None else bytes.fromhex(value) for value in values], type=kind)
    if pa.types.is_dictionary(kind):
        return as_column(values, kind.value_type).dictionary_encode().cast(kind)
    if pa.types.is_decimal(kind):
        values = [str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value for value in values]
        return pa.array(values, type=pa.string()).cast(kind)
    if pa.types.is_time(kind):
        return pa.array([None if value is None else time.fromisoformat(value) for value in values], type=kind)
    if pa.types.is_duration(kind):
        return pa.array([None if value is None else _duration(value, 10**9 // PER_SECOND[kind.unit]) for value in values], type=kind)
    if pa.types.is_temporal(kind):
        return pa.array(values, type=pa.string()).cast(kind)
    if pa.types.is_struct(kind):
        parts = [as_column([None if value is None else value.get(field.name) for value in values], field.type) for field in kind]
        return pa.StructArray.from_arrays(parts, fields=list(kind), mask=pa.array([value is None for value in values]))
    if pa.types.is_map(kind):
        pairs = [pair for value in values for pair in value or ()]
        keys, parts = as_column([key for key, _ in pairs], kind.key_type), as_column([part for _, part in pairs], kind.item_type)
        return pa.MapArray.from_arrays(_offsets(values), keys, parts, type=kind)
    if is_list(kind) and not (pa.types.is_primitive(kind.value_type) and not pa.types.is_temporal(kind.value_type)):
        inner = as_column([each for value in values for each in value or ()], kind.value_type)
        return pa.ListArray.from_arrays(_offsets(values), inner).cast(kind)
    return pa.array(values, type=kind)


def fits(value: Any, kind: pa.DataType) -> bool:
    """Whether a value of JSON is one of this type; of types that JSON has no values of, whatever it is. Arrow takes a text for a list of
    letters, and 2.7 for a whole number: a new item's columns are held to more."""
    if value is None:
        return True
    if isinstance(value, float) and not np.isfinite(value):  # JSON has none, but Python's reader takes it
        return False
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_list(kind):
        return isinstance(value, list) and all(fits(each, kind.value_type) for each in value)
    if pa.types.is_struct(kind):
        return isinstance(value, dict) and all(name in kind.names and fits(each, kind.field(name).type) for name, each in value.items())
    if pa.types.is_map(kind):
        pairs = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
        return pairs and all(fits(key, kind.key_type) and fits(part, kind.item_type) for key, part in value)
    if isinstance(value, int | float) and abs(value) > LARGEST.get(kind, np.inf):
        return False
    if pa.types.is_integer(kind):
        return number and (isinstance(value, int) or value.is_integer())
    return number or not pa.types.is_floating(kind)


def misfit(name: str, value: Any, kind: pa.DataType) -> DataError:
    """The error for a value of JSON that is none of a column's type."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return DataError(f"column '{name}' holds {in_words(kind)}, not {text if len(text) <= 80 else text[:80] + '...'}")


def in_words(kind: pa.DataType) -> str:
    """What a column of a type holds, as JSON has it."""
    if pa.types.is_dictionary(kind):
        return in_words(kind.value_type)
    if pa.types.is_struct(kind):
        return f"objects {{{', '.join(f'{field.name}: {in_words(field.type)}' for field in kind)}}}"
    if pa.types.is_map(kind):
        return f"lists of pairs [{in_words(kind.key_type)}, {in_words(kind.item_type)}]"
    if is_list(kind):
        return f"lists of {in_words(kind.value_type)}"
    if kind == UUID:
        return "UUIDs"
    if is_binary(kind):
        return "bytes in hexadecimal"
    if pa.types.is_duration(kind):
        return f"durations in whole {kind.unit}, such as '2 days, 1:30:00'"
    return next((words.format(kind=kind) for is_one, words in _WORDS if is_one(kind)), str(kind))


_WORDS = (
    (pa.types.is_string, "text"),
    (pa.types.is_large_string, "text"),
    (pa.types.is_boolean, "true or false"),
    (pa.types.is_integer, "whole numbers ({kind})"),
    (pa.types.is_floating, "numbers ({kind})"),
    (pa.types.is_decimal, "numbers ({kind})"),
    (pa.types.is_date, "days such as '2024-01-31'"),
    (pa.types.is_timestamp, "moments such as '2024-01-31T12:00:00'"),
    (pa.types.is_time, "times of day such as '09:30:00'"),
)


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _offsets(values: list[list | None]) -> pa.Array:
    """Where each list begins among the entries of all."""
    stops = np.cumsum([0, *(len(value or ()) for value in values)])
    return pa.array(stops, pa.int32(), mask=np.array([*(value is None for value in values), False]))


def _duration(text: str, unit: int) -> int:
    """How many units of so many nanoseconds."""
    if not (found := _DURATION.fullmatch(text)):
        raise ValueError(f"{text[:40]!r} is no duration such as '2 days, 1:30:00'")
    days, hours, minutes, seconds, rest = found.groups()
    count = ((int(days or 0) * 24 + int(hours)) * 60 + int(minutes)) * 60 + int(seconds)
    found, left = divmod(count * 10**9 + int((rest or "").ljust(9, "0")), unit)
    if left:
        raise ValueError(f"{text[:40]!r} is finer than the column")
    return found
