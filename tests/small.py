"""A small data set with something to learn in it, settings for a quick fit, and the command line as a process of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import warnings
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import load_file, save_file

from asymrec.files import checksum

SOURCE = Path(__file__).parents[1] / "src"
SETTINGS = {
    **{"text": [], "views": ["vector"], "facets": 4, "levels": 2, "codewords": 16, "quantizer_epochs": 1},
    **{"width": 16, "layers": 1, "heads": 2, "ffn": 32, "experts": 2, "history": 20, "epochs": 2, "batch": 512, "dropout": 0.1},
    "precision": "bfloat16",  # named, for what `auto` chooses is measured
}
WORDS = ("red", "blue", "green", "gold", "small", "large", "wool", "silk", "glass", "steel")


def tables(users: int = 200, items: int = 120, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """Interactions and items: a user walks along a circle, and an item's vector is its place there. Ids are integers from 100."""
    random = np.random.default_rng(seed)
    who, what, when = [], [], []
    for user in range(users):
        length = int(random.integers(4, 15))
        steps = (int(random.integers(items)) + np.cumsum(random.integers(1, 4, length))) % items
        who += [user + 1] * length
        what += (steps + 100).tolist()
        when += (1_000_000 + np.arange(length) * 60).tolist()
    order = random.permutation(len(who))
    interactions = pa.table({"user_id": np.array(who)[order], "item_id": np.array(what)[order], "timestamp": np.array(when)[order]})
    titles = [f"{WORDS[row % 10]} {WORDS[row // 12 % 10]} thing {row}" for row in range(items)]
    turns = 2 * np.pi * np.arange(items)[:, None] / items * np.arange(1, 9)
    vectors = np.concatenate([np.cos(turns), np.sin(turns)], axis=1).astype(np.float32)
    return interactions, pa.table({"item_id": np.arange(items) + 100, "title": titles, "vector": list(vectors)})


def held_out(interactions: pa.Table) -> np.ndarray:
    """bool, which interactions are each user's last two: the targets of validation and test in leave-last-out."""
    users, times = interactions["user_id"].to_numpy(), interactions["timestamp"].to_numpy()
    last = {user: np.sort(times[users == user])[-2] for user in np.unique(users)}
    return np.array([time >= last[user] for user, time in zip(users, times)])


def write(folder: Path, interactions: pa.Table, items: pa.Table) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(interactions, folder / "interactions.parquet")
    pq.write_table(items, folder / "items.parquet")
    return folder


def settings(**more: object) -> list[str]:
    """The settings of a quick fit as `--set` options."""
    return [part for name, value in (SETTINGS | more).items() for part in ("--set", f"{name}={json.dumps(value)}")]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


COMMAND = "from asymrec.cli import main; main()"
PARENT = """
import json, os, signal, sys
import asymrec.cli, asymrec.models, asymrec.runs
for line in sys.stdin:
    program, arguments, folder, *files = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(300)
        for number, file in enumerate((os.devnull, *files)):
            os.dup2(os.open(file, os.O_RDWR), number)
        os.chdir(folder)
        sys.argv = ["asymrec", *arguments]
        exec(program, {"__name__": "__main__"})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@cache
def _parent() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())


def forked(program: str, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program as a process of its own, born of one that has the library loaded: to load it takes longer than most fits here."""
    given, parent = list(map(str, arguments)), _parent()
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        print(json.dumps([program, given, str(cwd or Path.cwd()), out.name, err.name]), file=parent.stdin, flush=True)
        return subprocess.CompletedProcess(given, int(parent.stdout.readline()), out.read(), err.read())


def asymrec(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `asymrec ...` as a process of its own."""
    return forked(COMMAND, *arguments, cwd=cwd)


def here(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The same inside this process, where starting one would only take time."""
    from asymrec.cli import app

    out, err, code, place = io.StringIO(), io.StringIO(), 0, Path.cwd()
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        try:
            os.chdir(cwd or place)
            app(list(map(str, arguments)), prog_name="asymrec")
        except SystemExit as end:
            code = end.code or 0
        finally:
            os.chdir(place)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def contents(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def may_follow(model, logits, prefix):
    """TIGER's logits [K] of the next code after a prefix: -inf where no item has that code, if the model's softmax knows."""
    if not model.recipe.network.tree_softmax:
        return logits
    known = {one[len(prefix)] for one in model.network.codes.tolist() if one[: len(prefix)] == list(prefix)}
    return torch.where(torch.tensor([word in known for word in range(len(logits))]), logits, -torch.inf)


def as_of_before(run: Path, setting: str, tensor: str | None = None) -> None:
    """Take a line of its settings, and a tensor, out of a saved run, as if it had been fitted before there was such a setting."""
    config, manifest = run / "config.yaml", json.loads((run / "manifest.json").read_text())
    kept = config.read_text()
    assert f"  {setting}\n" in kept
    config.write_text(kept.replace(f"  {setting}\n", ""))
    if tensor:
        weights = run / "model.safetensors"
        tensors = load_file(weights)
        del tensors[tensor]
        save_file(tensors, weights)
        manifest["files"][weights.name] = checksum(weights)
    manifest["files"]["config.yaml"] = checksum(config)
    (run / "manifest.json").write_text(json.dumps(manifest))
