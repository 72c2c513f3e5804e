"""Rankers side by side: AUC, GAUC, log loss, calibration, weights and time, on one data folder and the same impressions.

    python benchmarks/ranking.py DATA --out FILE                          # every ranker, one seed
    python benchmarks/ranking.py DATA --models dcnv2,tokenformer --seeds 0,1,2 --set epochs=10 --out FILE
    python benchmarks/ranking.py DATA --seeds 0,1,2 --work FOLDER --out FILE   # what is finished in FOLDER is not fitted again
    python benchmarks/ranking.py DATA --protocol frappe --out FILE        # 7:2:1 of rows, two even negatives, no history: as NFM
    python benchmarks/ranking.py DATA --spectra PICTURE.svg --models transformer,tokenformer,nlir,bfts --out FILE
    python benchmarks/ranking.py FILE --spectra PICTURE.svg               # the same picture from its log
    python benchmarks/ranking.py --speed --out FILE                       # step time of 2F2S and 4F, 500 candidates for one user

    python benchmarks/ranking.py DATA --match --tune learning_rate=0.001,0.002 --tune dropout=0.1,0.3 --seeds 0,1,2 --out FILE
    python benchmarks/ranking.py DATA --models transformer,tokenformer,tokenformer+codes --codes RUN --out FILE

Every ranker is tried with the same values (`--tune`), at the first seed, and the best on validation is fitted with all seeds; the test is
measured for that one alone. `--match`: rivals get the widths with which they have about as many weights as the transformer.
The interval is of the AUC's difference to the plain Transformer, of the same seed and of the means over seeds: paired bootstrap over
users. Epochs end where validation AUC no longer rises.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import time
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from asymrec.config import parse_settings
from asymrec.data import Dataset
from asymrec.machine import facts
from asymrec.ranking import RANKERS, ExamplesConfig, Impressions, Schema, Tables, make
from asymrec.ranking.asked import tables_with_codes, with_code_field
from asymrec.ranking.metrics import compare, measure
from asymrec.ranking.spectra import KINDS, spectra

MODELS = "transformer,tokenformer,nlir,bfts,sliding,hstu,onetrans,linear,deepfm,dcnv2,din"  # what others are compared with first
PROTOCOLS: dict[str, dict[str, Any]] = {
    "user": {},
    "frappe": {"split_by": "random", "validation_share": 0.2, "test_share": 0.1, "negatives": 2, "power": 0.0, "avoid": "user"},
}
WITH_CODES = "+codes"  # after a model's name: it reads the items' codes as well


def table(arguments: argparse.Namespace) -> dict[str, Any]:
    tables = Tables.read(arguments.data)
    schema = Schema.infer(tables)
    if arguments.protocol == "frappe":
        schema = schema.model_copy(update={"history": schema.history.model_copy(update={"length": 0})})
    if arguments.codes:
        tables, _ = tables_with_codes(tables, arguments.codes)
    parts = make(tables, schema, ExamplesConfig(**PROTOCOLS[arguments.protocol] | parse_settings(arguments.examples)))
    labels, users = parts.test.labels[:, 0], parts.test.users
    settings, rows, predicted, trials = parse_settings(arguments.set), [], {}, {}
    grid = [parse_settings(given) for given in product(*([f"{key}={value}" for value in values] for key, values in arguments.tune))]
    seeds, names = [int(seed) for seed in arguments.seeds.split(",")], arguments.models.split(",")
    chosen: dict[str, dict[str, Any]] = {}
    first: dict[str, tuple[dict[str, Any], np.ndarray]] = {}
    made_of = {"data": arguments.data.name, "protocol": arguments.protocol, "examples": arguments.examples, "codes": str(arguments.codes)}
    schemas = {name: with_code_field(schema) if name.endswith(WITH_CODES) else schema for name in names}
    wanted = weights("transformer", schema, settings, parts) if arguments.match else 0
    for name in names:
        size = matched(name, schemas[name], settings, parts, wanted) if arguments.match else {}
        tried = [fitted(name, seeds[0], schemas[name], settings | size | each, parts, made_of, arguments.work) for each in grid]
        best = max(range(len(grid)), key=lambda at: tried[at][0]["best"])  # by validation alone
        trials[name] = [each | {"validation_auc": row["best"]} for each, (row, _) in zip(grid, tried)]
        chosen[name], first[name] = settings | size | grid[best], tried[best]
    for seed in seeds:
        for name in names:
            known = seed == seeds[0]
            again = first[name] if known else fitted(name, seed, schemas[name], chosen[name], parts, made_of, arguments.work)
            row, predicted[name, seed] = again
            row = row | measure(labels, predicted[name, seed], users)
            if name != "transformer" and ("transformer", seed) in predicted:
                found = compare(labels, predicted[name, seed], predicted["transformer", seed], users)
                row["over_transformer"] = [found.difference, found.low, found.high]
            rows.append(row)
            print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    means = [over_seeds(name, seeds, rows, predicted, labels, users) for name in names]
    about = {"data": Path(arguments.data).name, "protocol": arguments.protocol, "schema": schema.model_dump(mode="json")}
    about |= {"examples": arguments.examples, "chosen": chosen, "trials": trials}
    return about | {"impressions": [len(part) for part in vars(parts).values()], "rows": rows, "means": means}


def matched(name: str, schema: Schema, settings: dict, parts: Any, wanted: int) -> dict[str, Any]:
    """The settings with which a rival has nearest so many weights, the plain Transformer's; the family of token models has them as it is,
    and so has logistic regression, whose weights are its values'."""
    kind = name.removesuffix(WITH_CODES)
    knobs: dict[str, list[dict[str, Any]]] = {"onetrans": [{"width": 8 * n, "ffn": 16 * n} for n in range(2, 9)]}
    for field_model in ("deepfm", "dcnv2", "din"):
        knobs[field_model] = [{"hidden": [4 * n, 2 * n, n]} for n in range(16, 257, 8)]
    if kind not in knobs:
        return {}
    return min(knobs[kind], key=lambda knob: abs(weights(kind, schema, settings | knob, parts) - wanted))


