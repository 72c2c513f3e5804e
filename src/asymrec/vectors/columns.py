"""Vectors that the user brings, and all views of an item side by side."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asymrec.config import VectorsConfig
from asymrec.data.columns import find_column, id_keys, normal_keys
from asymrec.data.tables import read_table
from asymrec.errors import DataError, VectorError
from asymrec.vectors.collaborative import collaborative_vectors
from asymrec.vectors.text import is_text, item_texts, text_columns, text_vectors

if TYPE_CHECKING:
    from asymrec.data import Sequences
    from asymrec.data.dataset import Dataset

SUFFIXES = (".npy", ".parquet", ".safetensors")


def item_vectors(
    dataset: Dataset, config: VectorsConfig, train: Sequences | None = None, cache: bool = True, progress: bool = True
) -> np.ndarray:
    """float32 [n_items, d]: the text view and the further views side by side, each scaled to a mean norm of 1.

    train: the sequences of training, which collaborative vectors are made from where `collaborative` asks for them.
    Without a column of text, or with `text: []`, the views alone. With neither, said aloud: columns of vectors (see `usable_views`);
    else columns of lists of whole numbers (attributes, codes of another model), embedded as bags of features; without those,
    collaborative vectors are all there is.
    Raises VectorError: nothing of all that; a view that cannot be used; no training sequences for collaborative vectors.
    """
    items = dataset.items
    columns = config.text
    if columns is None:
        columns = text_columns(items.drop_columns(dataset.item_column))  # the id is no text, whatever it looks like
    chosen = usable_views(items, config, columns)
    if chosen and not config.views:
        warnings.warn(f"items have no text: their vectors are those in {', '.join(chosen)}", stacklevel=2)
    views = {}
    if not columns and not chosen:
        codes = [field.name for field in items.schema if _is_codes(field.type)] if config.text is None else []
        if codes:
            warnings.warn(f"items have no text: their vectors are made from the codes in {', '.join(codes)}", stacklevel=2)
            views["codes"] = _from_codes([items[name].to_pylist() for name in codes])
        elif not config.collaborative:
            hint = _candidates(items.drop_columns(dataset.item_column))
            raise VectorError(
                "items have neither text nor vectors: give a column of text (`text`), or vectors (`views`), or have vectors made of the "
                f"interactions (`collaborative=64`){hint}"
            )
    if columns:
        texts = item_texts(items, columns)
        views["text"] = text_vectors(texts, config.encoder, config.max_tokens, cache=cache, progress=progress)
    for spec in chosen:
        views[spec] = read_view(spec, dataset)
    if config.collaborative:
        if train is None:
            raise VectorError("collaborative vectors need the training sequences (`train`)")
        made = collaborative_vectors(train, dataset.n_items, config.collaborative)
        if made.any() or not views:  # no two interactions of a user: nothing is told, which is no error where there is text
            views["collaborative"] = made
    return np.concatenate([_scaled(vectors, name) for name, vectors in views.items()], axis=1)


def usable_views(items: pa.Table, config: VectorsConfig, columns: Sequence[str]) -> tuple[str, ...]:
    """The views that are named; where there are none, nor a column of text (`columns`), the columns of lists of numbers with a fraction
    that are all of one length."""
    if config.views or columns or config.text is not None:
        return tuple(config.views)
    found = []
    for field in items.schema:
        if _is_vector(field.type) and not pa.types.is_integer(field.type.value_type):
            lengths = pc.unique(pc.list_value_length(items[field.name].drop_null()))
            found += [field.name] if len(lengths) == 1 and lengths[0].as_py() else []
    return tuple(found)


def _candidates(items: pa.Table) -> str:
    """What of the item table might be meant, for an error."""
    texts = [name for name in items.column_names if is_text(items.schema.field(name).type)]
    return f"; what looks like ids or codes is taken where it is named: {', '.join(texts)}" if texts else ""


def read_view(spec: str, dataset: Dataset) -> np.ndarray:
    """float32 [n_items, d], in the order of the item table.

    spec: a column of lists of numbers in the item table; a `.npy` array or a `.safetensors` file with the tensor `vectors`, a row an
    item of the item table, in its order; a `.parquet` file with the items' ids and a column of vectors, in any order.
    A null in a column of the item table is the zero vector, with a warning.
    Raises VectorError, with the first bad row and its item: not there, not readable, another number of rows, an item without a line in
    a file or with two, unequal widths, a value that is not finite.
    """
    if spec in dataset.items.column_names:
        vectors = column_vectors(dataset.items[spec], f"column '{spec}'", dataset.item_ids, empty=True)
        if missing := dataset.items[spec].null_count:
            warnings.warn(f"{missing:,} of {dataset.n_items:,} items have no vector in '{spec}': it is zero", stacklevel=2)
    elif not spec.lower().endswith(SUFFIXES):
        raise VectorError(f"view '{spec}' is neither a column of the item table nor a {', '.join(SUFFIXES)} file")
    elif not (path := Path(spec).expanduser()).is_file():
        raise VectorError(f"{spec}: no such file of vectors")
    elif spec.lower().endswith(".parquet"):
        vectors = _from_parquet(path, dataset)
    else:
        vectors = _from_array(path)
        if len(vectors) != dataset.n_items:
            raise VectorError(f"{spec} has {len(vectors):,} rows, the item table {dataset.n_items:,}")
    if not vectors.shape[1]:
        raise VectorError(f"view '{spec}': the vectors have no entries")
    if (bad := ~np.isfinite(vectors).all(axis=1)).any():
        raise VectorError(f"view '{spec}', {_place(int(bad.argmax()), dataset.item_ids)}: a value that is not finite")
    return vectors


def _is_codes(kind: pa.DataType) -> bool:
    return _is_vector(kind) and pa.types.is_integer(kind.value_type)


def _from_codes(columns: list[list[list[int] | None]]) -> np.ndarray:
    """Lists of equal length are codes, each place with a meaning of its own; others are sets."""
    from asymrec.vectors import hashed

    tokens: list[list[str]] = [[] for _ in columns[0]]
    for number, column in enumerate(columns):
        placed = len({len(codes) for codes in column if codes}) == 1
        for line, codes in zip(tokens, column):
            line += [f"{number} {place if placed else ''} {code}" for place, code in enumerate(codes or ())]
    if not any(tokens):
        raise VectorError("items have neither text nor vectors, and their lists of codes are empty")
    return hashed.encode_tokens(tokens)


def _scaled(vectors: np.ndarray, name: str) -> np.ndarray:
    norm = float(np.linalg.norm(vectors.astype(np.float64), axis=1).mean())
    if norm == 0:
        raise VectorError(f"view '{name}': all vectors are zero")
    return (vectors / norm).astype(np.float32)


def _from_array(path: Path) -> np.ndarray:
    try:
        if path.suffix.lower() == ".npy":
            vectors = np.load(path, allow_pickle=False)
        else:
            from safetensors import safe_open

            with safe_open(path, "torch") as file:  # torch, for numpy has no bfloat16
                if "vectors" not in file.keys():  # noqa: SIM118 (not a dict)
                    raise VectorError(f"{path} has no tensor `vectors`; it has {', '.join(sorted(file.keys())) or 'none'}")
                tensor = file.get_tensor("vectors")
                vectors = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except VectorError:
        raise
    except Exception as error:  # safetensors and numpy each raise several kinds
        raise VectorError(f"{path}: not readable as {path.suffix[1:]} ({' '.join(str(error).split())})") from None
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise VectorError(f"{path}: expected numbers in two dimensions, found {vectors.dtype} {list(vectors.shape)}")
    with np.errstate(over="ignore"):  # what does not fit float32 becomes inf, and is refused as such
        return np.ascontiguousarray(vectors, np.float32)


def _from_parquet(path: Path, dataset: Dataset) -> np.ndarray:
    try:
        source = read_table(path, str(path))
        table = source.table
        name = dataset.item_column if dataset.item_column in table.column_names else find_column(source, "item")
        theirs = id_keys(source, name)
    except DataError as error:
        raise VectorError(str(error)) from None
    lists = [field.name for field in table.schema if _is_vector(field.type)]
    if len(lists) != 1:
        raise VectorError(f"{path}: expected one column of vectors, found {', '.join(lists) or 'none'}")
    ours = normal_keys(dataset.item_ids)
    try:
        theirs = theirs.cast(ours.type)
    except pa.ArrowException:
        raise VectorError(f"{path}, column '{name}': {table[name].type} are no ids of these items ({dataset.item_ids.type})") from None
    rows = pc.index_in(ours, value_set=theirs)
    if rows.null_count:
        first = dataset.item_ids[pc.index(rows.is_null(), pa.scalar(True)).as_py()].as_py()
        raise VectorError(f"{path}: {rows.null_count:,} of {dataset.n_items:,} items have no vector, the first is {first!r}")
    held = pc.index_in(theirs, value_set=ours).drop_null().to_numpy()  # ids of other items may be there as well
    if len(held) > dataset.n_items:
        row = int((np.bincount(held) > 1).argmax())
        raise VectorError(f"{path}, column '{name}': item {dataset.item_ids[row].as_py()!r} has more than one vector")
    return column_vectors(table[lists[0]].take(rows), f"{path}, column '{lists[0]}'", dataset.item_ids)


def column_vectors(column: pa.ChunkedArray, name: str, ids: pa.Array | None = None, empty: bool = False) -> np.ndarray:
    """float32 [n, d] of a column of lists of numbers; empty: a null is the zero vector.

    Raises VectorError: of another kind; with the first bad row, and its id if given.
    """
    if not _is_vector(column.type):
        raise VectorError(f"{name} holds {column.type}, not lists of numbers")
    there = pc.is_valid(column).to_numpy()
    if not there.all() and not (empty and there.any()):
        raise VectorError(f"{name}, {_place(int(there.argmin()), ids)}: no vector")
    rows, column = np.flatnonzero(there), column.drop_null()
    widths = pc.list_value_length(column).to_numpy()
    if (bad := widths != widths[0]).any():
        row = int(bad.argmax())
        raise VectorError(f"{name}, {_place(int(rows[row]), ids)}: {widths[row]} entries, the first item has {widths[0]}")
    flat = pc.list_flatten(column)
    if flat.null_count:
        row = pc.index(pc.is_null(flat), pa.scalar(True)).as_py() // int(widths[0])
        raise VectorError(f"{name}, {_place(int(rows[row]), ids)}: a null in the vector")
    vectors = np.zeros((len(there), int(widths[0])), np.float32)
    with np.errstate(over="ignore"):
        vectors[rows] = flat.to_numpy().astype(np.float32).reshape(len(column), int(widths[0]))
    return vectors


def _is_vector(kind: pa.DataType) -> bool:
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return nested and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _place(row: int, ids: pa.Array | None) -> str:
    return f"row {row + 1:,}" + ("" if ids is None else f" (item {ids[row].as_py()!r})")
