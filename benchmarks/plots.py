"""Pictures from a benchmark's committed logs: what of each model's ranking is rare items, how much of the catalogue it recommends, and
how many dimensions its item representations fill.

    pip install -e '.[benchmarks]'
    asymrec bench PLAN --export benchmarks/logs/NAME
    python benchmarks/plots.py benchmarks/logs/NAME --out docs/images

For every data set and protocol, means over the seeds that are there, history kept:
`frequency`: NDCG@10 by how often the target is in training (0-2, 3-5, 6-10, 11-20, 21 and more interactions);
`coverage`: the share of the catalogue in the lists of ten, all users together;
`rank`: the effective rank (exponential of the entropy of the normalised singular values) of the vectors that items are scored with,
of models that have such.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "plots"
from matplotlib import pyplot  # noqa: E402

Runs = dict[str, list[dict]]  # model -> its cells, a seed each


def read(folder: Path) -> dict[tuple[str, str], Runs]:
    """(data set, protocol) -> the finished cells of each model."""
    found: dict[tuple[str, str], Runs] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("cells/*.json")):
        cell = json.loads(path.read_text())
        if cell["state"] == "finished" and cell["trial"] is None:
            found[cell["data"], cell["protocol"]][cell["name"]].append(cell)
    return found


def mean(cells: list[dict], figure: Callable[[dict], float | None]) -> float | None:
    values = [figure(cell) for cell in cells]
    return None if any(value is None for value in values) else float(np.mean(values))


def frequency(runs: Runs, axes: pyplot.Axes) -> None:
    bins = {at: part for at, part in next(iter(runs.values()))[0]["metrics"]["slices"]["frequency"].items() if part["users"]}
    for name, cells in by_quality(runs):
        axes.plot(
            range(len(bins)),
            [mean(cells, lambda cell, at=at: cell["metrics"]["slices"]["frequency"][at]["kept"]["ndcg@10"]) for at in bins],
            marker="o", label=name,
        )  # fmt: skip
    axes.set_xticks(range(len(bins)), [f"{at}\n{part['users']:,} users" for at, part in bins.items()])
    axes.set(xlabel="interactions of the target in training", ylabel="NDCG@10, history kept")
    axes.legend(fontsize=8)


def coverage(runs: Runs, axes: pyplot.Axes) -> None:
    bars(axes, [(name, mean(cells, lambda cell: cell["metrics"]["kept"]["coverage@10"])) for name, cells in by_quality(runs)])
    axes.set(xlabel="share of the catalogue in the lists of ten", xlim=(0, 1))


def rank(runs: Runs, axes: pyplot.Axes) -> None:
    bars(axes, [(name, mean(cells, lambda cell: cell["metrics"].get("effective_rank"))) for name, cells in by_quality(runs)])
    axes.set(xlabel="effective rank of the items' vectors")


def bars(axes: pyplot.Axes, values: list[tuple[str, float | None]]) -> None:
    shown = [(name, value) for name, value in values if value is not None][::-1]
    axes.bar_label(axes.barh([name for name, _ in shown], [value for _, value in shown]), fmt="%.3g", padding=3)


def by_quality(runs: Runs) -> list[tuple[str, list[dict]]]:
    return sorted(runs.items(), key=lambda item: -mean(item[1], lambda cell: cell["metrics"]["kept"]["ndcg@10"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logs", type=Path, help="folder that `asymrec bench --export` made")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    arguments = parser.parse_args()
    found = read(arguments.logs)
    if not found:
        print(f"{arguments.logs} holds no finished cells", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    for (data, protocol), runs in found.items():
        for draw in (frequency, coverage, rank):
            figure, axes = pyplot.subplots(figsize=(7, 4))
            draw(runs, axes)
            axes.grid(alpha=0.3)
            axes.set_title(f"{data}, {protocol}", fontsize=10)
            path = arguments.out / f"{data}_{protocol}_{draw.__name__}.svg"
            figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
            pyplot.close(figure)
            print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
