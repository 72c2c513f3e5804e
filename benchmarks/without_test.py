"""What a setting is worth, seen without the test part: each user's last interaction is dropped, and the rest split leave-last-out.

So the figures under "test" are of what a usual split has for its validation, and a choice between settings is not made on the test that is
published.

    python benchmarks/without_test.py DATA [--model asymrec] [--set KEY=VALUE ...] --try KEY=VALUE --try KEY=VALUE ... [--out FILE]

One row for each --try, written as soon as it is there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from asymrec import Dataset, evaluate
from asymrec.config import Recipe, parse_settings
from asymrec.data.splits import leave_last_out
from asymrec.machine import facts
from asymrec.models import MODELS
from asymrec.models.trained import Trained


def fitted(kind: type[Trained], data: Dataset, settings: dict, tried: dict) -> dict:
    sequences = data.sequences
    split = leave_last_out(sequences.between(sequences.offsets[:-1], sequences.offsets[1:] - 1))
    model = kind(Recipe.of(None, **settings | tried)).fit(data, split)
    metrics = evaluate(model, split.test, data.n_items, split.train_counts(data.n_items)).metrics
    found = ((name, history) for history in ("kept", "removed") for name in ("ndcg@10", "recall@10"))
    figures = {f"{name} {history}": round(metrics[history][name], 6) for name, history in found}
    precision = str(model.precision).removeprefix("torch.")
    return tried | {"test": figures, "users": len(split.test), "precision": precision, "curve": model.log}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="asymrec", choices=[name for name, kind in MODELS.items() if issubclass(kind, Trained)])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of all rows")
    parser.add_argument("--try", action="append", required=True, dest="tries", metavar="KEY=VALUE", help="the setting of a row")
    parser.add_argument("--out", type=Path, help="write the log here")
    options = parser.parse_args()
    data, kind, settings = Dataset.read(options.data), MODELS[options.model], parse_settings(options.set)
    log = {"data": options.data.name, "model": options.model, "settings": settings, "environment": facts(), "rows": []}
    for tried in options.tries:
        log["rows"].append(fitted(kind, data, settings, parse_settings([tried])))
        print(tried, log["rows"][-1]["test"], flush=True)
        if options.out:
            options.out.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
