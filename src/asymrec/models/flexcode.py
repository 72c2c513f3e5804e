"""FlexCode, "Semantics Meet Signals: Dual Codebook Representation Learning for Generative Recommendation" (arXiv 2511.20673).

In words: an item's id is L codes, the first of them from a codebook of what users did with it, the others from a codebook of what it
is; popular items have more of the first kind, rare ones more of the second (`quantize/dual.py`). The generator is TIGER's, over these
codes: an encoder-decoder Transformer reads the codes of a history and writes those of the next item, by beam search over real ids.

What differs from the paper:
- Where the paper has a Transformer of its own over the combined codes, this is TIGER's with the same settings, so that the two differ
  in their codes alone. Each level of each branch has one embedding, wherever in an id it stands; the softmax at a place runs over the
  words that some item has there after those before it, as TIGER's does.
- The collaborative vectors are a factorization's or a SASRec's (`both.py`).
- A new item has semantic codes, since the router has no say where there is no collaborative vector, and is found at once.
"""

from __future__ import annotations

from asymrec.config import Recipe
from asymrec.models.both import BothViews
from asymrec.models.tiger import Network, Tiger
from asymrec.quantize.dual import DualCodebook


class FlexCode(BothViews, Tiger):
    """Settings as in `asymrec.config`, by name: `FlexCode(rqvae_levels=4, allocation="fixed", epochs=40, seed=1)`.

    `catalogue()` gives vectors [semantic | collaborative | popularity features], as `DualCodebook` reads them. `scores`, `recommend` and
    `score` as Tiger's.
    """

    name = "flexcode"
    uses = Tiger.uses | Recipe.leaves_of("flexcode")
    quantizer: DualCodebook

    def _quantizer(self) -> DualCodebook:
        return DualCodebook(seed=self.recipe.training.seed, **self.recipe.rqvae.model_dump(), **self.recipe.flexcode.model_dump())

    def _network(self, n_items: int) -> Network:
        return Network(self.recipe, self._prepared["codes"], self.recipe.rqvae.rqvae_codewords, self.quantizer.blocks)
