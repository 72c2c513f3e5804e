"""The parts of an RQ-VAE in training: encoder and decoder (MLP, ReLU), codebooks that follow the latents, and the descent.

See `rqvae.py` for the paper and what differs from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from asymrec.config import RQVAEConfig
from asymrec.errors import QuantizerError
from asymrec.quantize import kmeans

DECAY, HORIZON = 0.99, 1 / 40  # of the moving averages that codewords are; they look back over at most this share of the steps
WARMUP = 0.02  # share of the steps in which the learning rate rises
START_ITEMS = 2**16
START_STEPS, FINAL_STEPS = 15, 2  # rounds of k-means a level
LARGE = 1e6  # a latent beyond this: the training diverges

Layers = list[tuple[Tensor, Tensor]]  # weight [out, in] and bias [out] of each


@dataclass
class Autoencoder:
    """Encoder, decoder and L codebooks over standardised vectors; fitted: codewords of a codebook that are in use."""

    config: RQVAEConfig
    encoder: Layers
    decoder: Layers
    codebooks: kmeans.MovingAverages
    fitted: int

    @classmethod
    def start(cls, x: Tensor, weights: Tensor, config: RQVAEConfig, batch: int, steps: int, generator: torch.Generator) -> Autoencoder:
        """Layers by chance, codebooks by k-means.

        Args:
            x: float32 [n, d], standardised; weights: [n].
            batch, steps: of the training to come, which the codebooks' memory is set by.
        """
        widths = x.shape[1], *config.hidden, config.latent
        encoder, decoder = new_layers(widths, generator), new_layers(widths[::-1], generator)
        fitted = kmeans.codewords_for(len(x), config.rqvae_codewords)
        rows = torch.randperm(len(x), generator=generator)[:START_ITEMS].sort().values
        with torch.no_grad():
            latents = mlp(x[rows], encoder).unsqueeze(0)
        start = kmeans.residual_start(latents, config.rqvae_levels, fitted, weights[rows], START_STEPS, generator)
        least = max(0.5 * batch / len(x), 0.01 * batch / fitted)  # half an item of the catalogue, or 1 % of an even share
        decay = min(DECAY, max(0.5, 1 - 1 / (HORIZON * max(1, steps))))
        return cls(config, encoder, decoder, kmeans.MovingAverages(start, decay, least, generator), fitted)

    @property
    def parameters(self) -> list[Tensor]:
        return [parameter for layer in self.encoder + self.decoder for parameter in layer]

    def read(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A batch [b, d], which the codebooks take in -> latents z [b, w]; what each level leaves of them, r_l - e_l, as constants
        [L, b, w]; the commitment loss of each item [b]."""
        latent = mlp(x, self.encoder)
        fixed = sane(latent.detach())
        left = self.codebooks.step(fixed.unsqueeze(0), weight)[:, 0]
        # r_l - sg[e_l] is z less a constant: the sum of the codewords up to level l
        return latent, left, (latent - (fixed - left)).square().mean(2).sum(0)

    def loss(self, x: Tensor, weight: Tensor) -> Tensor:
        """Reconstruction and commitment of a batch [b, d]; the codebooks take it in."""
        latent, left, commitment = self.read(x, weight)
        rebuilt = mlp(latent - left[-1], self.decoder)  # straight through: the value of the codewords, the gradient of the latent
        error = functional.mse_loss(rebuilt, x, reduction="none").mean(1)
        return ((error + self.config.commitment * commitment) * weight).mean()

    def tensors(self, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """What was learned, once each codeword is on the mean of the items that choose it."""
        with torch.no_grad():
            latents = sane(mlp(x, self.encoder)).unsqueeze(0)
        settled = kmeans.residual_settle(latents, torch.stack(self.codebooks.codebooks, 1), weights, FINAL_STEPS, self.codebooks.generator)
        tensors = {"codebooks": kmeans.repeated(settled[0], self.config.rqvae_codewords), "fitted": torch.tensor(self.fitted)}
        for part, layers in (("encoder", self.encoder), ("decoder", self.decoder)):
            for layer, (weight, bias) in enumerate(layers):
                tensors |= {f"{part}.{layer}.weight": weight.detach(), f"{part}.{layer}.bias": bias.detach()}
        return tensors


def descend(
    parameters: list[Tensor], n: int, batch: int, epochs: int, rate: float, generator: torch.Generator, loss: Callable[[Tensor], Tensor]
) -> None:
    """AdamW over `epochs` passes of n rows; loss: row numbers of a batch -> scalar."""
    steps = epochs * (n // batch)
    optimizer = torch.optim.AdamW(parameters, lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step, steps))
    for _ in range(epochs):
        order = torch.randperm(n, generator=generator)
        for rows in order[: n - n % batch].split(batch):
            value = loss(rows)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()


def new_layers(widths: tuple[int, ...], generator: torch.Generator) -> Layers:
    """Layers from each width to the next; weights even in +-sqrt(6 / in), as suits ReLU (He et al., 2015), biases 0."""
    layers = []
    for inner, outer in pairwise(widths):
        weight = (2 * torch.rand(outer, inner, generator=generator) - 1) * math.sqrt(6 / inner)
        layers.append((weight.requires_grad_(), torch.zeros(outer, requires_grad=True)))
    return layers


def mlp(x: Tensor, layers: Layers) -> Tensor:
    """x [n, in] through the layers, ReLU between them."""
    for place, (weight, bias) in enumerate(layers):
        x = functional.linear(functional.relu(x) if place else x, weight, bias)
    return x


def sane(latents: Tensor) -> Tensor:
    if not latents.abs().max() < LARGE:  # also when not a number
        raise QuantizerError("the training of RQVAE diverges: lower rqvae_rate")
    return latents


def _share_of_rate(step: int, steps: int) -> float:
    """Share of the learning rate at a step: a linear rise, under half a cosine down to 0."""
    return min(1.0, (step + 1) / max(1.0, WARMUP * steps)) * 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))
