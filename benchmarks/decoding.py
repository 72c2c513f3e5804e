"""CPU milliseconds a user of TIGER's search, ours against others' beam search, turn by turn in one run on one thread each.

    python -m venv RIVAL                       # an environment of its own
    RIVAL/bin/pip install -c constraints/ci.txt cornac==3.0.1 torch transformers
    asymrec fit DATA -o RUN --model tiger      # any run of TIGER will do, one of few epochs too
    python benchmarks/decoding.py RUN --rival-python RIVAL/bin/python --out FILE

From histories to ten items, with a beam of 50, for `--users` test users of the run: in batches of 64 and one by one.

`hf` is Hugging Face's `T5ForConditionalGeneration.generate` with the run's own weights, codes and histories, num_beams=50 and the trie of
the catalogue as `prefix_allowed_tokens_fn`. The run's softmax at each place goes over the codes of that place; so that both speak of the
same probabilities, a subclass sets the logits of other places' tokens to -inf, and where the run has `tree_softmax`, logits are
renormalised among the tokens that the trie allows. `cornac` is the search of cornac 3.0.1's TIGER, which takes
one user at a time, over the same codes and with a network of the same size. It has heads of its own, so its weights are random: its time
does not depend on them. Ours is `Tiger.recommend`, ids in and ids out, in float32, the rivals' precision, and in bfloat16.

Each turn is a process of its own and searches once before the clock starts. The float32 search must find the same ten items as `hf`.
Besides, a trie of ten million random ids is built, saved and mapped.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sides import run_side

BEAM, K, BATCH = 50, 10, 64
SINGLE = 8  # users who are searched for one by one
TARGETS = {
    "batch 64, float32, than hf": 12.0,
    "batch 64, bfloat16, than hf": 25.0,
    "batch 64, float32, than cornac": 12.0,
    "batch 1, float32, than hf": 4.0,
    "batch 1, float32, than cornac": 4.0,
}


def timed(search: Callable[[list], list], histories: list) -> dict[str, Any]:
    """search: histories -> the ten items of each. CPU milliseconds a user in batches and one by one, and what was found."""
    batches = [histories[start : start + BATCH] for start in range(0, len(histories), BATCH)]
    search(batches[0][:2])
    begin = time.process_time()
    found = [items for batch in batches for items in search(batch)]
    whole = time.process_time()
    for history in histories[:SINGLE]:
        search([history])
    single = time.process_time()
    each = {f"batch {BATCH}": (whole - begin) / len(histories), "batch 1": (single - whole) / min(SINGLE, len(histories))}
    return {"ms_a_user": {batch: 1e3 * seconds for batch, seconds in each.items()}, "found": found}


# The rivals: run by the other interpreter


def hf(folder: Path) -> dict[str, Any]:
    import numpy as np
    import torch
    import transformers

    shape = json.loads((folder / "shape.json").read_text(encoding="utf-8"))
    weights = {name: torch.from_numpy(array) for name, array in np.load(folder / "weights.npz").items()}
    codes = np.load(folder / "codes.npy")
    places, words, width = weights["embedding"].shape
    start = places * words  # the token that begins; it also fills up short histories
    tokens = codes + np.arange(places) * words

    class T5(transformers.T5ForConditionalGeneration):
        @functools.wraps(transformers.T5ForConditionalGeneration.forward)  # `generate` reads its parameters
        def forward(self, **options: Any) -> Any:
            cache = options.get("cache", options.get("past_key_values"))  # its name changed
            place = 0 if cache is None else cache.get_seq_length()
            out = super().forward(**options)
            out.logits[..., : place * words] = -torch.inf
            out.logits[..., (place + 1) * words :] = -torch.inf
            return out

    config = transformers.T5Config(
        vocab_size=start + 1,
        d_model=width,
        d_kv=shape["head_width"],
        d_ff=shape["ffn"],
        num_layers=shape["layers"],
        num_heads=shape["heads"],
        decoder_start_token_id=start,
        pad_token_id=start,
        eos_token_id=None,
    )
    model = T5(config).eval()
    state = {"shared.weight": torch.cat((weights["embedding"].flatten(0, 1), weights["start"].unsqueeze(0)))}
    for side in ("encoder", "decoder"):
        state[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = weights[f"{side}.distance"].T
        state[f"{side}.final_layer_norm.weight"] = weights[f"{side}.norm"]
        for number in range(shape["layers"]):
            ours, block = f"{side}.{{}}.{number}.", f"{side}.block.{number}.layer."
            attention, cross, feed = (ours.format(part) for part in ("attention", "cross", "feed"))
            for name, part in zip("qkv", weights[attention + "qkv.weight"].chunk(3)):
                state[f"{block}0.SelfAttention.{name}.weight"] = part
            state[f"{block}0.SelfAttention.o.weight"] = weights[attention + "out.weight"]
            state[f"{block}0.layer_norm.weight"] = weights[attention + "norm"]
            last = 1
            if side == "decoder":
                for name, part in zip("qkv", ("query", "key", "value")):
                    state[f"{block}1.EncDecAttention.{name}.weight"] = weights[cross + part].flatten(0, 1)
                state[f"{block}1.EncDecAttention.o.weight"] = weights[cross + "out"].transpose(0, 1).flatten(1)
                state[f"{block}1.layer_norm.weight"] = weights[cross + "norm"]
                last = 2
            state[f"{block}{last}.DenseReluDense.wi.weight"] = weights[feed + "up.weight"]
            state[f"{block}{last}.DenseReluDense.wo.weight"] = weights[feed + "down.weight"]
            state[f"{block}{last}.layer_norm.weight"] = weights[feed + "norm"]
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or not set(missing) <= {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}:
        raise SystemExit(f"the weights do not fit: {missing}, {unexpected}")
    model.tie_weights()

    children: dict[tuple[int, ...], set[int]] = {}
    for one in tokens.tolist():
        for place in range(places):
            children.setdefault(tuple(one[:place]), set()).add(one[place])
    allowed = {prefix: sorted(following) for prefix, following in children.items()}
    row = {tuple(one): number for number, one in enumerate(tokens.tolist())}

    def search(histories: list[list[int]]) -> list[list[int]]:
        lengths = torch.tensor([len(history) * places for history in histories])
        read = torch.full((len(histories), int(lengths.max())), start)
        for line, history in zip(read, histories):
            line[: len(history) * places] = torch.from_numpy(tokens[history].reshape(-1))
        with torch.inference_mode():
            written = model.generate(
                input_ids=read,
                attention_mask=(torch.arange(read.shape[1]) < lengths.unsqueeze(1)).long(),
                num_beams=BEAM,
                num_return_sequences=K,
                max_new_tokens=places,
                do_sample=False,
                renormalize_logits=shape["tree_softmax"],
                prefix_allowed_tokens_fn=lambda _, prefix: allowed.get(tuple(prefix[1:].tolist()), [0]),
            )
        found = [row[tuple(one)] for one in written[:, 1:].tolist()]
        return [found[at : at + K] for at in range(0, len(found), K)]

    histories = json.loads((folder / "histories.json").read_text(encoding="utf-8"))
    return timed(search, histories) | {"transformers": transformers.__version__}


def cornac_tiger(shape: dict[str, int], codes: Any) -> Any:
    """cornac's TIGER over these codes, with random weights: as `fit` would leave it."""
    import numpy as np
    import torch
    from cornac.models import TIGER
    from cornac.models.tiger.tiger import TIGERSeq2Seq

    torch.manual_seed(0)
    model = TIGER(n_beams=BEAM, device="cpu")
    model.device_, model.iid_map, model.pad_idx = "cpu", dict.fromkeys(range(len(codes))), len(codes)
    model._build_semantic_ids(codes[:, :-1])  # it makes the last code by itself
    sizes = {"d_model": shape["width"], "d_ff": shape["ffn"], "num_heads": shape["heads"], "d_kv": shape["head_width"]}
    model.model = TIGERSeq2Seq(model.level_sizes, num_enc_layers=shape["layers"], num_dec_layers=shape["layers"], **sizes).eval()
    model.enc_token_table = np.zeros((len(codes) + 1, codes.shape[1]), np.int64)
    model.enc_token_table[:-1] = model.sid_table + model.model.offsets.numpy()
    return model


