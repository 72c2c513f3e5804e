"""Item texts out of table columns, and their vectors."""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asymrec.errors import VectorError
from asymrec.files import cache_folder

if TYPE_CHECKING:
    from asymrec.vectors.encoders import Encoder

TITLES = ("title", "name", "item_title", "item_name", "product_title", "product_name", "movie_title", "book_title", "track_name")
PLAIN = (*TITLES, "text", "description")  # read as sentences of their own, without the column's name before them
CODES = {"id", "ids", "uuid", "guid", "asin", "isbn", "ean", "upc", "gtin", "sku", "code", "codes", "hash", "key"}
LINKS = {"url", "urls", "uri", "link", "links", "href", "image", "images", "img", "thumbnail", "path", "file", "filename"}
SLAB = 8192  # texts embedded, and cached, together: an interrupted run keeps what it had
MANY = 256  # texts from which a progress bar is worth its line


def item_texts(items: pa.Table, columns: Sequence[str] | None = None) -> list[str]:
    """One text an item: its columns joined by ". ", a list's entries by ", ", named (`Brand: OPI`) unless they are title-like.

    columns: which, in this order. When not given: the column `text` alone, else title-like columns, then every other column of text or
    lists of text that does not look like ids, links or codes. A null is left out; an item without any text gets "".
    Raises VectorError: a column that is not there or has no text form; no column of text at all.
    """
    if columns is None:
        columns = text_columns(items)
        if not columns:
            raise VectorError("the item table has no column of text: name text columns, or give vectors as views")
    for name in columns:
        if name not in items.column_names:
            near = difflib.get_close_matches(name, items.column_names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(items.column_names)}"
            raise VectorError(f"the item table has no column '{name}'; {hint}")
    parts = [_column_texts(items[name], name) for name in columns]
    return [". ".join(part for part in line if part) for line in zip(*parts)] if parts else [""] * items.num_rows


def text_columns(items: pa.Table) -> list[str]:
    """The columns that `item_texts` joins when none are named; empty where the table has no text."""
    texts = [name for name in items.column_names if is_text(items.schema.field(name).type)]
    if "text" in texts:
        return ["text"]
    titles = sorted((name for name in texts if name.lower() in TITLES), key=lambda name: TITLES.index(name.lower()))
    return titles + [name for name in texts if name not in titles and not _looks_like_codes(items[name], name)]


def text_vectors(
    texts: Sequence[str | None], encoder: str | Encoder = "minilm", max_tokens: int = 128, cache: bool = True, progress: bool = True
) -> np.ndarray:
    """float32 [n, d]: texts embedded, each of length 1; the zero vector, with a warning, for empty ones.

    encoder: `minilm`, `hashed`, a model folder, or a sentence-transformers name; or what `find_encoder` gave.
    max_tokens: how much of a text is read.
    cache: keep vectors by content under `cache_folder()`. progress: a bar on stderr for many texts, if it is a terminal.
    Raises VectorError: all texts empty; an encoder that is not there or cannot be read.
    """
    texts = [(text or "").strip() for text in texts]
    distinct = list(dict.fromkeys(text for text in texts if text))
    if not distinct:
        raise VectorError(f"all {len(texts)} texts are empty")
    if empty := sum(not text for text in texts):
        warnings.warn(f"{empty:,} of {len(texts):,} items have no text: their text vector is zero", stacklevel=2)
    if encoder == "hashed":
        from asymrec.vectors import hashed

        warnings.warn("texts are embedded by hashed n-grams and SVD, not by a language model", stacklevel=2)
        vectors = hashed.encode(distinct)
    else:
        vectors = _embed(distinct, encoder, max_tokens, cache, progress)
    if (bad := ~np.isfinite(vectors).all(axis=1)).any():
        raise VectorError(f"encoder '{encoder}' gives a vector that is not finite for the text {distinct[int(bad.argmax())][:60]!r}")
    row = {text: line for line, text in enumerate(distinct)}
    out = np.zeros((len(texts), vectors.shape[1]), np.float32)
    filled = np.array([line for line, text in enumerate(texts) if text])
    out[filled] = vectors[[row[texts[line]] for line in filled]]
    return out


def _embed(texts: list[str], name: str | Encoder, max_tokens: int, cache: bool, progress: bool) -> np.ndarray:
    """float32 [n, d] of distinct texts, from the cache where they are there."""
    import hashlib

    from asymrec.vectors.cache import VectorCache
    from asymrec.vectors.encoders import find_encoder

    encoder = find_encoder(name) if isinstance(name, str) else name
    place = hashlib.sha256(f"{encoder.identity} {max_tokens}".encode()).hexdigest()[:24]
    store = VectorCache(cache_folder() / "vectors" / place)
    keys = [store.key(text) for text in texts]
    found = store.find(keys) if cache else {}
    missing = [line for line, key in enumerate(keys) if key not in found]
    with _bar(len(missing), progress) as advance:
        for start in range(0, len(missing), SLAB):
            slab = missing[start : start + SLAB]
            vectors = encoder.encode([texts[line] for line in slab], max_tokens, advance)
            slab_keys = [keys[line] for line in slab]
            found.update(zip(slab_keys, vectors))
            if cache:
                store.store(slab_keys, vectors)
    return np.stack([found[key] for key in keys])


@contextmanager
def _bar(total: int, progress: bool) -> Iterator[Callable[[int], None]]:
    if not progress or total < MANY or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("embedding texts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


def _column_texts(column: pa.ChunkedArray, name: str) -> list[str]:
    kind = column.type
    if _is_list(kind) and not is_text(kind):
        raise VectorError(f"column '{name}' holds {kind}, not text; vectors go under `views`")
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if not is_text(kind):
        try:
            column = column.cast(pa.string())
        except pa.ArrowException:
            raise VectorError(f"column '{name}' holds {kind}, not text") from None
    label = "" if name.lower() in PLAIN else f"{name.replace('_', ' ').strip().capitalize()}: "
    texts = []
    for value in column.to_pylist():
        if isinstance(value, list):
            value = ", ".join(part.strip() for part in value if part and part.strip())
        value = " ".join((value or "").split()).rstrip(" .")
        texts.append(label + value if value else "")
    return texts


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_text(kind: pa.DataType) -> bool:
    if _is_list(kind) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _looks_like_codes(column: pa.ChunkedArray, name: str) -> bool:
    """By the name, else by the first thousand values: links, numbers and dates as text, or one word each and none twice."""
    words = set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))
    if words & (CODES | LINKS):
        return True
    if _is_list(column.type):
        return False
    values = [value for value in pc.drop_null(column).slice(0, 1000).to_pylist() if value.strip()]
    if not values:
        return True
    linked = sum("://" in value or value.startswith("www.") for value in values)
    unworded = sum(re.search(r"[^\W\d_]{2}", value) is None for value in values)
    single = sum(not re.search(r"\s", value.strip()) for value in values)
    unique = len(set(values)) > 0.95 * len(values)
    return max(linked, unworded) > len(values) / 2 or (len(values) > 20 and unique and single > 0.95 * len(values))
