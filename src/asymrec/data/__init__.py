"""From tables to sequences, splits and packed batches."""

from asymrec.data.dataset import Dataset
from asymrec.data.sequences import Sequences
from asymrec.data.splits import Examples, Split

__all__ = ["Dataset", "Examples", "Sequences", "Split"]
