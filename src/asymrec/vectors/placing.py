"""Vectors of items that come after the fit, in the space of those that were there.

Each view of the fitted catalogue is made again for the new items alone and scaled by the number that the catalogue's was scaled by:
text by the same encoder, columns of vectors as they are, collaborative entries zero, as for every item without interactions. A view
whose space depends on all items at once (hashed text, bags of codes) or that lies in a file of its own has no place for a new item.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from asymrec.config import VectorsConfig
from asymrec.errors import PlacingError, VectorError
from asymrec.vectors.columns import column_vectors, usable_views
from asymrec.vectors.encoders import Encoder, find_encoder
from asymrec.vectors.text import item_texts, text_columns, text_vectors


class Placer:
    """Makes vectors for new items; the encoder is read once and kept.

    Args:
        items: the fitted catalogue's item table.
        item_column: its column of ids.
        config: what the catalogue's vectors were made of.
        vectors: float32 [n_items, d], the catalogue's own.
    Raises PlacingError: a view that has no place for new items.
    """

    def __init__(self, items: pa.Table, item_column: str, config: VectorsConfig, vectors: np.ndarray):
        self.config, self.schema = config, items.schema
        self.columns = config.text
        if self.columns is None:
            self.columns = tuple(text_columns(items.drop_columns(item_column)))
        if self.columns and config.encoder == "hashed":
            raise PlacingError("hashed text has no place for new items: fit with encoder=minilm or another sentence encoder")
        views = usable_views(items, config, self.columns)
        for view in views:
            if view not in items.column_names:
                raise PlacingError(f"the vectors in {view} have no line for new items: make them a column of the item table")
        if not self.columns and not views and not config.collaborative:
            raise PlacingError("vectors made from the item table's codes have no place for new items: fit with text or views")
        # an item that comes without the run's text column is read as its other columns of text are written
        self.others = tuple(text_columns(items.drop_columns([item_column, *self.columns]))) if self.columns else ()
        self.width = vectors.shape[1]
        made = {view: column_vectors(items[view], view, empty=True) for view in views}
        widths = {view: own.shape[1] for view, own in made.items()}
        self.text_width = self.width - sum(widths.values()) - config.collaborative if self.columns else 0
        # the views stand side by side, text first; the longest row tells the scale of text, whose vectors have length 1
        self.text_scale = float(np.linalg.norm(vectors[:, : self.text_width], axis=1).max()) if self.columns else 0.0
        self.scales = {view: 1 / float(np.linalg.norm(own.astype(np.float64), axis=1).mean()) for view, own in made.items()}
        self.widths = widths
        self._encoder: Encoder | None = None

    @property
    def encoder(self) -> Encoder:
        if self._encoder is None:
            self._encoder = find_encoder(self.config.encoder)
        return self._encoder

    def vectors(self, items: pa.Table) -> np.ndarray:
        """float32 [n, d] of new items, whose table has the columns of the catalogue's. Raises PlacingError: no text, no vector."""
        parts = []
        if self.columns:
            texts = item_texts(items, self.columns)
            if self.others and not all(texts):
                texts = [text or other for text, other in zip(texts, item_texts(items, self.others))]
            if not all(text.strip() for text in texts) and not self.widths:
                where = next(line for line, text in enumerate(texts) if not text.strip())
                raise PlacingError(f"item {where + 1} of {len(texts)} has no text: give one of {', '.join((*self.columns, *self.others))}")
            if any(texts):
                parts.append(text_vectors(texts, self.encoder, self.config.max_tokens, cache=False, progress=False) * self.text_scale)
            else:
                parts.append(np.zeros((len(texts), self.text_width), np.float32))
        for view, width in self.widths.items():
            try:
                made = column_vectors(items[view], view)
            except VectorError as error:
                raise PlacingError(str(error)) from None
            if made.shape[1] != width or not np.isfinite(made).all():
                raise PlacingError(f"'{view}' must hold {width} finite numbers")
            parts.append((made * self.scales[view]).astype(np.float32))
        made = np.concatenate(parts, axis=1) if parts else np.zeros((items.num_rows, 0), np.float32)
        return np.pad(made, ((0, 0), (0, self.width - made.shape[1]))).astype(np.float32)
