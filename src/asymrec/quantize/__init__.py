"""Item vectors to discrete codes and back: one paper a file, one contract (`base.py`)."""

from asymrec.quantize.base import Quantizer
from asymrec.quantize.dual import DualCodebook
from asymrec.quantize.facets import DualMHQ
from asymrec.quantize.mhq import MHQ
from asymrec.quantize.product import ProductQuantizer
from asymrec.quantize.rqvae import RQVAE

__all__ = ["MHQ", "RQVAE", "DualCodebook", "DualMHQ", "ProductQuantizer", "Quantizer"]
