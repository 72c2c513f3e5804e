"""Retrieve, then rank: a recommender finds `candidates` items, a ranker says of each how likely the user takes it next, and the list is
ordered by both.

In words: the final score of a candidate is log p(item | candidates) of retrieval + w * logit of the ranker. w is chosen on the
validation targets, items of the history taken out as `recommend` does, among WEIGHTS, where 0 is retrieval alone and infinity the
ranker alone, so ranking cannot do harm that validation shows. What was not retrieved keeps retrieval's order behind the candidates.
The ranker learns from the training part alone (ranking/asked.py); the test is looked at once.

A pipeline is a folder:

    retrieval/      an ordinary run folder
    ranker/         weights, vocabularies, schema, settings
    users.parquet   what is known of users, in their rows' order
    pipeline.json   weight, settings, metrics; written last
    checkpoint/     all that a fit works on, while it does

A fit works in checkpoint/ alone and goes on from there; the finished folder takes its place in one step.
"""

from asymrec.pipeline.fitting import fit_pipeline
from asymrec.pipeline.pipeline import Pipeline, is_pipeline, read_pipeline
from asymrec.pipeline.stages import evaluate_pipeline

__all__ = ["Pipeline", "evaluate_pipeline", "fit_pipeline", "is_pipeline", "read_pipeline"]
