"""FlexCode's codes on a data folder: time of the collaborative vectors, both branches and the router, and the report.

    python benchmarks/dual.py DATA --out log.json
    python benchmarks/dual.py DATA --set rqvae_levels=4 --set staged=false

Target on Amazon Beauty: both branches and the router in under 5 minutes on two cores. The exit code is 1 when it is missed. Seconds are
those of the processor, on one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from asymrec import Dataset, machine
from asymrec.config import Recipe, parse_settings
from asymrec.quantize import DualCodebook
from asymrec.quantize.report import describe
from asymrec.vectors import item_vectors
from asymrec.vectors.collaborative import collaborative_vectors
from asymrec.vectors.popularity import popularity_features

TARGET = 300.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="data folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of section rqvae or flexcode")
    parser.add_argument("--out", type=Path, help="JSON log")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe.of(None, **parse_settings(arguments.set))
    dataset = Dataset.read(arguments.data)
    split = dataset.split()
    semantic = item_vectors(dataset, recipe.vectors, split.train)
    counts, seconds = split.train_counts(dataset.n_items), {}
    begun = time.process_time()
    collaborative = collaborative_vectors(split.train, dataset.n_items, recipe.flexcode.collaborative_width)
    features = popularity_features(split.train, dataset.n_items, dataset.time_unit)
    seconds["collaborative vectors"] = time.process_time() - begun
    vectors = np.concatenate([semantic, collaborative, features], 1)
    begun = time.process_time()
    quantizer = DualCodebook(**recipe.rqvae.model_dump(), **recipe.flexcode.model_dump()).fit(vectors[counts > 0])
    seconds["branches and router"] = time.process_time() - begun
    report = quantizer.report(vectors, quantizer.catalogue(vectors))
    print(describe(report))
    for part in report["split"]:
        print("{items:6,} items, {interactions:8.1f} interactions: share {share:.2f}, {collaborative_codes:.2f} codes".format(**part))
    print({step: round(value, 1) for step, value in seconds.items()}, f"aligned {report['aligned']:.2f}")
    if arguments.out:
        about = {
            "data": arguments.data.name,
            "settings": arguments.set,
            "cpu_seconds": seconds,
            "report": report,
            "machine": machine.facts(),
        }
        arguments.out.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return int(sum(seconds.values()) >= TARGET)


if __name__ == "__main__":
    sys.exit(main())
