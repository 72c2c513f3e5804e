"""Ranking: the probability that a user, in a context, after a history, takes an item that was retrieved."""

from asymrec.ranking.examples import ExamplesConfig, Impressions, Parts, make
from asymrec.ranking.ranker import RANKERS, Ranker, RankerConfig
from asymrec.ranking.rivals import DCNv2, DeepFM, Interest, Linear
from asymrec.ranking.schema import Schema, Tables
from asymrec.ranking.tokenformer import TokenFormer

__all__ = [
    "RANKERS",
    "DCNv2",
    "DeepFM",
    "ExamplesConfig",
    "Impressions",
    "Interest",
    "Linear",
    "Parts",
    "Ranker",
    "RankerConfig",
    "Schema",
    "Tables",
    "TokenFormer",
    "make",
]
