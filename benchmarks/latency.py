"""Milliseconds of one request: AsymRec's `recommend` for one user, warm, history in, ids out, on one thread.

    python -m venv RIVAL && RIVAL/bin/pip install -c constraints/ci.txt cornac==3.0.1 torch transformers
    asymrec fit DATA -o RUN                    # any run of AsymRec, SASRec or RPG
    pip install -c constraints/ci.txt -e .[onnx]
    python benchmarks/latency.py RUN --rival-python RIVAL/bin/python --out FILE

`recommend` is timed for test users of the run, one by one, by the processor's clock and by the wall's. Beside it, over the same
histories, one user's search by cornac 3.0.1's TIGER, of TIGER's size and with a beam of 50: its score of all items and the ten best.
Sides take turns, each turn a process of its own.

`exported` is the same with the model's step in ONNX Runtime (`export`, `use`). `step` is that step alone, from a history's rows to the
scores of all items: as it is (eager), in ONNX Runtime, compiled by AOTInductor and by `torch.compile` (both need a C++ compiler). Forms
take turns, some histories each, and must give the same scores to 1e-4.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from decoding import K, cornac_tiger
from sides import run_side

TARGET = 20.0
CLOCKS = ("cpu_ms", "wall_ms")
TIGER_SHAPE = {"width": 128, "layers": 4, "heads": 6, "head_width": 64, "ffn": 1024}
SLOW = 40  # users that cornac is asked about
BLOCK, WARM = 14, 4  # histories that a form of the step is given in a turn; the first are not timed, but compared


def clocked(requests: list[Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """Milliseconds of each, p50 and p99, after a first round over some of them."""
    import numpy as np

    for request in requests[:20]:
        request()
    times = []
    for request in requests:
        begin = time.process_time(), time.perf_counter()
        request()
        times.append((time.process_time() - begin[0], time.perf_counter() - begin[1]))
    cpu, wall = 1e3 * np.array(times).T
    return {name: {f"p{p}": float(np.percentile(part, p)) for p in (50, 99)} for name, part in zip(CLOCKS, (cpu, wall))}


def cornac(folder: Path) -> dict[str, Any]:
    import importlib.metadata

    import numpy as np

    histories = json.loads((folder / "histories.json").read_text(encoding="utf-8"))
    items = json.loads((folder / "items.json").read_text(encoding="utf-8"))
    codes = np.random.default_rng(0).integers(256, size=(items, 4))  # what they are changes little
    model = cornac_tiger(TIGER_SHAPE, codes)

    def request(history: list[int]) -> list[int]:
        scores = model.score(None, history)
        best = np.argpartition(-scores, K)[:K]
        return best[np.argsort(-scores[best], kind="stable")].tolist()

    found = clocked([lambda history=history: request(history) for history in histories[:SLOW]])
    return found | {"cornac": importlib.metadata.version("cornac")}


def ours(run: Path, folder: Path, exported: bool) -> dict[str, Any]:
    from asymrec.models.base import Recommender

    model = Recommender.load(run)
    if exported:
        model.export(folder / "step.onnx")
        model.use(folder / "step.onnx")
    histories = json.loads((folder / "histories.json").read_text(encoding="utf-8"))
    ids = model.dataset.item_ids.to_pylist()
    named = [[ids[item] for item in history] for history in histories]
    return clocked([lambda history=history: model.recommend([history], K) for history in named])


def forms(run: Path, folder: Path) -> dict[str, Any]:
    """The step in each form: CPU milliseconds, the largest difference of its scores from the eager ones, seconds to make it."""
    import numpy as np
    import torch
    from torch import Tensor

    from asymrec.models.base import Recommender
    from asymrec.nn.exported import Session, Step

    model = Recommender.load(run)
    network, (items, bias) = model.network, model._items
    histories = [one[-model.history :] for one in json.loads((folder / "histories.json").read_text(encoding="utf-8"))]
    inputs = [torch.tensor(one) for one in histories if len(one) > 1]  # torch's compilers take 1 as another shape
    step, sample = Step(model._inputs, network.decoder, network.head, items, bias, network.clock).eval(), max(inputs, key=len)
    time_of_last = () if network.clock is None else (torch.zeros(1, dtype=torch.int64),)  # any: all cost the same

    def eager(rows: Tensor) -> np.ndarray:
        with torch.inference_mode():
            states = network.decoder.last(model._inputs[rows], [(1, len(rows))])
            if time_of_last:
                states = states + network.clock(*time_of_last)
            return torch.addmm(bias, network.head.query(states), items)[0].numpy()

    def onnx() -> Callable[[Tensor], np.ndarray]:
        model.export(folder / "step.onnx")
        session = Session(folder / "step.onnx")
        return lambda rows: session(rows.numpy(), *map(int, time_of_last))

    def ahead() -> Callable[[Tensor], np.ndarray]:
        shapes = {0: torch.export.Dim("places", min=2, max=model.history)}, None
        program = torch.export.export(step, (sample, *time_of_last), dynamic_shapes=shapes[: 1 + len(time_of_last)])
        loaded = torch._inductor.aoti_load_package(torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "step.pt2")))
        return lambda rows: loaded(rows, *time_of_last).numpy()

    def compiled() -> Callable[[Tensor], np.ndarray]:
        form = torch.compile(step, dynamic=True)
        form(sample, *time_of_last)
        return lambda rows: form(rows, *time_of_last).numpy()

    made, seconds = {"eager": eager}, {}
    for name, make in (("ONNX Runtime", onnx), ("AOTInductor", ahead), ("torch.compile", compiled)):
        begin = time.perf_counter()
        with torch.no_grad():
            made[name] = make()
        seconds[name] = time.perf_counter() - begin
    times: dict[str, list[float]] = {name: [] for name in made}
    apart = dict.fromkeys(made, 0.0)
    for start in range(0, len(inputs), BLOCK):
        for name, form in made.items():
            for number, rows in enumerate(inputs[start : start + BLOCK]):
                begin = time.process_time()
                with torch.no_grad():
                    found = form(rows)
                if number >= WARM:
                    times[name].append(1e3 * (time.process_time() - begin))
                apart[name] = max(apart[name], float(np.abs(found - eager(rows)).max())) if number < WARM else apart[name]
    found = {name: {f"p{p}": float(np.percentile(part, p)) for p in (50, 99)} for name, part in times.items()}
    return {"cpu_ms": found, "largest_difference": apart, "seconds_to_make": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rival-python", default=sys.executable, help="the interpreter of the rival's environment")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side; the median counts; default 3")
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--out", type=Path, help="JSON log")
    parser.add_argument("--side", choices=("recommend", "exported", "cornac", "forms"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    side, run, folder = arguments.side, arguments.run.resolve(), arguments.folder
    if side:
        import torch

        torch.set_num_threads(1)
        found = cornac(folder) if side == "cornac" else forms(run, folder) if side == "forms" else ours(run, folder, side == "exported")
        print(json.dumps(found | {"torch": torch.__version__}))
        return 0

    import statistics

    import numpy as np

    from asymrec import machine
    from asymrec.models.base import Recommender

    model = Recommender.load(run)
    test = model.dataset.split().test.histories
    chosen = test.take(np.random.default_rng(0).choice(np.flatnonzero(test.lengths), arguments.users, replace=False))
    problem = {"model": model.name, "items": model.dataset.n_items, "users": len(chosen), "mean_history": float(chosen.lengths.mean())}
    turns: dict[str, list[dict]] = {"recommend": [], "exported": [], "cornac": []}
    with tempfile.TemporaryDirectory(prefix="asymrec-") as name:
        folder = Path(name)
        (folder / "histories.json").write_text(json.dumps([history.tolist() for history in chosen]), encoding="utf-8")
        (folder / "items.json").write_text(json.dumps(model.dataset.n_items), encoding="utf-8")
        for _ in range(arguments.rounds):
            for label, found in turns.items():
                interpreter = arguments.rival_python if label == "cornac" else sys.executable
                found.append(run_side(label, interpreter, __file__, str(run), "--side", label, "--folder", name))
                clocks = (f"{clock}: p50 {found[-1][clock]['p50']:.2f} p99 {found[-1][clock]['p99']:.2f}" for clock in CLOCKS)
                print(f"{label:10}", *clocks, flush=True)
        step = run_side("forms", sys.executable, __file__, str(run), "--side", "forms", "--folder", name)
    medians = {
        label: {clock: {p: statistics.median(one[clock][p] for one in found) for p in ("p50", "p99")} for clock in CLOCKS}
        for label, found in turns.items()
    }
    ratios = {label: medians["cornac"]["cpu_ms"]["p50"] / medians[label]["cpu_ms"]["p50"] for label in ("recommend", "exported")}
    for form, found in step["cpu_ms"].items():
        print(f"step, {form:14} CPU ms p50 {found['p50']:.2f} p99 {found['p99']:.2f}, scores apart {step['largest_difference'][form]:.1e}")
    print("cornac's tiger takes more CPU ms by", *(f"{label} {ratio:.0f}" for label, ratio in ratios.items()), f"target {TARGET:.0f}")
    passed = ratios["recommend"] >= TARGET and max(step["largest_difference"].values()) < 1e-4
    log = {"problem": problem, "ms": medians, "ratios": ratios, "target": TARGET, "passed": passed, "step": step, "turns": turns}
    if arguments.out:
        log["machine"] = machine.facts("cpu") | {"threads": 1}
        arguments.out.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
