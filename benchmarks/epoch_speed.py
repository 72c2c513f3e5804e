"""CPU seconds of one training epoch, ours against others' loops, turn by turn in one run on one thread each.

    python -m venv RIVAL                       # an environment of its own: RecBole needs a numpy that we do not
    RIVAL/bin/pip install torch==2.13.0 numpy==1.26.4 "pandas<3" "scipy<1.16" "scikit-learn<1.8" transformers tqdm pyyaml \\
        colorlog==4.7.2 colorama==0.4.4 tensorboard thop tabulate plotly texttable psutil
    RIVAL/bin/pip install --no-deps recbole==1.2.1        # its ray has no use here
    python benchmarks/epoch_speed.py DATA --rival-python RIVAL/bin/python --out FILE

`sasrec` against RecBole's own SASRec in RecBole's own loop (`Trainer._train_epoch`): one example a prefix, padded to 50 items,
cross-entropy over all items; width 128, 2 layers, 2 heads, inner width 256, 2,048 targets a step on either side.
`tiger` against a plain loop around Hugging Face's `T5ForConditionalGeneration` and AdamW: one example a prefix, 20 items of 4 tokens
padded to 80; width 128, 4 + 4 layers, 6 heads of 64, inner width 1,024, 256 targets a step on either side.

Each turn is a process of its own. One step warms up; then a share of the epoch's steps is timed by the processor's clock and scaled
to the whole. Steps of the padded loops all cost the same; of ours, which differ in length, a larger share is timed. Ours trains in
bfloat16 where the processor has it, as it does by default, and is timed in float32, the rivals' precision, as well.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from sides import run_side

SHARES = {"recbole": 0.05, "t5": 0.02, "sasrec": 1.0, "tiger": 0.05}  # of an epoch's steps, at least 3
TARGETS = {"sasrec": 50.0, "tiger": 5.0}
RIVALS = {"sasrec": "recbole", "tiger": "t5"}
SHAPE = {
    "sasrec": {"width": 128, "layers": 2, "heads": 2, "ffn": 256, "history": 50, "batch": 2048},
    "tiger": {"width": 128, "layers": 4, "heads": 6, "head_width": 64, "ffn": 1024, "history": 20, "batch": 256},
}


class Clock:
    """Told of every step of an epoch: the first warms up, then a share of all is timed."""

    def __init__(self, share: float):
        self.share, self.begun = share, (0.0, 0.0)

    def __call__(self, number: int, of: int) -> bool:
        """Step `number`, from 1, of an epoch's `of` is done. True: enough, and `found` has the seconds of the whole epoch."""
        now = time.process_time(), time.perf_counter()
        if number == 1:
            self.begun = now
        done, enough = number - 1, min(of - 1, max(3, math.ceil(self.share * of)))
        if done < enough:
            return False
        cpu, wall = ((end - start) * of / done for start, end in zip(self.begun, now))
        self.found = {"steps": of, "timed": done, "cpu_seconds": cpu, "seconds": wall}
        return True


# The rivals: run by the other interpreter, which has no asymrec


def recbole(folder: Path, share: float) -> dict[str, Any]:
    import recbole as package
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import SASRec
    from recbole.trainer import Trainer

    shape = SHAPE["sasrec"]
    settings = {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        "train_neg_sample_args": None,
        "use_gpu": False,
        "hidden_size": shape["width"],
        "n_layers": shape["layers"],
        "n_heads": shape["heads"],
        "inner_size": shape["ffn"],
        "MAX_ITEM_LIST_LENGTH": shape["history"],
        "train_batch_size": shape["batch"],
    }
    sys.argv = sys.argv[:1]  # it reads the command line
    config = Config(model="SASRec", dataset="data", config_dict=settings)
    loader = data_preparation(config, create_dataset(config))[0]
    trainer = Trainer(config, SASRec(config, loader.dataset))

    batches, of, clock = iter(loader), len(loader), Clock(share)

    class Next:
        """An epoch of the loader's next batch alone, for the trainer."""

        shuffle = loader.shuffle

        def __iter__(self) -> Iterator[Any]:
            return islice(batches, 1)

    for number in range(1, of + 1):
        trainer._train_epoch(Next(), 0)
        if clock(number, of):
            break
    return {"recbole": package.__version__, "examples": len(loader.dataset)} | clock.found


