"""Lists for many users at once, from a Parquet file to a Parquet file: a piece is read, answered and written before the next is read.

A column `history` (lists of item ids, oldest first) is what is answered where there is one, else the run's own history of each `user`.
All other columns go through as they are. With Ray the pieces are spread over its machines, one model in each worker.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from asymrec.errors import AsymrecError, DataError, RunError, install
from asymrec.files import atomic
from asymrec.models import Recommender
from asymrec.pipeline import Pipeline, is_pipeline
from asymrec.serving.cells import is_list
from asymrec.serving.snapshot import check_run

LINES = 4096  # of a piece


class Lists:
    """A run, or a pipeline, that turns tables with a column of users or histories into tables with `items` and `scores` as well."""

    def __init__(self, run: str | Path, k: int = 10, exclude_seen: bool = True):
        self.pipeline = Pipeline.load(run) if is_pipeline(run) else None
        self.model = self.pipeline.retrieval if self.pipeline else Recommender.load(run)
        self.k, self.exclude_seen = k, exclude_seen

    def __call__(self, lines: pa.Table) -> pa.Table:
        """Raises UnknownIdError; DataError: neither column is there."""
        column = wanted(lines.schema)
        asked: dict[str, Any] = {"users": lines[column].to_pylist()}
        if column == "history":
            asked = {"histories": [each or [] for each in lines[column].to_pylist()]}
        if self.pipeline:
            found = self.pipeline.recommend(**asked, k=self.k, exclude_seen=self.exclude_seen)
            ids, scores = ([[one[name] for one in line] for line in found] for name in ("id", "score"))
        else:
            ids, scores = self.model.recommend(**asked, k=self.k, exclude_seen=self.exclude_seen)
        lists = pa.array(ids, pa.list_(self.model.dataset.item_ids.type))
        return lines.append_column("items", lists).append_column("scores", pa.array(scores, pa.list_(pa.float32())))


def wanted(schema: pa.Schema) -> str:
    """The column that says whom to recommend to. Raises DataError."""
    for name in ("history", "user", "user_id"):
        if name in schema.names:
            break
    else:
        raise DataError(f"no column history, user or user_id; there are {', '.join(schema.names)}")
    if name == "history" and not is_list(kind := schema.field(name).type):
        raise DataError(f"column 'history' must hold lists of item ids, found {kind}")
    if taken := {"items", "scores"} & set(schema.names):
        raise DataError(f"a column {min(taken)} is there already")
    return name


def write_lists(run: str | Path, source: Path, output: Path, k: int = 10, exclude_seen: bool = True) -> int:
    """Answer every line of `source`; `output` is whole or not there. Memory does not grow with the lines. Returns how many there are.

    Raises DataError, UnknownIdError, RunError.
    """
    with _opened(source) as file:
        wanted(file.schema_arrow)
        lists, done = Lists(run, k, exclude_seen), 0
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
    return done


def write_lists_with_ray(run: str | Path, source: Path, output: Path, k: int = 10, exclude_seen: bool = True, workers: int = 1) -> None:
    """The same over a Ray cluster: `output` becomes a folder of Parquet files. Run folder and files must be seen from every machine.

    Raises as `write_lists`. A model reserves no CPU: what reads and writes the pieces needs one, and would wait for ever where the models
    had them all.
    """
    try:
        import ray.data
    except ImportError:
        raise RunError(f"--workers needs Ray: {install('ray')}") from None
    with _opened(source) as file:
        wanted(file.schema_arrow)
    if output.exists():
        raise RunError(f"{output} is there already")
    check_run(Path(run))
    arguments = (str(Path(run).resolve()), k, exclude_seen)
    models = {"fn_constructor_args": arguments, "compute": ray.data.ActorPoolStrategy(size=workers), "num_cpus": 0}
    with _ray(), atomic(output) as temporary:
        lines = ray.data.read_parquet(str(Path(source).resolve()))
        lines.map_batches(Lists, **models, batch_size=LINES, batch_format="pyarrow").write_parquet(str(temporary))


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
