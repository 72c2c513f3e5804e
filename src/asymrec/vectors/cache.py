"""Vectors on disk by the content of their texts, so that a text is embedded once.

One folder for each encoder and token limit; in it, files of (SHA-256 of a text, vector) pairs. A file is written once, whole, under the
hash of its keys, and never changed: processes need no lock, and ten new items add a file of ten. A damaged file is removed and its
texts are embedded again.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np

from asymrec.errors import RunError
from asymrec.files import atomic


class VectorCache:
    def __init__(self, folder: Path):
        self.folder = folder

    @staticmethod
    def key(text: str) -> bytes:
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    def find(self, keys: list[bytes]) -> dict[bytes, np.ndarray]:
        """Key -> float32 [d] for those that are held; vectors of another width than the first are passed over."""
        wanted, found, width = set(keys), {}, None
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder.is_dir() else []:
            try:
                held, vectors = _read(path, wanted)
            except FileNotFoundError:
                continue
            except Exception:  # whatever a damaged file can raise
                path.unlink(missing_ok=True)
                continue
            if held and (width is None or vectors.shape[1] == width):
                width = vectors.shape[1]
                found.update(zip(held, vectors))
        return found

    def store(self, keys: list[bytes], vectors: np.ndarray) -> None:
        """A folder that cannot be written is only warned of: the vectors themselves are not in danger."""
        from safetensors.numpy import save_file

        path = self.folder / f"{hashlib.sha256(b''.join(keys)).hexdigest()[:32]}.safetensors"
        tensors = {"keys": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32), "vectors": np.ascontiguousarray(vectors, np.float32)}
        try:
            with atomic(path) as temporary:
                save_file(tensors, temporary, metadata={"sha256": _digest(tensors)})
        except RunError as error:
            warnings.warn(f"vectors are not cached: {error}", stacklevel=2)


def _read(path: Path, wanted: set[bytes]) -> tuple[list[bytes], np.ndarray]:
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        keys = file.get_tensor("keys")
        held = [key.tobytes() for key in keys]
        lines = [line for line, key in enumerate(held) if key in wanted]
        if not lines:  # most files of a shared cache: their vectors need not be read
            return [], np.empty((0, 0), np.float32)
        vectors = file.get_tensor("vectors")
        if len(vectors) != len(keys) or _digest({"keys": keys, "vectors": vectors}) != file.metadata()["sha256"]:
            raise ValueError("damaged")
    return [held[line] for line in lines], vectors[lines]


def _digest(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(np.ascontiguousarray(tensors[name]))
    return digest.hexdigest()
