"""MHQ on a data folder: time and memory of fit and encode, and how good the codes are.

    python benchmarks/mhq.py DATA                             # DATA/items.parquet, texts embedded by the default encoder
    python benchmarks/mhq.py DATA --vectors items.npy         # vectors at hand
    python benchmarks/mhq.py DATA --set facets=32 --set whiten=true --out log.json

Targets on Amazon Beauty: fit and encode under 60 s on two cores, at most 0.2 % identical ids between items of different text before
the repair, no dead codebook. The exit code is 1 when one is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from asymrec import machine
from asymrec.config import Recipe, parse_settings
from asymrec.errors import AsymrecError
from asymrec.quantize import MHQ
from asymrec.quantize.distinct import identical
from asymrec.quantize.report import describe
from asymrec.vectors import item_texts, text_vectors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with items.parquet")
    parser.add_argument("--vectors", type=Path, help="float .npy [items, d] in the table's order, instead of the text encoder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the quantizer, or `encoder`")
    parser.add_argument("--threads", type=int, help="threads of torch; by default its own choice")
    parser.add_argument("--out", type=Path, help="JSON log")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    recipe = Recipe.of(None, **parse_settings(arguments.set))
    items = pq.read_table(arguments.data / "items.parquet")
    texts = item_texts(items, recipe.vectors.text)
    if arguments.vectors:
        vectors = np.load(arguments.vectors)
    else:
        vectors = text_vectors(texts, recipe.vectors.encoder, recipe.vectors.max_tokens)

    seconds, work = {}, {}

    def timed(step: str, call: Callable[..., Any], *given: Any) -> Any:
        begun, begun_work = time.perf_counter(), time.process_time()
        result = call(*given)
        seconds[step], work[step] = round(time.perf_counter() - begun, 2), round(time.process_time() - begun_work, 2)
        return result

    quantizer = timed("fit", MHQ(**recipe.quantizer.model_dump(), seed=recipe.training.seed).fit, vectors)
    raw = timed("encode", quantizer.encode, vectors)
    codes = timed("repair", quantizer.catalogue, vectors, raw)
    memory = machine.peak_memory()
    report = quantizer.report(vectors, codes)
    mixed = sum(len(rows) for rows in identical(raw) if len({texts[row] for row in rows}) > 1) / len(raw)
    targets = {
        "fit and encode under 60 s": seconds["fit"] + seconds["encode"] < 60,
        "at most 0.2 % identical ids between items of different text": mixed <= 0.002,
        "no dead codebook": report["dead_codebooks"] == 0,
    }
    log = {
        "data": arguments.data.resolve().name,
        "vectors": "given" if arguments.vectors else recipe.vectors.encoder,
        "quantizer": recipe.quantizer.model_dump(),
        "seconds": seconds,
        "processor_seconds": work,
        "peak_memory_mib": memory,
        "identical_ids_of_different_text": mixed,
        "targets": targets,
        "machine": machine.facts("cpu"),
        "report": report,
    }
    print(describe(report))
    print(f"seconds               {seconds}; processor {work}; peak memory {memory} MiB")
    print(f"identical ids between items of different text, before the repair: {mixed:.3%}")
    for target, met in targets.items():
        print(f"{'met   ' if met else 'MISSED'} {target}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    return 0 if all(targets.values()) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AsymrecError as error:
        sys.exit(f"error: {error}")
