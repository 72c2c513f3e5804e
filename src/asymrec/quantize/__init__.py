"""Item vectors to discrete codes and back: one paper a file, one contract (`base.py`)."""

from asymrec.quantize.base import Quantizer
from asymrec.quantize.mhq import MHQ

__all__ = ["MHQ", "Quantizer"]
