"""Item vectors: text through a sentence encoder, views that the user brings, and what the interactions tell."""

from asymrec.vectors.collaborative import collaborative_vectors
from asymrec.vectors.columns import item_vectors, read_view
from asymrec.vectors.text import item_texts, text_vectors

__all__ = ["collaborative_vectors", "item_texts", "item_vectors", "read_view", "text_vectors"]
