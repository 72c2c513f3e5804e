"""Metrics over the whole catalogue, both history protocols, slices, comparisons and the report page."""

from asymrec.evaluation.compare import Comparison, paired_bootstrap
from asymrec.evaluation.protocol import Evaluation, evaluate

__all__ = ["Comparison", "Evaluation", "evaluate", "paired_bootstrap"]
