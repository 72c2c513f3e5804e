"""Run a plan's cells, each in a process of its own, several at once, and go on where an earlier run of the plan stopped.

A cell's folder holds, while it works, `run/`: the run folder that `asymrec fit --resume` makes and goes on with. When the fit is done
what is needed of it is copied out (KEPT), `cell.json` says so, and `run/` is dropped. So at any moment, `kill -9` of everything
included, the same command goes on, inside a training as well.

A failed cell is tried again by the next run of the plan. A cell whose model or settings are no longer the plan's, or no longer what the
models' defaults are, or whose data have changed since, is fitted anew.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from asymrec.bench.data import against, fingerprint_of, look, missing, without_paths
from asymrec.bench.plan import Cell, Plan
from asymrec.config import Recipe
from asymrec.errors import RunError
from asymrec.files import atomic
from asymrec.runs import CHECKPOINT

KEPT = ("metrics.json", "log.jsonl", "config.yaml")
SETTLED = ("finished", "failed", "stopped")
DONE = ("finished", "stopped")
POLL = 0.1  # seconds between two looks at the processes


def run_cells(plan: Plan, cells: Iterable[Cell], say: Callable[[str], None] = print) -> list[Cell]:
    """Run these cells of the test and the trials before them, those that are not done; `say` gets a line for each that ends.

    Returns the cells that failed, trials included. Raises RunError: no data folder is there; another bench on the same output; the
    output cannot be written.
    """
    cells = list(cells)
    names = list(dict.fromkeys(cell.data for cell in cells))
    if names and not any(plan.data[name].path.exists() for name in names):
        raise RunError(f"data '{names[0]}': {missing(plan, names[0])}")
    with alone(plan.output) as lock, _terminated():
        failed = _look(plan, cells, say)
        tried = [cell for cell in cells if not against(plan, cell)]
        waiting, going = [*(trial for trial in plan.trials_of(tried) if not against(plan, trial)), *tried], []
        needs = {cell.place: {trial.place for trial in plan.trials(cell)} for cell in cells}
        try:
            while waiting or going:
                _start_what_can(plan, waiting, going, needs, lock)
                for job in list(going):
                    if record := job.ended(plan):
                        going.remove(job)
                        say(_line(job.cell, record, plan))
                        if record["state"] == "failed":
                            failed.append(job.cell)
                if going:
                    time.sleep(POLL)
        finally:
            for job in going:
                job.process.terminate()
                job.process.wait()
    return failed


def _look(plan: Plan, cells: list[Cell], say: Callable[[str], None]) -> list[Cell]:
    """Look at the data sets on which something is to do, and tell once what is wrong with each; returns the cells that fail for it."""
    both = [*plan.trials_of(cells), *cells]
    todo = [cell for cell in both if not cell.entry.columns and state(plan, cell) not in DONE]
    for name in dict.fromkeys(cell.data for cell in todo):
        chosen = {cell.protocol for cell in todo if cell.data == name}
        found = [record for protocol, record in look(plan, name).items() if protocol in chosen]
        for line in dict.fromkeys(f"{record['place']}: {record['state']}: {record['error']}" for record in found):
            say(line)
    return [cell for cell in both if against(plan, cell) and state(plan, cell) == "failed"]


def settled(plan: Plan, cell: Cell) -> Cell | None:
    """A cell of the test with the settings that its trials chose; None while a trial is to come."""
    trials = plan.trials(cell)
    records = [read(plan, trial) for trial in trials]
    if any(record["state"] not in (*SETTLED, "not possible") for record in records):
        return None
    figures = [(-_validation(plan, trial), at) for at, (trial, record) in enumerate(zip(trials, records)) if record["state"] == "finished"]
    return replace(cell, tuned=trials[min(figures)[1]].tuned) if figures else cell  # equal figures: the earlier trial


def outcome(plan: Plan, cell: Cell) -> tuple[Cell, dict[str, Any]]:
    """A cell with the settings that its trials chose, and its record: {"state": "waiting"} while a trial is to come."""
    known = settled(plan, cell) if cell.trial is None else cell
    return (cell, against(plan, cell) or {"state": "waiting"}) if known is None else (known, read(plan, known))


def state(plan: Plan, cell: Cell) -> str:
    """finished, failed, stopped (a trial that was out of time), not possible, begun, to do, or waiting (for its trials)."""
    return outcome(plan, cell)[1]["state"]


def read(plan: Plan, cell: Cell) -> dict[str, Any]:
    """A cell's record, `cell.json`: {"state", "command", "settings", "seconds", "peak_memory_mib", "error", ...}.

    {"state": "to do"} where there is none, or where it is of other settings or other data than the cell's; {"state", "error", "place"}
    where the data set cannot be read, or cannot have the protocol.
    """
    folder = plan.output / cell.place
    try:
        record = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
        same = record["state"] in (*SETTLED, "begun") and agrees(plan, cell, record, _recipe_of(folder))
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    record = record if same else {"state": "to do"}
    return record if record["state"] in DONE else against(plan, cell) or record


def agrees(plan: Plan, cell: Cell, record: dict[str, Any], recipe: dict[str, Any] | None) -> bool:
    """Whether what a record is of is what the cell would be now: its model, its settings and its data (taken for the same where nothing is
    known of either, as in cells of earlier versions).

    Of a setting that came after the record it is asked what fits were like before (`Recipe.before`); others that only one of the two
    knows are passed.

    recipe: what it was fitted with; None where it failed, or was killed, before it began to fit.
    """
    if recipe is None:
        settings = record["settings"] == json.loads(json.dumps(cell.settings))
    else:
        now = cell.recipe().model_dump(mode="json")
        used = cell.entry.uses()
        settings = _agree(recipe, now, {leaf: value for leaf, value in Recipe.before().items() if leaf in used})
    kept = record.get("fingerprint")
    limit = record["state"] != "stopped" or record["minutes"] == plan.tuning.minutes
    return record["model"] == cell.entry.model and settings and limit and (kept is None or fingerprint_of(plan, cell) in (None, kept))


def _recipe_of(folder: Path) -> dict[str, Any] | None:
    paths = [folder / "config.yaml", *(folder / "run" / name / "config.yaml" for name in ("", CHECKPOINT))]
    return next((yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths if path.exists()), None)


def _agree(kept: Any, now: Any, before: dict[str, Any]) -> bool:
    """before: of settings that the one who kept them may not have known."""
    if isinstance(kept, dict) and isinstance(now, dict):
        both = {name: (kept.get(name, before.get(name)), value) for name, value in now.items() if name in kept or name in before}
        return all(_agree(*pair, before) or _alike(name, *pair) for name, pair in both.items())
    if isinstance(kept, list) and isinstance(now, list):
        return len(kept) == len(now) and all(_agree(*pair, before) for pair in zip(kept, now))
    return kept == now


def _alike(name: str, kept: Any, now: Any) -> bool:
    """Two settings that are told differently: what `auto` was measured to be, files of vectors in a data folder that has moved."""
    if name == "views":
        return len(kept) == len(now) and all(Path(a).parts[-len(Path(b).parts) :] == Path(b).parts for a, b in zip(kept, now))
    return name == "precision" and now == "auto"


def facts(plan: Plan, cell: Cell) -> dict[str, Any]:
    """`metrics.json` of a finished cell. Raises RunError: damaged."""
    path = plan.output / cell.place / "metrics.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RunError(f"{path} is missing or damaged: remove the folder {path.parent} and run the bench again") from None


def command(cell: Cell) -> str:
    """What makes the cell, with the data's name for its folder."""
    return shlex.join(["asymrec", *cell.arguments(cell.data, "RUN")])


