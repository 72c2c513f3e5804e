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

SAMPLE = 3  # items whose vectors are made anew before the first new one
FAR = 0.1  # of their length; an encoder in bfloat16 is off by a hundredth
STRANGE = (
    "the items' vectors were not made from their table, as those of a new item would be (were they given to `fit`?): new items have no "
    "place among them"
)


class Placer:
    """Makes vectors for new items; the encoder is read once and kept.

    Args:
        items: the fitted catalogue's item table.
        item_column: its column of ids.
        config: what the catalogue's vectors were made of.
        vectors: float32 [n_items, d], the catalogue's own.
    Raises PlacingError: a view that has no place for new items; vectors that are not made of these columns at all.
    """

    def __init__(self, items: pa.Table, item_column: str, config: VectorsConfig, vectors: np.ndarray):
        self.config, self.schema, self.item_column = config, items.schema, item_column
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
        if self.text_width < bool(self.columns) or (not self.columns and sum(widths.values()) + config.collaborative != self.width):
            raise PlacingError(STRANGE)
        self._encoder: Encoder | None = None
        self._known = self._sample(items, vectors)

    @property
    def encoder(self) -> Encoder:
        if self._encoder is None:
            self._encoder = find_encoder(self.config.encoder)
        return self._encoder

    def _sample(self, items: pa.Table, vectors: np.ndarray) -> tuple[pa.Table, np.ndarray] | None:
        """A few items that have all that vectors are made of, and the vectors that they have."""
        full = np.ones(items.num_rows, bool)
        if self.columns:
            full &= np.array([bool(text.strip()) for text in item_texts(items, self.columns)], bool)
        for view in self.widths:
            full &= items[view].is_valid().to_numpy()
        rows = np.flatnonzero(full)
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).astype(int)]
        return (items.take(rows), vectors[rows]) if len(rows) else None

    def _check(self, items: pa.Table, vectors: np.ndarray) -> None:
        """Make the sample's vectors anew. Raises PlacingError: they are nowhere near those that the catalogue has, which therefore came
        from elsewhere."""
        content = slice(0, self.width - self.config.collaborative)
        try:
            made, held = self._made(items)[:, content], vectors[:, content]
            far = np.linalg.norm(made - held, axis=1) > FAR * np.linalg.norm(held, axis=1)
        except ValueError:  # of another width
            far = np.ones(1, bool)
        if far.all():
            raise PlacingError(STRANGE)

    def vectors(self, items: pa.Table) -> np.ndarray:
        """float32 [n, d] of new items, whose table has the columns of the catalogue's. Raises PlacingError: no text, no vector."""
        known, self._known = self._known, None  # of several threads one may check
        if known is not None:
            self._check(*known)
        return self._made(items)

    def _made(self, items: pa.Table) -> np.ndarray:
        parts = []
        if self.columns:
            texts = item_texts(items, self.columns)
            if self.others and not all(texts):
                texts = [text or other for text, other in zip(texts, item_texts(items, self.others))]
            if not all(text.strip() for text in texts) and not self.widths:
                where = next(line for line, text in enumerate(texts) if not text.strip())
                wanted = ", ".join((*self.columns, *self.others))
                raise PlacingError(f"item {str(items[self.item_column][where])[:80]!r} has no text: give one of {wanted}")
            if any(texts):
                parts.append(text_vectors(texts, self.encoder, self.config.max_tokens, cache=False, progress=False) * self.text_scale)
            else:
                parts.append(np.zeros((len(texts), self.text_width), np.float32))
        for view, width in self.widths.items():
            try:
                made = column_vectors(items[view], view, items[self.item_column])
            except VectorError as error:
                raise PlacingError(str(error)) from None
            if made.shape[1] != width or not np.isfinite(made).all():
                raise PlacingError(f"'{view}' must hold {width} finite numbers")
            parts.append((made * self.scales[view]).astype(np.float32))
        made = np.concatenate(parts, axis=1) if parts else np.zeros((items.num_rows, 0), np.float32)
        return np.pad(made, ((0, 0), (0, self.width - made.shape[1]))).astype(np.float32)
