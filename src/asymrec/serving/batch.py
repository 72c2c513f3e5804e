"""Lists for many users at once, from a Parquet file to a Parquet file: a piece is read, answered and written before the next is read.

A column `history` (lists of item ids, oldest first) is what is answered where there is one, else the run's own history of each user. A
column `times` beside `history` has lists of when its items were taken, or nulls where that is not known. All other columns go through as
they are. With Ray the pieces are spread over its machines, one model in each worker.

Ids are looked up and times read before the first list is made, in one pass over their columns alone: one that is not known is told at
once and not after hours, and by its row in the whole file, which a worker does not know.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import compress, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from asymrec.data import Dataset
from asymrec.data.columns import find_column, times_in
from asymrec.data.rows import listed
from asymrec.data.tables import Source
from asymrec.errors import AsymrecError, DataError, RunError, install
from asymrec.files import atomic
from asymrec.models import Recommender
from asymrec.pipeline import Pipeline, is_pipeline
from asymrec.serving.cells import is_list
from asymrec.serving.snapshot import check_run

LINES = 4096  # of a piece
HISTORY, TIMES = "history", "times"


class Lists:
    """A run, or a pipeline, that turns tables with a column of users or histories into tables with `items` and `scores` as well.

    An unknown user gets empty lists, unknown items of a history are left out: whether that may be is for `look_up` to say, before.
    """

    def __init__(self, run: str | Path, column: str, k: int = 10, exclude_seen: bool = True):
        self.pipeline = Pipeline.load(run) if is_pipeline(run) else None
        self.model = self.pipeline.retrieval if self.pipeline else Recommender.load(run)
        self.column, self.k, self.exclude_seen = column, k, exclude_seen

    def __call__(self, lines: pa.Table) -> pa.Table:
        known, unknown = sort_out(self.model.dataset, self.column, lines[self.column])
        if self.column == HISTORY:
            ids, scores = self._of_histories(known, times_of(Source(HISTORY, lines), lines, unknown, self.model.dataset.time_unit))
        else:
            answers = zip(*self._lists(users=[user for each in known for user in each]))
            found = [next(answers) if each else ([], []) for each in known]
            ids, scores = [each[0] for each in found], [each[1] for each in found]
        own = self.model.dataset.item_ids
        rows = pa.array(self.model.dataset.item_rows([each for line in ids for each in line]))
        stops = pa.array(np.cumsum([0, *map(len, ids)]), pa.int32())
        lists = pa.ListArray.from_arrays(stops, own.take(rows))  # of ids of any type: Arrow makes no lists of UUIDs from Python's
        return lines.append_column("items", lists).append_column("scores", pa.array(scores, pa.list_(pa.float32())))

    def _of_histories(self, known: list[list[Any]], times: list[list[int] | None]) -> tuple[list[list[Any]], list[list[float]]]:
        """A model is told the times of all histories that it is given or of none."""
        ids: list[Any] = [None] * len(known)
        scores: list[Any] = [None] * len(known)
        for timed in (False, True):
            if part := [at for at, own in enumerate(times) if (own is not None) == timed]:
                asked = {"histories": [known[at] for at in part]} | ({"times": [times[at] for at in part]} if timed else {})
                for at, own, values in zip(part, *self._lists(**asked)):
                    ids[at], scores[at] = own, values
        return ids, scores

    def _lists(self, **asked: list[Any]) -> tuple[list[list[Any]], list[list[float]]]:
        if not self.pipeline:
            return self.model.recommend(**asked, k=self.k, exclude_seen=self.exclude_seen)
        found = self.pipeline.recommend(**asked, k=self.k, exclude_seen=self.exclude_seen)
        return [[one["id"] for one in line] for line in found], [[one["score"] for one in line] for line in found]


def wanted(source: Source) -> str:
    """The column that says whom to recommend to: `history`, else `user`, else what `fit` takes for the users. Raises DataError."""
    schema = source.table.schema
    name = next((name for name in (HISTORY, "user") if name in schema.names), None) or find_column(source, "user", required=False)
    if name is None:
        raise source.error(f"no column history, user or user_id; there are {listed(schema.names)}")
    if twice := [each for each in ((name, TIMES) if name == HISTORY else (name,)) if schema.names.count(each) > 1]:
        raise source.error("two columns have this name", twice[0])
    if name == HISTORY and not is_list(kind := schema.field(name).type):
        raise source.error(f"column 'history' must hold lists of item ids, found {kind}")
    if name == HISTORY and TIMES in schema.names and not is_list(kind := schema.field(TIMES).type) and not pa.types.is_null(kind):
        raise source.error(f"column 'times', beside 'history', must hold lists of times, found {kind}")
    if taken := {"items", "scores"} & set(schema.names):
        raise source.error(f"a column {min(taken)} is there already")
    return name


def sort_out(dataset: Dataset, column: str, cells: pa.Array | pa.ChunkedArray) -> tuple[list[list[Any]], list[tuple[int, int, Any]]]:
    """Each line's ids that the data set holds; and those that it does not hold, nulls too, with their line and place in it. A user is a
    list of one."""
    given = [each or [] for each in cells.to_pylist()] if column == HISTORY else [[user] for user in cells.to_pylist()]
    rows = (dataset.find_items if column == HISTORY else dataset.find_users)([own for each in given for own in each])
    there = iter((rows >= 0).tolist())
    known: list[list[Any]] = []
    unknown = []
    for line, each in enumerate(given):
        found = list(islice(there, len(each)))
        known.append(list(compress(each, found)))
        unknown += [(line, place, own) for place, (own, is_known) in enumerate(zip(each, found)) if not is_known]
    return known, unknown


def times_of(
    source: Source, lines: pa.Table, unknown: list[tuple[int, int, Any]], unit: str | None, before: int = 0
) -> list[list[int] | None]:
    """When the items of each line's history, but for the unknown ones, were taken, in the run's unit; None where that is not said.

    before: lines of `source` that were read before these.
    Raises DataError, of a line: no times, another number of them than of items, or a smaller one after a larger.
    """
    if TIMES not in lines.column_names or pa.types.is_null(lines[TIMES].type):
        return [None] * len(lines)
    cells = lines[TIMES].combine_chunks()
    counts, lengths = pc.list_value_length(cells).to_pylist(), pc.list_value_length(lines[HISTORY]).fill_null(0).to_pylist()
    for line, (count, length) in enumerate(zip(counts, lengths)):
        if count not in (None, length):
            raise source.error(f"{count} times for a history of {length} items", TIMES, before + line)

    def read(values: pa.Array) -> np.ndarray:
        return times_in(unit, Source("", pa.table({TIMES: values})), TIMES)

    try:
        flat = read(cells.flatten())
    except DataError:  # of one line, which is to be told; or the lines' texts are of several forms
        parts = [np.empty(0, np.int64)]
        for line, cell in enumerate(cells):
            try:
                parts.append(read(cell.values) if cell.is_valid else parts[0])
            except DataError as error:
                raise source.error(str(error).split(": ", 1)[1], TIMES, before + line) from None
        flat = np.concatenate(parts)
    ends = np.cumsum([count or 0 for count in counts])
    found: list[Any] = [None if count is None else own.tolist() for count, own in zip(counts, np.split(flat, ends[:-1]))]
    for line, own in enumerate(found):
        if own is not None and any(later < time for time, later in pairwise(own)):
            raise source.error("times must not fall: the oldest item comes first", TIMES, before + line)
    for line, place, _ in reversed(unknown):
        if found[line] is not None:
            del found[line][place]
    return found


def look_up(file: pq.ParquetFile, source: Source, column: str, dataset: Dataset, drop_unknown: bool) -> str | None:
    """Whether the data set holds every id of the column, and times beside it are such. Returns what is to be told of those that lists are
    made without, if any.

    Raises DataError at the first that it does not hold, unless `drop_unknown`, and as `times_of`.
    """
    noun = "item" if column == HISTORY else "user"
    read = ids = lines = 0
    columns = [column] + ([TIMES] if column == HISTORY and TIMES in source.table.column_names else [])
    for piece in file.iter_batches(LINES, columns=columns):
        _, unknown = sort_out(dataset, column, piece[column])
        if unknown and not drop_unknown:
            line, _, own = unknown[0]
            told = f"null {noun} id" if own is None else f"unknown {noun} id {own!r}"
            raise source.error(f"{told}; --drop-unknown goes on without", column, read + line)
        times_of(source, pa.Table.from_batches([piece]), unknown, dataset.time_unit, read)
        read, ids, lines = read + len(piece), ids + len(unknown), lines + len({line for line, *_ in unknown})
    if not ids:
        return None
    if column == HISTORY:
        return f"{ids:,} unknown items are left out of the histories of {lines:,} of {read:,} lines"
    return f"{lines:,} of {read:,} lines have an unknown user, or none: their lists are empty"


def write_lists(run: str | Path, source: Path, output: Path, k: int = 10, exclude_seen: bool = True, *, drop_unknown: bool = False) -> int:
    """Answer every line of `source`; `output` is whole or not there. Memory does not grow with the lines. Returns how many there are.

    drop_unknown: an unknown user, or null, gets empty lists, unknown items of a history are left out, and a warning says how many there
    were; else they are refused before the first list is made.
    Raises DataError, which names the file, and for an id or a time its column and row; RunError.
    """
    with _opened(source) as file:
        if output.exists() and output.samefile(source):
            raise RunError(f"{output} is what is read: name another file for the lists")
        place = Source(str(source), file.schema_arrow.empty_table())
        column = wanted(place)
        lists, done = Lists(run, column, k, exclude_seen), 0
        told = look_up(file, place, column, lists.model.dataset, drop_unknown)
        with atomic(output) as temporary:
            writer = None
            try:
                for piece in file.iter_batches(LINES):
                    made = lists(pa.Table.from_batches([piece]))
                    writer = writer or pq.ParquetWriter(temporary, made.schema, compression="zstd")
                    writer.write_table(made)
                    done += len(piece)
                if writer is None:
                    raise DataError(f"{source}: no lines")
            finally:
                if writer is not None:
                    writer.close()
    if told:
        warnings.warn(told, stacklevel=2)
    return done


def write_lists_with_ray(
    run: str | Path,
    source: Path,
    output: Path,
    k: int = 10,
    exclude_seen: bool = True,
    workers: int = 1,
    *,
    drop_unknown: bool = False,
) -> None:
    """The same over a Ray cluster: `output` becomes a folder of Parquet files. Run folder and files must be seen from every machine.

    Raises as `write_lists`. A model reserves no CPU: what reads and writes the pieces needs one, and would wait for ever where the models
    had them all.
    """
    try:
        import ray.data
    except ImportError:
        raise RunError(f"--workers needs Ray: {install('ray')}") from None
    if output.exists():
        raise RunError(f"{output} is there already")
    check_run(run := Path(run))
    with _opened(source) as file:
        place = Source(str(source), file.schema_arrow.empty_table())
        column = wanted(place)
        dataset = Dataset.load((run / "retrieval" if is_pipeline(run) else run) / "dataset")
        told = look_up(file, place, column, dataset, drop_unknown)
    arguments = (str(run.resolve()), column, k, exclude_seen)
    models = {"fn_constructor_args": arguments, "compute": ray.data.ActorPoolStrategy(size=workers), "num_cpus": 0}
    with _ray(), atomic(output) as temporary:
        lines = ray.data.read_parquet(str(Path(source).resolve()))
        lines.map_batches(Lists, **models, batch_size=LINES, batch_format="pyarrow").write_parquet(str(temporary))
    if told:
        warnings.warn(told, stacklevel=2)


@contextmanager
def _ray() -> Iterator[None]:
    """Ray without its progress bars, notes and warnings, which are for who wrote the job. What fails in a worker is raised as it was."""
    import ray.data

    context, disabled = ray.data.DataContext.get_current(), logging.root.manager.disable
    before = context.enable_progress_bars, context.raise_original_map_exception
    context.enable_progress_bars, context.raise_original_map_exception = False, True
    logging.disable(logging.CRITICAL)
    ours = not ray.is_initialized()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if ours:
                _start(ray)
            yield
    except ray.exceptions.RayError as error:
        if isinstance(cause := getattr(error, "cause", None), AsymrecError):
            raise type(cause)(str(cause).split("\n")[0]) from None  # below it Ray's advice on trying again
        raise RunError(f"Ray could not make the lists: {' '.join(str(error).split())[:300]}") from None
    finally:
        if ours:
            ray.shutdown()
        logging.disable(disabled)
        context.enable_progress_bars, context.raise_original_map_exception = before


def _start(ray: Any) -> None:
    """Raises RunError. Its part in C++ writes to stderr by itself, first of all that it was told not to."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        ray.init(log_to_driver=False)
    except Exception as error:  # no cluster at RAY_ADDRESS, too little memory
        raise RunError(f"Ray does not start: {' '.join(str(error).split())[:300]}") from None
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _opened(source: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(source)
    except FileNotFoundError:
        raise DataError(f"{source}: no such file") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{source}: not readable as Parquet ({' '.join(str(error).split())[:120]})") from None