def _validation(plan: Plan, trial: Cell) -> float:
    return facts(plan, trial)["metrics"][trial.entry.model]["kept"]["ndcg@10"]


# Processes


@dataclass
class _Job:
    cell: Cell
    folder: Path
    process: subprocess.Popen
    fingerprint: str | None  # of its data
    before: float  # seconds that interrupted runs of the cell have taken
    began: float = field(default_factory=time.monotonic)

    def ended(self, plan: Plan) -> dict[str, Any] | None:
        """Its record where the process has ended, or has been stopped here because its time was over; None while it works."""
        code = self.process.poll()
        limit = plan.tuning.minutes if plan.tuning and self.cell.trial else None
        spent = self.before + time.monotonic() - self.began
        if code is None and (limit is None or spent < 60 * limit):
            return None
        if code is None:
            self.process.terminate()
            self.process.wait()
            error = f"not done in {limit:g} minutes"
            record = self._write(plan, {"state": "stopped", "error": error, "minutes": limit, "seconds": spent})
            shutil.rmtree(self.folder / "run", ignore_errors=True)
            return record
        if code:
            return self._write(plan, {"state": "failed", "error": without_paths(plan, _why(self.folder, code)), "seconds": spent})
        _gather(plan, self.cell)
        found = facts(plan, self.cell)
        seconds = {"seconds": sum(found["seconds"].values()), "peak_memory_mib": found.get("peak_memory_mib")}
        record = self._write(plan, {"state": "finished"} | seconds)
        if not plan.keep:
            shutil.rmtree(self.folder / "run", ignore_errors=True)
        return record

    def _write(self, plan: Plan, what: dict[str, Any]) -> dict[str, Any]:
        return _write(plan, self.cell, what | {"fingerprint": self.fingerprint})


