"""The training loop of every model that learns by gradient, top to bottom.

AdamW, linear warm-up and cosine decay, gradients cut at norm 1, early stop on a validation figure, best weights kept.
Randomness comes from (seed, epoch) and (seed, step) alone, so a run that goes on from a checkpoint makes the same steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asymrec.config import TrainingConfig
from asymrec.errors import RunError
from asymrec.machine import keep_memory, release_memory
from asymrec.tensors import prefixed, without_prefix
from asymrec.training.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from asymrec.training.listener import Listener

CHECKPOINT_SECONDS = 60.0
QUIET = Listener()


def train(
    network: nn.Module,
    batches: Callable[[int], Sequence[Any]],
    loss: Callable[[Any], Tensor],
    validate: Callable[[], dict[str, float]],
    config: TrainingConfig,
    *,
    checkpoint: Checkpoint | None = None,
    listener: Listener = QUIET,
    decides: str = "ndcg@10",
) -> list[dict[str, float]]:
    """Train `network` in place and leave the weights of the best epoch in it.

    Args:
        batches: epoch (from 1) -> its batches; must depend on the epoch and nothing else.
        loss: batch -> scalar to descend.
        validate: -> figures of the present weights; the one called `decides` says which epoch is the best. What it changes in the
            weights is kept with them where they are the best, and is no part of the training that goes on.
        checkpoint: where to keep the state, at least every minute; one found there is gone on from.
        listener: told of steps and epochs.
    Returns:
        The log: a dict for each epoch with epoch, loss, learning_rate, seconds, best and the validation figures.
    Raises:
        RunError: the checkpoint is damaged, or of another network.
    """
    learned = [(p.ndim > 1 and not name.endswith("bias"), p) for name, p in network.named_parameters() if p.requires_grad]
    decayed, others = ([p for decays, p in learned if decays == side] for side in (True, False))
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=decayed[0].device.type in ("cpu", "cuda"))
    average = {name: value.clone() for name, value in network.state_dict().items()} if config.average else None
    best = {name: value.clone() for name, value in network.state_dict().items()}
    state: dict[str, Any] = {"epoch": 1, "done": 0, "summed": 0.0, "seconds": 0.0, "log": []}

    found = checkpoint.load() if checkpoint else None
    if found:
        tensors, state = found
        try:
            network.load_state_dict(without_prefix("network", tensors))
        except RuntimeError:
            raise RunError(f"the fit in {checkpoint.folder} has another network, as of another version: begin it anew") from None
        best = without_prefix("best", tensors)
        restore_optimizer(optimizer, without_prefix("optimizer", tensors))
        if average is not None:
            kept = without_prefix("average", tensors)
            average = {name: kept[name].to(value.device) for name, value in average.items()}

    def save() -> None:
        if checkpoint:
            tensors = prefixed("network", network.state_dict()) | prefixed("best", best)
            tensors |= prefixed("optimizer", optimizer_tensors(optimizer)) | prefixed("average", average or {})
            checkpoint.save(tensors, state)

    keep_memory()
    saved = time.monotonic()
    while state["epoch"] <= config.epochs and not _stalled(state["log"], config.patience):
        network.train()
        todo = batches(state["epoch"])
        total_steps = config.epochs * len(todo)
        begun = time.monotonic() - state["seconds"]
        for number in range(state["done"], len(todo)):
            step = (state["epoch"] - 1) * len(todo) + number
            torch.manual_seed(int(np.random.SeedSequence((config.seed, step)).generate_state(1)[0]))
            rate = config.learning_rate * _schedule(step, total_steps, config.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            value = loss(todo[number])
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            if average is not None:
                _follow(average, network.state_dict(), min(config.average, (1 + step) / (10 + step)))
            state["summed"] += value.item()
            state["done"] = number + 1
            state["seconds"] = time.monotonic() - begun
            listener.step(number + 1, len(todo), state["summed"] / state["done"])
            if time.monotonic() - saved > CHECKPOINT_SECONDS and number + 1 < len(todo):
                save()
                saved = time.monotonic()

        current = {name: value.clone() for name, value in network.state_dict().items()}
        if average is not None:
            network.load_state_dict(average)
        network.eval()
        figures = validate()
        better = figures[decides] > max((entry[decides] for entry in state["log"]), default=-math.inf)
        if better:
            best = {name: value.clone() for name, value in network.state_dict().items()}
        network.load_state_dict(current)
        entry = {"epoch": state["epoch"], "loss": state["summed"] / len(todo), "learning_rate": rate, "seconds": state["seconds"]}
        state["log"].append(entry | figures | {"best": better})
        state |= {"epoch": state["epoch"] + 1, "done": 0, "summed": 0.0, "seconds": 0.0}
        save()
        saved = time.monotonic()
        release_memory()
        listener.epoch(state["log"])
    network.load_state_dict(best)
    network.eval()
    return state["log"]


def _schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate at a step: linear up to the warm-up's end, then half a cosine down to 0."""
    rising = max(1.0, warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1.0, steps - rising)))


def _stalled(log: list[dict], patience: int) -> bool:
    since = next((back for back, entry in enumerate(reversed(log)) if entry["best"]), 0)
    return since >= patience


def _follow(average: dict[str, Tensor], current: dict[str, Tensor], decay: float) -> None:
    """average <- decay * average + (1 - decay) * current; what is not a float is copied."""
    for name, value in current.items():
        if value.dtype.is_floating_point:
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)
