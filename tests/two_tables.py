"""Two small tables, and how tests of reading write and read them."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

from asymrec.data import Dataset

ITEMS = {"item_id": [10, 20, 30], "title": ["ten", "twenty", "thirty"]}
CLICKS = {"user_id": [2, 1, 2, 1, 2], "item_id": [30, 10, 10, 20, 20], "timestamp": [50, 10, 30, 5, 40]}


def read(clicks=CLICKS, items=ITEMS, **options):
    return Dataset.read(pa.table(clicks), pa.table(items), **options)


def sequences(dataset):
    """user id -> item ids, as the caller knows them."""
    ids = dataset.item_ids.to_pylist()
    return {user: [ids[row] for row in dataset.sequences[i]] for i, user in enumerate(dataset.user_ids.to_pylist())}


def without(table, *names):
    return {name: values for name, values in table.items() if name not in names}


def write(folder, suffix, clicks=CLICKS, items=ITEMS):
    folder.mkdir(exist_ok=True)
    for name, table in (("interactions", clicks), ("items", items)):
        path = folder / f"{name}{suffix}"
        frame = pd.DataFrame(table)
        if suffix == ".parquet":
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False, sep="\t" if "tsv" in suffix else ",")
    return folder
