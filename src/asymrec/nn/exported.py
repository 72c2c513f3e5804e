"""One request's step as a graph of its own: the rows of a history in, the scores of all items out, run by ONNX Runtime.

A request for one user is a few products with few lines, and half of its time goes where no arithmetic is: between operations. ONNX Runtime
fuses them and keeps weights in the order that its products read (`docs/decoding.md` has the figures). The graph holds all that it
needs, so that other programs can serve it too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from asymrec.errors import ConfigError, install, one_line

INPUTS = ["rows", "time"]  # of a graph, the second where the model reads times


class Step(nn.Module):
    """Rows int64 [places] of one history, oldest first, at least 1 and at most the decoder's positions, and with a clock the time int64 [1]
    of the last one -> scores float32 [n_items].

    Args:
        inputs: float32 [n_items, width], what items are read as.
        decoder: with `last_of_one`.
        head: with `query`.
        items, bias: float32 [width, n_items], and [n_items] or None: what the query is compared with.
        clock: of a network that reads times.
    """

    def __init__(self, inputs: Tensor, decoder: nn.Module, head: nn.Module, items: Tensor, bias: Tensor | None, clock: nn.Module | None):
        super().__init__()
        self.decoder, self.head, self.clock = decoder, head, clock
        for name, value in (("table", inputs), ("items", items), ("bias", bias)):
            self.register_buffer(name, None if value is None else value.detach().clone())

    def forward(self, rows: Tensor, time: Tensor | None = None) -> Tensor:
        state = self.decoder.last_of_one(self.table[rows])
        if self.clock is not None:
            state = state + self.clock(time)
        scores = self.head.query(state) @ self.items
        return (scores if self.bias is None else scores + self.bias)[0]


def write(step: Step, path: str | Path, longest: int) -> None:
    """Export for histories of 1 up to `longest` items. Raises ConfigError where the extra `onnx` is not installed."""
    names = INPUTS[: 1 if step.clock is None else 2]
    sample = torch.arange(min(longest, len(step.table), 3)), torch.zeros(1, dtype=torch.int64)
    shapes = {0: torch.export.Dim("places", min=1, max=longest)}, None
    known = {"input_names": names, "dynamic_shapes": shapes[: len(names)]}
    try:
        torch.onnx.export(step.eval(), sample[: len(names)], path, **known, dynamo=True, verbose=False)
    except ImportError as error:
        raise ConfigError(f"exporting needs more: {install('onnx')} ({error})") from None


class Session:
    """A written step, on as many threads as torch uses. Raises ConfigError: no such file, not ours, ONNX Runtime is not installed."""

    def __init__(self, path: str | Path):
        try:
            import onnxruntime
        except ImportError:
            raise ConfigError(f"an exported step needs ONNX Runtime: {install('onnx')}") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own kinds have no common base
            raise ConfigError(f"cannot read {path}: {one_line(error)}") from None
        names = [one.name for one in self.session.get_inputs()]
        if names not in (INPUTS[:1], INPUTS):
            raise ConfigError(f"{path} is not the graph of a step")

    def __call__(self, rows: np.ndarray, time: int | None = None) -> np.ndarray:
        """int [places], and the last one's time where the graph takes it -> float32 [n_items]"""
        given = {"rows": rows.astype(np.int64)} | ({} if time is None else {"time": np.array([time])})
        return self.session.run(None, given)[0]