def weights(kind: str, schema: Schema, settings: dict, parts: Any) -> int:
    """How many a ranker would have, fitted on these impressions."""
    return RANKERS[kind](schema, **settings).weights(parts.train)


def fitted(
    name: str, seed: int, schema: Schema, settings: dict, parts: Any, made_of: dict, work: Path | None
) -> tuple[dict[str, Any], np.ndarray]:
    """What a fit was like, and its predictions of the test; from `work`, where an earlier run of the same left them. made_of: where the
    impressions are from."""
    asked = made_of | {"name": name, "seed": seed, "settings": settings, "schema": schema.model_dump(mode="json")}
    asked["impressions"] = [len(part) for part in vars(parts).values()]
    kept = work and work / f"{name}-{seed}-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]}.json"
    if kept and kept.exists():
        return json.loads(kept.read_text(encoding="utf-8")), np.load(kept.with_suffix(".npy"), allow_pickle=False)
    start = time.process_time()
    ranker = RANKERS[name.removesuffix(WITH_CODES)](schema, seed=seed, **settings).fit(parts.train, parts.validation)
    seconds, predicted = time.process_time() - start, ranker.predict(parts.test)
    row = {
        **{"model": name, "seed": seed, "epochs": len(ranker.log), "best": max(entry["auc"] for entry in ranker.log)},
        **{"parameters": sum(p.numel() for p in ranker.network.parameters()), "cpu_seconds": seconds},
    }
    print(f"{name} seed {seed} {settings}: validation AUC {row['best']:.4f}, {row['epochs']} epochs, {seconds:.0f} s", flush=True)
    if kept:
        work.mkdir(parents=True, exist_ok=True)
        np.save(kept.with_suffix(".npy"), predicted)
        kept.write_text(json.dumps(row), encoding="utf-8")
    return row, predicted


def over_seeds(name: str, seeds: list[int], rows: list[dict], predicted: dict, labels: np.ndarray, users: np.ndarray) -> dict[str, Any]:
    own = [row for row in rows if row["model"] == name]
    mean = {key: float(np.mean([row[key] for row in own])) for key in ("auc", "gauc", "log_loss", "cpu_seconds")}
    aucs = [row["auc"] for row in own]
    found = {"model": name, "seeds": len(own), **mean, "auc_least": min(aucs), "auc_most": max(aucs)}
    if name != "transformer" and all(("transformer", seed) in predicted for seed in seeds):
        sides = (np.stack([predicted[each, seed] for seed in seeds]) for each in (name, "transformer"))
        difference = compare(labels, *sides, users)
        found["over_transformer"] = [difference.difference, difference.low, difference.high]
    return found


