"""Item vectors: text through a sentence encoder, and views that the user brings."""

from asymrec.vectors.columns import item_vectors, read_view
from asymrec.vectors.text import item_texts, text_vectors

__all__ = ["item_texts", "item_vectors", "read_view", "text_vectors"]