def _start_what_can(plan: Plan, waiting: list[Cell], going: list[_Job], needs: dict[Path, set[Path]], lock: int) -> None:
    """Start cells until all places are taken; what is done already, or was stopped, is taken off the list."""
    for cell in list(waiting):
        if len(going) >= plan.jobs:
            return
        if needs.get(cell.place, set()) & {other.place for other in (*waiting, *(job.cell for job in going))}:
            continue
        waiting.remove(cell)
        ready = settled(plan, cell) if cell.trial is None else cell
        record = read(plan, ready)
        if record["state"] in DONE:
            if not plan.keep:
                shutil.rmtree(plan.output / ready.place / "run", ignore_errors=True)
        else:
            going.append(_start(plan, ready, record, lock))


def _start(plan: Plan, cell: Cell, record: dict[str, Any], lock: int) -> _Job:
    folder = plan.output / cell.place
    if record["state"] == "to do" and folder.exists():
        shutil.rmtree(folder)
    # what is gone on with has its data in its run folder: they are those it was begun with
    data = record.get("fingerprint") if (folder / "run").exists() else fingerprint_of(plan, cell)
    _write(plan, cell, {"state": "begun", "fingerprint": data})
    with atomic(folder / "command.txt") as temporary:
        temporary.write_text(command(cell) + "\n", encoding="utf-8")
    before = 0.0
    with suppress(OSError, ValueError):
        before = sum(json.loads((folder / "run" / CHECKPOINT / "seconds.json").read_text(encoding="utf-8")).values())
    run = folder / "run"
    # an interrupted fit has all that it was given, and `read` has compared it: the data folder may have another name by now
    begun = any((run / name).exists() for name in ("manifest.json", f"{CHECKPOINT}/run.json"))
    given = ["fit", "-o", str(run)] if begun else cell.arguments(str(plan.data[cell.data].path), str(run))
    arguments = [sys.executable, "-m", "asymrec", *given, "--resume"]
    one = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"} if plan.jobs > 1 else {}
    with open(folder / "stderr.txt", "w", encoding="utf-8") as told:
        # the lock goes along: a fit that outlives a killed bench keeps another bench from starting it twice
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": told}
        process = subprocess.Popen(arguments, **pipes, env=os.environ | one, pass_fds=(lock,) if lock else ())
    return _Job(cell, folder, process, data, before)


def _gather(plan: Plan, cell: Cell) -> None:
    """Copy what is kept out of the finished run. What is done twice, after a kill, is done alike."""
    folder = plan.output / cell.place
    run = folder / "run"
    with atomic(folder / "ranks") as temporary:
        temporary.mkdir()
        shutil.copyfile(run / "ranks" / f"{cell.entry.model}.parquet", temporary / f"{cell.entry.model}.parquet")
    for name in KEPT:
        with atomic(folder / name) as temporary:
            shutil.copyfile(run / name, temporary)


def _write(plan: Plan, cell: Cell, what: dict[str, Any]) -> dict[str, Any]:
    about = {"data": cell.data, "protocol": cell.protocol, "name": cell.entry.name, "model": cell.entry.model, "preset": cell.entry.preset}
    about |= {"seed": cell.seed, "trial": cell.trial, "settings": cell.settings, "tuned": cell.tuned, "command": command(cell)}
    with atomic(plan.output / cell.place / "cell.json") as temporary:
        temporary.write_text(json.dumps(about | what, indent=1), encoding="utf-8")
    return about | what


def _why(folder: Path, code: int) -> str:
    """The last line of an error that a process has left."""
    lines = [line.strip() for line in (folder / "stderr.txt").read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    said = [line for line in lines if line.startswith("error: ")] or lines or [f"exit code {code}"]
    return re.sub(r"^error: ", "", said[-1])


def _line(cell: Cell, record: dict[str, Any], plan: Plan) -> str:
    if record["state"] != "finished":
        return f"{cell}: {record['state']}: {record['error']}"
    found = facts(plan, cell)["metrics"][cell.entry.model]
    part = "NDCG@10" if cell.trial is None else "validation NDCG@10"
    figures = f"{part} {found['kept']['ndcg@10']:.4f} history kept, {found['removed']['ndcg@10']:.4f} removed"
    memory = f", {record['peak_memory_mib']:,} MiB" if record.get("peak_memory_mib") else ""
    return f"{cell}: {figures}; {record['seconds']:,.0f} s{memory}"


@contextmanager
def alone(folder: Path) -> Iterator[int]:
    """One bench at a time on an output; yields the descriptor that holds the lock, 0 where the system has none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror}") from None
    try:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another bench, or a fit that one began, is still at work in {folder}") from None
        except (ImportError, OSError):  # Windows, or a file system without locks
            yield 0
            return
        yield handle
    finally:
        os.close(handle)


@contextmanager
def _terminated() -> Iterator[None]:
    """A SIGTERM ends like Ctrl-C, so that the fits end with it."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