def shown(log: dict[str, Any]) -> str:
    """A log's means as the table of docs/models/tokenformer.md."""
    sizes = {row["model"]: row["parameters"] for row in log["rows"]}
    lines = ["| | AUC | least, most | over `transformer` | GAUC | log loss | weights | CPU s |", "|---|---:|---|---|---:|---:|---:|---:|"]
    for one in log["means"]:
        over = "{:+.4f} ({:+.4f} .. {:+.4f})".format(*one["over_transformer"]) if "over_transformer" in one else ""
        spread = f"{one['auc_least']:.4f}, {one['auc_most']:.4f}" if one["seeds"] > 1 else ""
        figures = f"{one['gauc']:.4f} | {one['log_loss']:.4f} | {sizes[one['model']]:,} | {one['cpu_seconds']:.0f}"
        lines.append(f"| `{one['model']}` | {one['auc']:.4f} | {spread} | {over} | {figures} |")
    return "\n".join(lines)


def measured_spectra(arguments: argparse.Namespace) -> dict[str, Any]:
    """Effective rank and singular values by layer and kind of token, of each model."""
    tables = Tables.read(arguments.data)
    schema = Schema.infer(tables)
    parts = make(tables, schema, ExamplesConfig())
    some = parts.validation.take(np.arange(0, len(parts.validation), max(1, len(parts.validation) // 4000)))
    rows, seed = {}, int(arguments.seeds.split(",")[0])
    for name in arguments.models.split(","):
        ranker = RANKERS[name](schema, seed=seed, **parse_settings(arguments.set)).fit(parts.train, parts.validation)
        rows[name] = [
            {"layer": one.layer, "kind": one.kind, "tokens": one.tokens, "effective_rank": one.effective_rank,
             "singular_values": [round(float(value), 6) for value in one.singular_values]}
            for one in spectra(ranker, some)
        ]  # fmt: skip
        print(name, [(row["layer"], row["kind"], row["tokens"], round(row["effective_rank"], 2)) for row in rows[name]], flush=True)
    return {"data": Path(arguments.data).name, "impressions": len(some), "rows": rows}


def draw_spectra(log: dict[str, Any], path: Path) -> None:
    """Above, effective rank by layer, a panel for each kind of token; below, how a kind's singular values fall, the darker the later."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "ranking"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(KINDS), figsize=(11, 6.4), layout="constrained")
    last = max(row["layer"] for rows in log["rows"].values() for row in rows)
    for number, (name, rows) in enumerate(log["rows"].items()):
        for kind, above, below in zip(KINDS, *axes):
            own = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["layer"])
            above.plot([row["layer"] for row in own], [row["effective_rank"] for row in own], marker="o", color=f"C{number}", label=name)
            for row in own:
                values = np.maximum(row["singular_values"], 1e-3)
                below.semilogy(np.arange(1, len(values) + 1), values, color=f"C{number}", alpha=0.2 + 0.8 * row["layer"] / last, lw=1)
    for kind, above, below in zip(KINDS, *axes):
        above.set(xlabel="layer (0: what enters the first)", title=f"effective rank, {kind}", xlim=(-0.3, last + 0.3))
        below.set(xlabel="number", title=f"singular values, {kind}")
    axes[0][0].legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})


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


def grid_of(text: str) -> tuple[str, list[str]]:
    key, _, values = text.partition("=")
    return key, re.split(r",(?![^[]*])", values)  # not at commas of a list


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", help="data folder")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="user")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of every ranker")
    parser.add_argument("--examples", action="append", default=[], metavar="KEY=VALUE", help="how impressions are made")
    parser.add_argument("--tune", action="append", default=[], metavar="KEY=A,B", type=grid_of, help="try all of these, the same for each")
    parser.add_argument("--match", action="store_true", help="make rivals about as large as the transformer")
    parser.add_argument("--codes", type=Path, metavar="RUN", help="whose items' codes the models named NAME+codes read as well")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--spectra", type=Path, help="draw the spectra of these token models into this .svg")
    parser.add_argument("--work", type=Path, help="folder that keeps what is finished")
    parser.add_argument("--out", type=Path, help="JSON log")
    parser.add_argument("--show", type=Path, metavar="LOG", help="only print a log's table")
    arguments = parser.parse_args()
    if arguments.show:
        print(shown(json.loads(arguments.show.read_text(encoding="utf-8"))))
        return
    if arguments.spectra and arguments.data.is_file():
        draw_spectra(json.loads(arguments.data.read_text(encoding="utf-8")), arguments.spectra)
        return
    found = speed() if arguments.speed else measured_spectra(arguments) if arguments.spectra else table(arguments)
    if arguments.spectra:
        draw_spectra(found, arguments.spectra)
    found = found | {"settings": arguments.set, "machine": facts()}
    if not arguments.spectra:
        print(json.dumps(found if arguments.speed else found["rows"], indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
