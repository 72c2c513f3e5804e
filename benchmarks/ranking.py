"""Rankers side by side: AUC, GAUC, log loss, calibration, weights and time, on one data folder and the same impressions.

    python benchmarks/ranking.py DATA --out FILE                          # every ranker, one seed
    python benchmarks/ranking.py DATA --models dcnv2,tokenformer --seeds 0,1,2 --set epochs=10 --out FILE
    python benchmarks/ranking.py DATA --protocol frappe --out FILE        # 7:2:1 of rows, two even negatives, no history: as NFM
    python benchmarks/ranking.py --speed --out FILE                       # step time of 2F2S and 4F, 500 candidates for one user

The interval is of the AUC's difference to the plain Transformer of the same seed: paired bootstrap over users.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from asymrec.config import parse_settings
from asymrec.data import Dataset
from asymrec.machine import facts
from asymrec.ranking import RANKERS, ExamplesConfig, Impressions, Schema, Tables, make
from asymrec.ranking.metrics import compare, measure

MODELS = "transformer,tokenformer,nlir,bfts,sliding,linear,deepfm,dcnv2,din"  # what others are compared with first
PROTOCOLS: dict[str, dict[str, Any]] = {
    "user": {},
    "frappe": {"split_by": "random", "validation_share": 0.2, "test_share": 0.1, "negatives": 2, "power": 0.0, "avoid": "user"},
}


def table(arguments: argparse.Namespace) -> dict[str, Any]:
    tables = Tables.read(arguments.data)
    schema = Schema.infer(tables)
    if arguments.protocol == "frappe":
        schema = schema.model_copy(update={"history": schema.history.model_copy(update={"length": 0})})
    parts = make(tables, schema, ExamplesConfig(**PROTOCOLS[arguments.protocol]))
    labels, users = parts.test.labels[:, 0], parts.test.users
    settings, rows, predicted = parse_settings(arguments.set), [], {}
    for seed in map(int, arguments.seeds.split(",")):
        for name in arguments.models.split(","):
            start = time.process_time()
            ranker = RANKERS[name](schema, seed=seed, **settings).fit(parts.train, parts.validation)
            seconds = time.process_time() - start
            predicted[name, seed] = ranker.predict(parts.test)
            row = {
                **{"model": name, "seed": seed, "epochs": len(ranker.log), "best": max(entry["auc"] for entry in ranker.log)},
                **measure(labels, predicted[name, seed], users),
                **{"parameters": sum(p.numel() for p in ranker.network.parameters()), "cpu_seconds": seconds},
            }
            if name != "transformer" and ("transformer", seed) in predicted:
                found = compare(labels, predicted[name, seed], predicted["transformer", seed], users)
                row["over_transformer"] = [found.difference, found.low, found.high]
            rows.append(row)
            print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    return {"data": Path(arguments.data).name, "protocol": arguments.protocol, "schema": schema.model_dump(mode="json"), "rows": rows}


def made(users: int, length: int, items: int = 2000) -> tuple[Tables, Schema]:
    """Tables of chance: users with histories of one length."""
    import pyarrow as pa

    random = np.random.default_rng(0)
    interactions = pa.table(
        {
            "user_id": np.repeat(np.arange(users), length),
            "item_id": random.integers(items, size=users * length),
            "timestamp": np.tile(np.arange(length), users) + 1_000_000,
            "rating": random.integers(1, 6, users * length),
        }
    )
    about = pa.table({"item_id": np.arange(items), "genre": random.integers(20, size=items)})
    tables = Tables(Dataset.read(interactions, about))
    schema = Schema.infer(tables)
    return tables, schema.model_copy(update={"history": schema.history.model_copy(update={"length": 200})})


def speed() -> dict[str, Any]:
    """Seconds of a training step at history 200, 64 streams of one target, turn by turn; and of 500 candidates."""
    tables, schema = made(64, 201)
    parts = make(tables, schema)
    last = np.flatnonzero(np.r_[np.diff(tables.dataset.sequences.owners) != 0, True])
    every = Impressions(
        tables,
        np.arange(64, dtype=np.int32),
        tables.dataset.sequences.items[last],
        tables.dataset.sequences.offsets[:-1],
        last,
        labels=np.tile(np.float32([[0], [1]]), (32, 1)),
    )
    shapes = {"4F": {"full": 4, "windows": ()}, "2F2S": {}, "3F1S": {"full": 3, "windows": (16,)}}
    rankers = {
        name: RANKERS["tokenformer"](schema, epochs=1, **shape).fit(parts.train.take(np.arange(512)), parts.validation)
        for name, shape in shapes.items()
    }
    from asymrec.ranking.batches import collate, streams

    found = streams(every, np.zeros(64, np.int64), 1, 0)
    times: dict[str, list[float]] = {name: [] for name in shapes}
    for _ in range(12):
        for name, ranker in rankers.items():
            ranker.network.train()
            batch = collate(every, found, np.arange(64), 200, ranker._actions(every), {})
            start = time.process_time()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(ranker.network(batch), batch.labels)
            loss.backward()
            times[name].append(time.process_time() - start)
    steps = {name: median(values[2:]) for name, values in times.items()}
    candidates = Impressions.of(tables, np.array([0]), [np.random.default_rng(1).permutation(2000)[:500]])
    served = {}
    for share in (True, False):
        values = []
        for _ in range(30 if share else 3):
            start = time.perf_counter()
            rankers["2F2S"].predict(candidates, share=share)
            values.append(time.perf_counter() - start)
        served["shared" if share else "separate rows"] = median(values)
    return {"step_cpu_seconds": steps, "saved_by_2F2S": 1 - steps["2F2S"] / steps["4F"], "500_candidates_p50_seconds": served}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", help="data folder")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="user")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON log")
    arguments = parser.parse_args()
    found = (speed() if arguments.speed else table(arguments)) | {"settings": arguments.set, "machine": facts()}
    print(json.dumps(found if arguments.speed else found["rows"], indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
