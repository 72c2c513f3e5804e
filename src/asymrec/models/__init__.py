from asymrec.models.asymrec import AsymRec
from asymrec.models.base import MODELS, Recommender
from asymrec.models.classic import ItemKNN, Popularity

__all__ = ["MODELS", "AsymRec", "ItemKNN", "Popularity", "Recommender"]
