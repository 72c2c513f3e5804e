"""How much of the order of interactions is no order in time: ties of a data folder, and whether the file sorts them by id.

    python benchmarks/ties.py DATA                                # prints the figures of one folder
    python benchmarks/ties.py DATA DATA ... --out FILE            # and keeps them all

Counted are neighbouring interactions of one user in the order that `Dataset.read` gives, both with a known time. Ids ascend by the
item table's column `asin` where it has one (the ids of Amazon's files), else by the item id.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from asymrec.data import Dataset
from asymrec.data.columns import find_column
from asymrec.data.tables import find_table, read_table

KNOWN = "time is known"
SHOWN = {
    "tied pairs": "neighbours at the same time",
    "tied tests": "users whose test item is tied to the one before it",
    "ascending pairs": "tied neighbours in ascending id order",
    "untied left out": "users with fewer than three times",
    "untied targets": "targets a test user of `untied`",
}


def measure(folder: Path) -> dict[str, Any]:
    """Shares of 0 .. 1, and the counts that they are taken of."""
    source = read_table(find_table(folder, "interactions"), "interactions")
    time = source.table[find_column(source, "time")]
    table = source.table.append_column(KNOWN, pc.is_valid(time))  # what is filled from a neighbour is no measured tie
    dataset = Dataset.read(table, find_table(folder, "items"))
    sequences = dataset.sequences
    known = dataset.interactions[KNOWN].to_numpy()
    names = dataset.items["asin"] if "asin" in dataset.items.column_names else dataset.item_ids
    rank = pc.rank(names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names, tiebreaker="min").to_numpy()[sequences.items]

    neighbours = np.flatnonzero((sequences.owners[1:] == sequences.owners[:-1]) & known[1:] & known[:-1])
    tied = neighbours[sequences.times[neighbours] == sequences.times[neighbours + 1]]
    last = sequences.offsets[1:][sequences.lengths >= 3] - 1  # the test item of leave-last-out
    last = last[known[last] & known[last - 1]]
    untied = dataset.split("untied")
    return {
        "data": folder.resolve().name,
        "ids": "asin" if "asin" in dataset.items.column_names else "item id",
        "users": dataset.n_users,
        "pairs": len(neighbours),
        "tied pairs": len(tied) / len(neighbours),
        "tests": len(last),
        "tied tests": float((sequences.times[last] == sequences.times[last - 1]).mean()),
        "ascending pairs": float((rank[tied] < rank[tied + 1]).mean()),
        "untied left out": untied.left_out / dataset.n_users,
        "untied targets": len(untied.test.targets.items) / len(untied.test),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="+", help="data folder")
    parser.add_argument("--out", type=Path, help="JSON log")
    arguments = parser.parse_args()
    found = [measure(folder) for folder in arguments.data]
    table = Table("", *(one["data"] for one in found))
    for name, label in SHOWN.items():
        table.add_row(label, *(f"{one[name]:.4f}" for one in found))
    Console().print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