def t5(folder: Path, share: float) -> dict[str, Any]:
    import numpy as np
    import torch
    import transformers

    shape = SHAPE["tiger"]
    saved = np.load(folder / "train.npz")
    offsets, items = saved["offsets"], saved["items"]
    ends = np.concatenate([np.arange(start + 1, stop) for start, stop in pairwise(offsets)])  # a prefix ends before its target
    starts = np.repeat(offsets[:-1], np.maximum(np.diff(offsets) - 1, 0))
    rng = np.random.default_rng(0)
    codes = rng.integers(256, size=(items.max() + 1, 4)) + np.arange(4) * 256 + 1  # 0 is padding; what the codes are costs nothing
    length = shape["history"] * 4
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=4 * 256 + 1,
            d_model=shape["width"],
            d_kv=shape["head_width"],
            d_ff=shape["ffn"],
            num_layers=shape["layers"],
            num_heads=shape["heads"],
            decoder_start_token_id=0,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    order, clock = rng.permutation(len(ends)), Clock(share)
    batches = np.split(order, range(shape["batch"], len(order), shape["batch"]))
    for number, chosen in enumerate(batches, 1):
        tokens = np.zeros((len(chosen), length), np.int64)
        for row, (start, end) in enumerate(zip(starts[chosen], ends[chosen])):
            read = codes[items[max(start, end - shape["history"]) : end]].ravel()
            tokens[row, : len(read)] = read
        inputs, labels = torch.from_numpy(tokens), torch.from_numpy(codes[items[ends[chosen]]])
        loss = model(input_ids=inputs, attention_mask=(inputs != 0).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if clock(number, len(batches)):
            break
    return {"transformers": transformers.__version__, "examples": len(order)} | clock.found


# Ours


def ours(name: str, data: Path, share: float, precision: str) -> dict[str, Any]:
    import numpy as np

    from asymrec.data.dataset import Dataset
    from asymrec.models import MODELS
    from asymrec.training.listener import Listener

    class Enough(Exception):
        pass

    clock = Clock(share)

    class Steps(Listener):
        def step(self, number: int, of: int, loss: float) -> None:
            if clock(number, of):
                raise Enough

    dataset = Dataset.read(data)
    vectors = np.random.default_rng(0).standard_normal((dataset.n_items, 64)).astype(np.float32)  # what the codes are costs nothing
    settings = SHAPE[name] | {"epochs": 1, "precision": precision} | ({"rqvae_epochs": 1} if name == "tiger" else {})
    model = MODELS[name](**settings)
    with suppress(Enough):
        model.fit(dataset, vectors=vectors, listener=Steps())
    return {"precision": str(model.precision).removeprefix("torch.")} | clock.found


# Both, turn by turn


def turn(side: str, interpreter: str, *arguments: str) -> dict[str, Any]:
    """One turn of a side, told of on its end."""
    found = run_side(side, interpreter, __file__, "--side", side, *arguments)
    precision, seconds, steps = found.get("precision", "float32"), found["cpu_seconds"], found["timed"]
    print(f"{side:8} {precision:8} {seconds:8.1f} CPU s an epoch, from {steps} steps", flush=True)
    return found


def export(data: Path, folder: Path) -> None:
    """The same interactions in the rivals' formats: all for RecBole, which splits by itself as we do; the training part for T5."""
    import numpy as np

    from asymrec.data.dataset import Dataset

    dataset = Dataset.read(data)
    (folder / "data").mkdir()
    with open(folder / "data" / "data.inter", "w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, items in enumerate(dataset.sequences):
            file.writelines(f"{user}\t{item}\t{place}\n" for place, item in enumerate(items))
    train = dataset.split().train
    np.savez(folder / "train.npz", offsets=train.offsets, items=train.items)


def compare(name: str, data: Path, folder: Path, rival: str, rounds: int) -> dict[str, Any]:
    turns: dict[str, list[dict]] = {RIVALS[name]: [], "ours": [], "ours float32": []}
    for _ in range(rounds):
        turns[RIVALS[name]].append(turn(RIVALS[name], rival, str(folder)))
        for precision, label in (("auto", "ours"), ("float32", "ours float32")):
            turns[label].append(turn(name, sys.executable, str(data), "--precision", precision))
    seconds = {label: statistics.median(found["cpu_seconds"] for found in all_of) for label, all_of in turns.items()}
    ratio = {label: seconds[RIVALS[name]] / value for label, value in seconds.items() if label != RIVALS[name]}
    result = {"model": name, "rival": RIVALS[name], "shape": SHAPE[name], "epoch_cpu_seconds": seconds, "ratio": ratio}
    return result | {"target": TARGETS[name], "passed": ratio["ours"] >= TARGETS[name], "turns": turns}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--rival-python", default=sys.executable, help="the interpreter of the rivals' environment")
    parser.add_argument("--models", nargs="+", choices=RIVALS, default=list(RIVALS))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side; the median counts; default 3")
    parser.add_argument("--out", type=Path, help="JSON log")
    parser.add_argument("--side", choices=SHARES, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="auto", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    side, data = arguments.side, arguments.data.resolve()
    if side:
        import torch

        torch.set_num_threads(1)
        rivals = {"recbole": recbole, "t5": t5}
        found = rivals[side](data, SHARES[side]) if side in rivals else ours(side, data, SHARES[side], arguments.precision)
        print(json.dumps(found | {"torch": torch.__version__}))
        return 0

    from asymrec import machine

    with tempfile.TemporaryDirectory(prefix="asymrec-") as folder:
        export(data, Path(folder))
        results = [compare(name, data, Path(folder), arguments.rival_python, arguments.rounds) for name in arguments.models]
    for result in results:
        ratios = ", ".join(f"{label} {ratio:.1f}" for label, ratio in result["ratio"].items())
        print(f"{result['model']}: {result['rival']} takes more CPU seconds an epoch by {ratios}; target {result['target']:.0f}")
    log = {"data": data.name, "shares": SHARES, "results": results, "machine": machine.facts("cpu") | {"threads": 1}}
    if arguments.out:
        arguments.out.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    return 0 if all(result["passed"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
