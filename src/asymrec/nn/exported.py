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


class Step(nn.Module):
    """Rows int64 [places] of one history, oldest first, at least 1 and at most the decoder's positions -> scores float32 [n_items].

    Args:
        inputs: float32 [n_items, width], what items are read as.
        decoder: with `last_of_one`.
        head: with `query`.
        items, bias: float32 [width, n_items], and [n_items] or None: what the query is compared with.
    """

    def __init__(self, inputs: Tensor, decoder: nn.Module, head: nn.Module, items: Tensor, bias: Tensor | None):
        super().__init__()
        self.decoder, self.head = decoder, head
        for name, value in (("table", inputs), ("items", items), ("bias", bias)):
            self.register_buffer(name, None if value is None else value.detach().clone())

    def forward(self, rows: Tensor) -> Tensor:
        scores = self.head.query(self.decoder.last_of_one(self.table[rows])) @ self.items
        return (scores if self.bias is None else scores + self.bias)[0]


def write(step: Step, path: str | Path, longest: int) -> None:
    """Export for histories of 1 up to `longest` items. Raises ConfigError where the extra `onnx` is not installed."""
    sample = torch.arange(min(longest, len(step.table), 3))
    places = torch.export.Dim("places", min=1, max=longest)
    try:
        torch.onnx.export(step.eval(), (sample,), path, input_names=["rows"], dynamic_shapes=({0: places},), dynamo=True, verbose=False)
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
        if [one.name for one in self.session.get_inputs()] != ["rows"]:
            raise ConfigError(f"{path} is not the graph of a step")

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """int [places] -> float32 [n_items]"""
        return self.session.run(None, {"rows": rows.astype(np.int64)})[0]
