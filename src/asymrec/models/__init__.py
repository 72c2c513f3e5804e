from asymrec.models.asymrec import AsymRec
from asymrec.models.asymrec_both import AsymRecBoth
from asymrec.models.base import MODELS, Recommender
from asymrec.models.classic import EASE, Counts, ItemKNN, Popularity
from asymrec.models.flexcode import FlexCode
from asymrec.models.fusion import Fusion
from asymrec.models.hstu import HSTU
from asymrec.models.rpg import RPG
from asymrec.models.sasrec import SASRec, SASRecContent
from asymrec.models.tiger import Tiger

__all__ = [
    "EASE",
    "HSTU",
    "MODELS",
    "RPG",
    "AsymRec",
    "AsymRecBoth",
    "Counts",
    "FlexCode",
    "Fusion",
    "ItemKNN",
    "Popularity",
    "Recommender",
    "SASRec",
    "SASRecContent",
    "Tiger",
]
