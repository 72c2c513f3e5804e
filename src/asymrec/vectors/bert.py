"""Sentence vectors by a BERT-family encoder, in plain torch.

Devlin et al., "BERT" (arXiv 1810.04805), pooled as in Reimers & Gurevych, "Sentence-BERT" (arXiv 1908.10084): tokens attend to all
tokens, each block is x = norm(x + attention(x)), x = norm(x + ffn(x)); the vector is the mean over tokens (or the first token, where
the model's folder says so), scaled to length 1. Equal to sentence-transformers within rounding; differs in that texts are batched by
length under a budget of tokens, and in bfloat16 where the processor is faster with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from asymrec.device import choose_device, choose_precision
from asymrec.errors import VectorError
from asymrec.threads import spread

BATCH_TOKENS = 2048  # enough for the matrix products to be efficient, small enough that activations stay in cache
FILES = ("config.json", "model.safetensors", "tokenizer.json")


class BertEncoder:
    """A folder with config.json, model.safetensors and tokenizer.json of a BERT model.

    Raises VectorError: a file is missing or damaged, or the model is not of this family (see `fits`).
    """

    def __init__(self, folder: Path, precision: str = "auto"):
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        try:
            self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            self.pooling = _pooling(folder)
            weights = load_file(folder / "model.safetensors")
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.device = choose_device()
            self.dtype = choose_precision(precision, self.device)
            self._load({name.removeprefix("bert."): tensor for name, tensor in weights.items()})
        except Exception as error:  # tokenizers and safetensors raise their own kinds
            raise VectorError(f"cannot read the encoder in {folder}: {' '.join(str(error).split())}") from None

    @staticmethod
    def fits(folder: Path) -> bool:
        """Is the model in this folder one that this class computes exactly?"""
        if not all((folder / name).is_file() for name in FILES):
            return False
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            prompts = folder / "config_sentence_transformers.json"
            prompted = prompts.is_file() and json.loads(prompts.read_text(encoding="utf-8")).get("default_prompt_name")
            modules = folder / "modules.json"
            kinds = [module["type"] for module in json.loads(modules.read_text(encoding="utf-8"))] if modules.is_file() else []
            return (
                config.get("model_type") == "bert"
                and config.get("hidden_act") == "gelu"
                and config.get("position_embedding_type", "absolute") == "absolute"
                and {kind.rsplit(".", 1)[-1] for kind in kinds} <= {"Transformer", "Pooling", "Normalize"}
                and _pooling(folder) in ("mean", "first")
                and not prompted
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return False

    def _load(self, weights: dict[str, torch.Tensor]) -> None:
        def get(name: str) -> torch.Tensor:
            return weights[name].to(self.device, self.dtype)

        def pair(name: str) -> tuple[torch.Tensor, torch.Tensor]:
            return get(f"{name}.weight"), get(f"{name}.bias")

        self.words, self.positions = get("embeddings.word_embeddings.weight"), get("embeddings.position_embeddings.weight")
        self.segment, self.norm = get("embeddings.token_type_embeddings.weight")[0], pair("embeddings.LayerNorm")
        self.blocks = []
        for layer in range(self.config["num_hidden_layers"]):
            at = f"encoder.layer.{layer}."
            projections = [pair(f"{at}attention.self.{name}") for name in ("query", "key", "value")]
            self.blocks.append(
                {
                    "qkv": tuple(torch.cat(parts) for parts in zip(*projections)),
                    "out": pair(f"{at}attention.output.dense"),
                    "norm": pair(f"{at}attention.output.LayerNorm"),
                    "up": pair(f"{at}intermediate.dense"),
                    "down": pair(f"{at}output.dense"),
                    "last": pair(f"{at}output.LayerNorm"),
                }
            )

    def encode(self, texts: list[str], max_tokens: int, advance: Callable[[int], None] = lambda texts: None) -> np.ndarray:
        """float32 [n, d], each of length 1. `advance` is told how many texts are done."""
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(min(max_tokens, len(self.positions)))
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        lengths = np.array([len(ids) for ids in tokens], np.int64)
        order = np.argsort(-lengths, kind="stable")
        out = np.empty((len(texts), self.words.shape[1]), np.float32)

        @torch.inference_mode()
        def run(batch: np.ndarray) -> None:
            widths = torch.from_numpy(lengths[batch])
            ids = torch.zeros(len(batch), int(widths[0]), dtype=torch.int64)
            for line, text in enumerate(batch):
                ids[line, : lengths[text]] = torch.tensor(tokens[text])
            out[batch] = self._forward(ids.to(self.device), widths.to(self.device)).cpu().numpy()
            advance(len(batch))

        batches, start = [], 0
        while start < len(order):  # the first of a batch is its longest
            batches.append(order[start : start + max(1, BATCH_TOKENS // int(lengths[order[start]]))])
            start += len(batches[-1])
        if self.device.type == "cpu":
            spread(run, batches)
        else:
            for batch in batches:
                run(batch)
        return out

    def _forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """ids [b, t], lengths [b] -> float32 [b, d]"""
        b, t = ids.shape
        eps, heads = self.config.get("layer_norm_eps", 1e-12), self.config["num_attention_heads"]
        real = torch.arange(t, device=ids.device) < lengths[:, None]
        mask = None if bool(real.all()) else real[:, None, None, :]
        x = F.embedding(ids, self.words) + self.positions[:t] + self.segment
        d = x.shape[-1]
        x = F.layer_norm(x, (d,), *self.norm, eps)
        for block in self.blocks:
            q, k, v = F.linear(x, *block["qkv"]).view(b, t, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(b, t, d)
            x = F.layer_norm(x + F.linear(mixed, *block["out"]), (d,), *block["norm"], eps)
            inner = F.gelu(F.linear(x, *block["up"]))
            x = F.layer_norm(x + F.linear(inner, *block["down"]), (d,), *block["last"], eps)
        x = x.float()
        pooled = x[:, 0] if self.pooling == "first" else (x * real[..., None]).sum(1) / lengths[:, None]
        return F.normalize(pooled, dim=-1)


def _pooling(folder: Path) -> str:
    """`mean`, `first`, or another name that this encoder does not compute."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    config = json.loads(path.read_text(encoding="utf-8"))
    modes = [name for name, on in config.items() if name.startswith("pooling_mode") and on is True]
    modes = modes or [f"pooling_mode_{config.get('pooling_mode')}_token"]
    return {"pooling_mode_mean_tokens": "mean", "pooling_mode_mean_token": "mean", "pooling_mode_cls_token": "first"}.get(
        modes[0] if len(modes) == 1 else "", "other"
    )