def cornac(folder: Path) -> dict[str, Any]:
    import importlib.metadata

    import numpy as np

    model = cornac_tiger(json.loads((folder / "shape.json").read_text(encoding="utf-8")), np.load(folder / "codes.npy"))

    def search(histories: list[list[int]]) -> list[list[int]]:
        scores = [model.score(None, history) for history in histories]
        return [np.argsort(-line, kind="stable")[:K].tolist() for line in scores]

    histories = json.loads((folder / "histories.json").read_text(encoding="utf-8"))
    return timed(search, histories) | {"cornac": importlib.metadata.version("cornac")}


# Ours


def ours(run: Path, folder: Path, precision: str) -> dict[str, Any]:
    from asymrec.config import Recipe
    from asymrec.models import Tiger

    model = Tiger.load(run)
    model.recipe = Recipe.of(model.recipe.model_dump(), precision=precision, beam=BEAM)
    model._freeze()
    ids = model.dataset.item_ids.to_pylist()
    row = {item: number for number, item in enumerate(ids)}

    def search(histories: list[list[Any]]) -> list[list[Any]]:
        return model.recommend(histories, K, exclude_seen=False)[0]

    histories = json.loads((folder / "histories.json").read_text(encoding="utf-8"))
    result = timed(search, [[ids[item] for item in history] for history in histories])
    return result | {"found": [[row[item] for item in line] for line in result["found"]]}


def trie(items: int) -> dict[str, Any]:
    """A trie of so many random ids of four codes: CPU seconds to build, save and map it, and its bytes."""
    import numpy as np

    from asymrec.retrieval.trie import Trie

    codes = np.random.default_rng(0).integers(256, size=(items, 4), dtype=np.uint8)
    clock, found = [time.process_time()], {}
    made = Trie(codes)
    clock.append(time.process_time())
    with tempfile.TemporaryDirectory(prefix="asymrec-") as folder:
        made.save(Path(folder) / "trie")
        clock.append(time.process_time())
        Trie.load(Path(folder) / "trie")
        clock.append(time.process_time())
    for name, begin, end in zip(("build", "save", "map"), clock, clock[1:]):
        found[f"{name}_cpu_seconds"] = end - begin
    size = sum(array.nbytes for array in (*made.tokens, *made.starts, made.rows))
    return found | {"items": items, "nodes": sum(map(len, made.tokens)), "bytes": size}


