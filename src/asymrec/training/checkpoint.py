"""Where an interrupted fit goes on: a folder that is always whole, replaced in one step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from asymrec.errors import RunError
from asymrec.files import atomic, recover


class Checkpoint:
    """Tensors in `state.safetensors` and plain values in `state.json`, both or neither.

    Args:
        folder: made at the first save.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def save(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        with atomic(self.folder) as temporary:
            temporary.mkdir()
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary / "state.safetensors")
            (temporary / "state.json").write_text(json.dumps(values), encoding="utf-8")

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was saved last; None where nothing was. Raises RunError: the checkpoint is damaged."""
        recover(self.folder)
        if not self.folder.exists():
            return None
        try:
            values = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
            return load_file(self.folder / "state.safetensors"), values
        except (OSError, ValueError, SafetensorError) as error:
            raise RunError(f"the checkpoint {self.folder} is damaged ({error}); delete it to begin anew") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments of an optimizer by (parameter number, name)."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": torch.as_tensor(value) for number, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
