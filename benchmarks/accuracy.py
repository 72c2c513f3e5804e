"""Test figures of AsymRec on a data folder: one command a row, from the two tables to metrics, every row's log kept.

    python benchmarks/accuracy.py DATA default                    # AsymRec that reads vectors alone, three seeds
    python benchmarks/accuracy.py DATA heads mix no-repeat --seeds 0
    python benchmarks/accuracy.py --table                         # the table of all committed logs, in Markdown

Each row is `asymrec fit DATA -o RUN` with the settings named in ROWS in a process of its own, with no cached item vectors, timed as a
whole. What it chose by validation it measures on the test once. Logs: benchmarks/logs/accuracy_DATA_ROW_SEED.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LOGS = Path(__file__).parent / "logs"
# what the default was when the committed rows were made
BASE = {"read": "vectors", "codeword_map": False, "code_rate": 1.0, "popularity_codes": False, "time_codes": False, "epochs": 13}
ROWS = {
    "default": {},
    "heads": {"objective": "heads", "temperature": 0.03, "learning_rate": 3e-3, "epochs": 30, "patience": 30},
    "mix": {"mix": 0.2},
    "no-repeat": {"repeat": False},
    "whitened": {"whiten": True},
}


def run(data: Path, row: str, seed: int, extra: list[str]) -> Path:
    settings = BASE | ROWS[row] | {"seed": seed}
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    options += [part for pair in extra for part in ("--set", pair)]
    with tempfile.TemporaryDirectory(prefix="asymrec-") as folder:
        environment = os.environ | {"ASYMREC_CACHE": f"{folder}/cache"}
        if row != "default":
            environment = os.environ  # only the published row pays for the encoder again
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "asymrec", "fit", str(data), "-o", f"{folder}/run", *options], check=True, env=environment)
        wall = time.perf_counter() - began
        facts = json.loads(Path(folder, "run", "metrics.json").read_text())
        curve = [json.loads(line) for line in Path(folder, "run", "log.jsonl").read_text().splitlines()]
    log = {"row": row, "seed": seed, "settings": settings, "extra": extra, "wall_seconds": wall, "facts": facts, "curve": curve}
    path = LOGS / f"accuracy_{data.name}_{row}_{seed}.json"
    path.write_text(json.dumps(log, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def table() -> str:
    """Every committed log as a row; figures of the test, the history kept in the ranking and removed from it."""
    heads = ["data", "row", "seed", "epochs", "validation N@10", "R@10", "N@10", "R@10 removed", "N@10 removed", "minutes", "peak GB"]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    baselines: dict[tuple[str, str], list[str]] = {}
    for path in sorted(LOGS.glob("accuracy_*.json")):
        log = json.loads(path.read_text(encoding="utf-8"))
        facts, curve = log["facts"], log["curve"]
        data = facts["dataset"]["name"]
        best = max(entry["ndcg@10"] for entry in curve)
        figures = _figures(facts["metrics"]["asymrec"])
        spent = [f"{log['wall_seconds'] / 60:.1f}", f"{facts['peak_memory_mib'] / 1024:.1f}"]
        lines.append("| " + " | ".join([data, log["row"], str(log["seed"]), str(len(curve)), _short(best), *figures, *spent]) + " |")
        for name in ("itemknn", "popularity"):
            baselines[data, name] = [data, name, "", "", "", *_figures(facts["metrics"][name]), "", ""]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in baselines.values())])


def _figures(metrics: dict) -> list[str]:
    return [_short(metrics[history][metric]) for history in ("kept", "removed") for metric in ("recall@10", "ndcg@10")]


def _short(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", help="data folder")
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for all rows; kept in the log")
    parser.add_argument("--table", action="store_true", help="print the table of all logs and stop")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    unknown = [row for row in arguments.rows if row not in ROWS]
    if arguments.data is None or not arguments.rows or unknown:
        parser.error(f"give a data folder and rows of {', '.join(ROWS)}" + (f"; unknown: {unknown[0]}" if unknown else ""))
    for seed in arguments.seeds:
        for row in arguments.rows:
            print(f"{row}, seed {seed}: {run(arguments.data.resolve(), row, seed, arguments.set)}", flush=True)


if __name__ == "__main__":
    main()
