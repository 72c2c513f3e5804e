"""AsymRec (arXiv 2605.14512) over both views of an item, with FlexCode's split (arXiv 2511.20673). Neither paper has it.

In words: MSP reads the content's vector and the collaborative one side by side; the next item is written as M facets of L codes, of
which a router makes the more collaborative the more popular the item is (`quantize/facets.py`). Network, objective and training are
AsymRec's; the collaborative vectors are of training interactions alone (`both.py`).
"""

from __future__ import annotations

from asymrec.config import Recipe
from asymrec.models.asymrec import AsymRec, Network
from asymrec.models.both import BothViews
from asymrec.quantize.facets import DualMHQ
from asymrec.quantize.router import FEATURES


class AsymRecBoth(BothViews, AsymRec):
    """Settings as in `asymrec.config`, by name: `AsymRecBoth(facets=16, allocation="fixed", epochs=40, seed=1)`.

    `catalogue()` gives vectors [semantic | collaborative | popularity features], as `DualMHQ` reads them.
    """

    name = "asymrec+collaborative"
    uses = AsymRec.uses | Recipe.leaves_of("flexcode") - {"staged", "router_epochs", "alignment", "alignment_temperature"}
    quantizer: DualMHQ

    def _quantizer(self) -> DualMHQ:
        return DualMHQ(seed=self.recipe.training.seed, **self._facets(), **self.recipe.flexcode.model_dump())

    def _network(self, n_items: int) -> Network:
        read = self._prepared["vectors"].shape[1] - FEATURES  # the features are the router's
        return super()._network(n_items, 2 * self.recipe.quantizer.codewords, read)
