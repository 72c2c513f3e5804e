"""Generative recommendation: continuous item vectors in, long structured discrete codes out.

>>> from asymrec import AsymRec, Dataset
>>> model = AsymRec().fit(Dataset.read("my-data"))          # doctest: +SKIP
>>> ids, scores = model.recommend(users=["anna"], k=10)     # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from asymrec.version import __version__

if TYPE_CHECKING:
    from asymrec.config import Recipe
    from asymrec.data import Dataset
    from asymrec.evaluation import evaluate
    from asymrec.models import (
        EASE,
        HSTU,
        RPG,
        AsymRec,
        AsymRecBoth,
        Counts,
        FlexCode,
        Fusion,
        ItemKNN,
        Popularity,
        Recommender,
        SASRec,
        SASRecContent,
        Tiger,
    )
    from asymrec.quantize import MHQ

_HOMES = {
    "AsymRec": "models",
    "AsymRecBoth": "models",
    "Counts": "models",
    "Dataset": "data",
    "EASE": "models",
    "FlexCode": "models",
    "Fusion": "models",
    "HSTU": "models",
    "ItemKNN": "models",
    "MHQ": "quantize",
    "Popularity": "models",
    "RPG": "models",
    "Recipe": "config",
    "Recommender": "models",
    "SASRec": "models",
    "SASRecContent": "models",
    "Tiger": "models",
    "evaluate": "evaluation",
}
__all__ = [
    "EASE",
    "HSTU",
    "MHQ",
    "RPG",
    "AsymRec",
    "AsymRecBoth",
    "Counts",
    "Dataset",
    "FlexCode",
    "Fusion",
    "ItemKNN",
    "Popularity",
    "Recipe",
    "Recommender",
    "SASRec",
    "SASRecContent",
    "Tiger",
    "__version__",
    "evaluate",
]


def __getattr__(name: str):
    # names are looked up when they are used: the command line answers --help without loading torch
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"asymrec.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'asymrec' has no attribute '{name}'")
