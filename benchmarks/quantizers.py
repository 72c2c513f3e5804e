"""Quantizers and their settings beside each other on one catalogue's vectors: fidelity, neighbours, collisions, processor seconds.

    python benchmarks/quantizers.py DATA --out FILE                      # DATA/items.parquet, texts embedded by the default encoder
    python benchmarks/quantizers.py DATA --only rqvae                    # one kind: mhq, opq or rqvae
    python benchmarks/quantizers.py DATA --items 1000000 --out FILE      # MHQ's default alone, on so many: DATA's with noise

The seconds are those of fit and of encode, the repair of identical ids included, which the last form has by itself; on one thread by
default. How long the texts took to embed is in the log as well.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from asymrec import machine
from asymrec.config import VectorsConfig
from asymrec.device import choose_precision
from asymrec.errors import AsymrecError
from asymrec.quantize import MHQ, RQVAE, ProductQuantizer
from asymrec.vectors import item_texts, text_vectors

KINDS = {"mhq": MHQ, "opq": ProductQuantizer, "rqvae": RQVAE}
ROWS: list[tuple[str, dict[str, Any]]] = [
    ("mhq", {}),
    *(("mhq", {"quantizer_epochs": epochs}) for epochs in (0, 20)),
    *(("mhq", {"projection": width}) for width in (256, 128, 64)),
    *(("mhq", {"whiten": True, "projection": width}) for width in (None, 256, 128)),
    ("opq", {"opq_rounds": 0}),
    ("opq", {}),
    ("mhq", {"facets": 1, "quantizer_epochs": 0}),  # residual k-means on the vectors as they are, beside RQ-VAE
    ("rqvae", {}),
    ("rqvae", {"seed": 1}),
    ("rqvae", {"rqvae_epochs": 182}),  # twice the steps on Beauty
]
NOISE = 0.02  # of each entry, in units of the vectors' root mean square


def row(kind: str, settings: dict[str, Any], vectors: np.ndarray) -> dict[str, Any]:
    quantizer, seconds = KINDS[kind](**{"seed": 0} | settings), {}
    begun = time.process_time()
    quantizer.fit(vectors)
    seconds["fit"] = time.process_time() - begun
    codes = quantizer.catalogue(vectors)
    seconds["encode"] = time.process_time() - begun - seconds["fit"]
    report = quantizer.report(vectors, codes)
    names = ("r2", "space_r2", "neighbour_recall", "perplexity", "identical_ids", "shared_ids")
    return {"kind": kind, "settings": settings, "seconds": seconds, **{name: report[name] for name in names if name in report}}


def many(vectors: np.ndarray, items: int) -> dict[str, Any]:
    """The default's seconds on a catalogue as long as this, and how many ids it has twice."""
    random = np.random.default_rng(0)
    size = NOISE * np.sqrt(np.square(vectors).mean())
    wide = vectors[random.integers(0, len(vectors), items)]
    wide += size * random.standard_normal(wide.shape, np.float32)
    quantizer, seconds, begun = MHQ(seed=0), {}, time.process_time()
    quantizer.fit(wide)
    seconds["fit"], begun = time.process_time() - begun, time.process_time()
    found = quantizer.encode(wide)
    seconds["encode"], begun = time.process_time() - begun, time.process_time()
    repaired = quantizer.catalogue(wide, found)
    seconds["repair"] = time.process_time() - begun
    _, counts = np.unique(found, axis=0, return_counts=True)
    changed = int((repaired != found).any(1).sum())
    return {"items": items, "seconds": seconds, "items of identical ids": int(counts[counts > 1].sum()), "new ids": changed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with items.parquet")
    parser.add_argument("--vectors", type=Path, help="float .npy [items, d] in the table's order, instead of the text encoder")
    parser.add_argument("--only", choices=KINDS, help="rows of one kind")
    parser.add_argument("--items", type=int, help="a catalogue of so many instead of the rows")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--out", type=Path, help="JSON log")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    config, begun = VectorsConfig(), time.process_time()
    if arguments.vectors:
        vectors = np.load(arguments.vectors)
    else:
        texts = item_texts(pq.read_table(arguments.data / "items.parquet"), config.text)
        vectors = text_vectors(texts, config.encoder, config.max_tokens, cache=False)
    precision = str(choose_precision("auto", torch.device("cpu"))).removeprefix("torch.")
    log = {
        "data": arguments.data.resolve().name,
        "vectors": "given" if arguments.vectors else config.encoder,
        "embedding": None if arguments.vectors else {"seconds": time.process_time() - begun, "precision": precision},
        "machine": machine.facts("cpu"),
    }
    if arguments.items:
        log["catalogue"] = many(vectors.astype(np.float32), arguments.items)
        print(json.dumps(log["catalogue"]))
    else:
        log["rows"] = []
        for kind, settings in ROWS:
            if arguments.only in (None, kind):
                log["rows"].append(row(kind, settings, vectors))
                print(json.dumps(log["rows"][-1]), flush=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AsymrecError as error:
        sys.exit(f"error: {error}")
