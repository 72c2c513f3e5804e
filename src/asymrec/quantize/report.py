"""How good a catalogue's codes are: what the vectors lost, and how the codebooks are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from asymrec.quantize.distinct import differ, identical

if TYPE_CHECKING:
    from asymrec.quantize.base import Quantizer


def report(quantizer: Quantizer, vectors: np.ndarray, codes: np.ndarray | None = None, queries: int = 2000) -> dict[str, Any]:
    """Facts about the codes [n, n_codes] of a catalogue's vectors [n, d], ready for JSON. Shares are in 0 .. 1.

    - r2: of the decoded vectors; neighbour_recall: share of an item's 10 nearest (cosine) that are among the 10 nearest of its
      decoded vector, over at most `queries` items drawn by a fixed seed
    - perplexity, dead_codes [facets][levels]: exp of the entropy of usage; codewords that no item has
    - dead_codebooks: codebooks of perplexity below 2; usage_gini: 0 when all codewords are used alike, the mean over items; of both,
      learned levels that items have
    - identical_ids, shared_ids (before the repair), repaired_*: share of items whose id another item has; with another vector
    - and what the kind of quantizer adds (`details`)
    """
    raw = quantizer.encode(vectors)
    codes = quantizer.catalogue(vectors, raw) if codes is None else np.asarray(codes)
    kept, decoded = quantizer.compared(vectors), quantizer.compared(quantizer.decode(codes))
    usage, shape = quantizer.usage(codes)
    perplexity = np.array([_perplexity(counts) for counts in usage])
    details = quantizer.details(vectors, codes)
    fitted = details.get("codewords_fitted")
    learned = np.arange(len(usage)) % shape[1] < details.get("learned_levels", shape[1])
    items = np.array([counts.sum() for counts in usage])  # where codes are shared between branches, a codebook may have few, or none
    used = learned & (items > 0)
    facts = {
        "items": len(vectors),
        "width": vectors.shape[1],
        "code_shape": list(shape),
        "codewords": max(map(len, usage)),
        **details,
        "r2": _r2(kept, decoded),
        "neighbour_recall": neighbour_recall(kept, decoded, queries=queries),
        "perplexity": perplexity.reshape(shape).round(3).tolist(),
        "dead_codes": np.array([(c[:fitted] == 0).sum() for c in usage]).reshape(shape).tolist(),
        "dead_codebooks": int((perplexity < np.minimum(items, 2))[used].sum()),
        "usage_gini": float(np.average([_gini(counts[:fitted]) for counts, known in zip(usage, used) if known], weights=items[used])),
    }
    facts["identical_ids"], facts["shared_ids"] = _identical_shares(raw, vectors)
    facts["repaired_identical_ids"], facts["repaired_shared_ids"] = _identical_shares(codes, vectors)
    return facts


def neighbour_recall(vectors: np.ndarray, decoded: np.ndarray, k: int = 10, queries: int = 2000) -> float:
    """Share of the k nearest by cosine that stay among the k nearest when both the item and the others are decoded from codes."""
    n = len(vectors)
    k = min(k, n - 1)
    if k < 1:
        return 1.0
    rows = np.arange(n) if n <= queries else np.sort(np.random.default_rng(0).choice(n, queries, replace=False))
    found = 0
    for chunk in np.array_split(rows, -(-len(rows) // 512)):
        truth, ours = _neighbours(vectors, chunk, k), _neighbours(decoded, chunk, k)
        found += int((truth.unsqueeze(2) == ours.unsqueeze(1)).sum())
    return found / (len(rows) * k)


def describe(facts: dict[str, Any]) -> str:
    """The report as a few lines for people."""
    facets, levels = facts["code_shape"]
    learned = facts.get("learned_levels", levels)
    perplexity, dead = np.array(facts["perplexity"]), np.array(facts["dead_codes"])[:, :learned]
    fitted = facts.get("codewords_fitted", facts["codewords"])
    lines = [f"{facts['items']:,} items of width {facts['width']}: {facets} facets x {levels} levels x {facts['codewords']} codewords"]
    if fitted < facts["codewords"]:
        lines.append(f"only {fitted} codewords of each codebook are fitted: the items are few")
    if "energy_kept" in facts:
        lines.append(f"energy kept           {facts['energy_kept']:.1%} (at the start {facts['energy_kept_start']:.1%})")
        lines.append(f"spread over facets    {facts['energy_imbalance']:.1%} of the mean energy")
    if "space_r2" in facts:
        lines.append("R2 after each level   " + "  ".join(f"{value:.3f}" for value in facts["space_r2"]))
    lines += [
        f"R2 of the vectors     {facts['r2']:.3f}",
        f"neighbours kept       {facts['neighbour_recall']:.1%} of the nearest 10",
        "perplexity by level   " + "  ".join(f"{m:.0f} (least {low:.0f})" for m, low in zip(perplexity.mean(0), perplexity.min(0))),
        f"unused codewords      {dead.sum():,} of {facets * learned * fitted:,}; dead codebooks: {facts['dead_codebooks']}",
        f"usage Gini            {facts['usage_gini']:.3f}",
        f"identical ids         {facts['identical_ids']:.2%} of items, {facts['shared_ids']:.2%} with another vector; "
        f"after the repair {facts['repaired_identical_ids']:.2%}, {facts['repaired_shared_ids']:.2%}",
    ]
    return "\n".join(lines)


def _neighbours(vectors: np.ndarray, rows: np.ndarray, k: int) -> torch.Tensor:
    """The k nearest other rows by cosine [queries, k], in pieces of the catalogue."""
    asked = torch.nn.functional.normalize(torch.from_numpy(vectors[rows]), dim=1)
    best, where = torch.full((len(rows), 0), 0.0), torch.zeros((len(rows), 0), dtype=torch.int64)
    for start in range(0, len(vectors), 32768):
        block = torch.nn.functional.normalize(torch.from_numpy(vectors[start : start + 32768]), dim=1)
        scores = asked @ block.T
        inside = np.flatnonzero((rows >= start) & (rows < start + len(block)))
        scores[inside, rows[inside] - start] = -2.0
        top, at = scores.topk(min(k, len(block)), dim=1)
        best, where = torch.cat((best, top), 1), torch.cat((where, at + start), 1)
        best, at = best.topk(min(k, best.shape[1]), dim=1)
        where = where.gather(1, at)
    return where


def _r2(vectors: np.ndarray, decoded: np.ndarray) -> float:
    mean, error, total = vectors.mean(axis=0, dtype=np.float64), 0.0, 0.0
    for start in range(0, len(vectors), 65536):
        block = vectors[start : start + 65536].astype(np.float64)
        error += np.square(block - decoded[start : start + 65536]).sum()
        total += np.square(block - mean).sum()
    return float(1 - error / max(total, 1e-300))


def _perplexity(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _gini(counts: np.ndarray) -> float:
    ranked = np.sort(counts)
    n = len(ranked)
    return float((2 * np.arange(1, n + 1) - n - 1) @ ranked / (n * max(ranked.sum(), 1)))


def _identical_shares(codes: np.ndarray, vectors: np.ndarray) -> tuple[float, float]:
    """Share of items whose id another item has, and whose id an item with another vector has."""
    groups = identical(codes)
    mixed = [rows for rows in groups if differ(vectors[rows], vectors[rows[0]]).any()]
    return sum(map(len, groups)) / len(codes), sum(map(len, mixed)) / len(codes)