# All, turn by turn


def export(run: Path, folder: Path, users: int) -> dict[str, Any]:
    """The run's weights, codes and histories as plain arrays, for interpreters without asymrec."""
    import numpy as np

    from asymrec.models import Tiger

    model = Tiger.load(run)
    net = model.recipe.network
    shape = {name: getattr(net, name) for name in ("width", "layers", "heads", "head_width", "ffn", "tree_softmax")}
    shape["history"] = model.history
    (folder / "shape.json").write_text(json.dumps(shape), encoding="utf-8")
    np.savez(folder / "weights.npz", **{name: value.numpy() for name, value in model.network.state_dict().items()})
    codes = model.catalogue()[1]
    np.save(folder / "codes.npy", codes)
    test = model.dataset.split().test.histories
    test = test.take(np.flatnonzero(test.lengths))
    chosen = test.take(np.linspace(0, len(test) - 1, users).astype(np.int64)).last(model.history)
    (folder / "histories.json").write_text(json.dumps([history.tolist() for history in chosen]), encoding="utf-8")
    sizes = [len(tokens) for tokens in model.trie.tokens]
    return {"shape": shape, "items": len(codes), "prefixes": sizes, "users": users, "mean_history": float(chosen.lengths.mean())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rival-python", default=sys.executable, help="the interpreter of the rivals' environment")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side; the median counts; default 3")
    parser.add_argument("--users", type=int, default=BATCH)
    parser.add_argument("--trie", type=int, default=10_000_000, help="items of the trie that is built besides; default 10,000,000")
    parser.add_argument("--out", type=Path, help="JSON log")
    parser.add_argument("--side", choices=("hf", "cornac", "float32", "bfloat16"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    side, run, folder = arguments.side, arguments.run.resolve(), arguments.folder
    if side:
        import torch

        torch.set_num_threads(1)
        found = {"hf": hf, "cornac": cornac}[side](folder) if side in ("hf", "cornac") else ours(run, folder, side)
        print(json.dumps(found | {"torch": torch.__version__}))
        return 0

    from asymrec import machine

    turns: dict[str, list[dict]] = {"hf": [], "cornac": [], "float32": [], "bfloat16": []}
    with tempfile.TemporaryDirectory(prefix="asymrec-") as name:
        problem = export(run, Path(name), arguments.users)
        for _ in range(arguments.rounds):
            for label, found in turns.items():
                interpreter = arguments.rival_python if label in ("hf", "cornac") else sys.executable
                found.append(run_side(label, interpreter, __file__, str(run), "--side", label, "--folder", name))
                print(f"{label:9}", *(f"{batch}: {ms:7.1f} CPU ms a user  " for batch, ms in found[-1]["ms_a_user"].items()), flush=True)
    found_lists = {label: [one.pop("found") for one in found] for label, found in turns.items()}
    same_again = all(each == all_of[0] for all_of in found_lists.values() for each in all_of)
    lists = {label: all_of[0] for label, all_of in found_lists.items()}
    ms = {
        label: {batch: statistics.median(one["ms_a_user"][batch] for one in found) for batch in found[0]["ms_a_user"]}
        for label, found in turns.items()
    }
    ratios = dict.fromkeys(TARGETS, 0.0)
    for target in TARGETS:
        batch, precision, rival = target.split(", ")
        ratios[target] = ms[rival.removeprefix("than ")][batch] / ms[precision][batch]
    shared = {
        precision: statistics.mean(len({*a} & {*b}) / K for a, b in zip(lists[precision], lists["hf"]))
        for precision in ("float32", "bfloat16")
    }
    for target, ratio in ratios.items():
        print(f"{target}: {ratio:5.1f} times fewer CPU ms; target {TARGETS[target]:.0f}")
    print(f"of hf's ten items: float32 {shared['float32']:.2%}, bfloat16 {shared['bfloat16']:.2%}")
    built = trie(arguments.trie)
    print(f"a trie of {built['items']:,} items is built in {built['build_cpu_seconds']:.1f} CPU s, {built['bytes'] >> 20} MiB")
    passed = all(ratios[target] >= least for target, least in TARGETS.items()) and shared["float32"] == 1.0 and shared["bfloat16"] >= 0.97
    log = {"problem": problem, "beam": BEAM, "ms_a_user": ms, "ratios": ratios, "targets": TARGETS, "shared_with_hf": shared}
    log |= {"same_every_turn": same_again, "passed": passed, "trie": built, "turns": turns}
    log["machine"] = machine.facts("cpu") | {"threads": 1}
    if arguments.out:
        arguments.out.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    return 0 if passed and same_again else 1


if __name__ == "__main__":
    sys.exit(main())
