"""Splits into training, validation and test: the last of each user left out, its last time step, or everything after a point in time.

Leave-last-out (Kang & McAuley, "Self-Attentive Sequential Recommendation", arXiv 1808.09781): a user's last interaction is the
test target, the one before it the validation target, the rest is trained on. The test history holds the validation target.

Untied: where times are coarse (days) the order of interactions at one time is the file's, not the user's, and must neither be learned
nor asked for. The targets are all distinct items of a user's last time step (test) and of the step before it (validation), a history
is what lies at strictly earlier times, training is all before the validation step. Inside a time step the order is drawn by the seed,
in training and histories alike, so that the order of the file has no influence at all.

Global time: the latest share of all interactions is the test, the share before it the validation; a user's targets are the
distinct items inside the window and the history is all that lies before the window. Equal times fall on one side of a cut.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np

from asymrec.data.sequences import Sequences
from asymrec.errors import ConfigError, DataError

NAMES = ("leave-last-out", "untied", "time")
_LEAST = 3  # interactions, or time steps, that a user needs for one of each: training, validation, test


@dataclass(frozen=True, eq=False)
class Examples:
    """Users whose next items are to be ranked.

    users: int32 [n], rows of the data set. histories: n sequences, none empty. targets: n sets of distinct items, none empty.
    """

    users: np.ndarray
    histories: Sequences
    targets: Sequences

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: np.ndarray) -> Examples:
        """The examples `rows` (int [m]), in that order."""
        return Examples(self.users[rows], self.histories.take(rows), self.targets.take(rows))


@dataclass(frozen=True, eq=False)
class Split:
    """train: sequences of at least one interaction; train_users: int32 [len(train)], whose they are.

    left_out: users with too little for the split. `leave-last-out`: fewer than three interactions, in no part. `untied`: fewer than
    three distinct times, trained on whole and neither validated nor tested. `time`: in no part.
    """

    name: str
    train: Sequences
    train_users: np.ndarray
    validation: Examples
    test: Examples
    left_out: int

    def train_counts(self, n_items: int) -> np.ndarray:
        """int64 [n_items]: training interactions of each item; 0 for a cold item."""
        return np.bincount(self.train.items, minlength=n_items)


def split(
    sequences: Sequences, name: str = "leave-last-out", validation_share: float = 0.1, test_share: float = 0.1, seed: int = 0
) -> Split:
    """Split all users' sequences.

    name: `leave-last-out`; `untied`, with the seed that orders equal times; or `time`, with the shares of the interactions that
    validation and test get.
    Raises ConfigError: unknown name, impossible shares. DataError: too little data, or no times where they are needed.
    """
    if name == "leave-last-out":
        return leave_last_out(sequences)
    if name == "untied":
        return untied(sequences, seed)
    if name == "time":
        return by_time(sequences, validation_share, test_share)
    near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.4)
    raise ConfigError(f"unknown split '{name}'; {f'did you mean {near[0]!r}?' if near else 'known are ' + ', '.join(NAMES)}")


def leave_last_out(sequences: Sequences) -> Split:
    """The last interaction for the test, the one before for validation; users with fewer than three are left out."""
    lengths = sequences.lengths
    users = np.flatnonzero(lengths >= _LEAST).astype(np.int32)
    if not len(users):
        raise DataError(f"split leave-last-out: none of the {len(sequences):,} users has {_LEAST} interactions")
    starts, stops = sequences.offsets[:-1][users], sequences.offsets[1:][users]

    def examples(cut: np.ndarray) -> Examples:
        return Examples(users, sequences.between(starts, cut), sequences.between(cut, cut + 1))

    train = sequences.between(starts, stops - 2)
    return Split("leave-last-out", train, users, examples(stops - 2), examples(stops - 1), len(sequences) - len(users))


def untied(sequences: Sequences, seed: int = 0) -> Split:
    """The items of the last time step for the test, those of the step before for validation; users with fewer than three are trained
    on whole: with days for times they are a fifth of Amazon's users, and items would turn cold without them."""
    if sequences.times is None:
        raise DataError("split untied: the interactions have no times; use leave-last-out")
    sequences = _shuffled_ties(sequences, seed)
    owners, times = sequences.owners, sequences.times
    first = np.ones(len(times), bool)  # of its time step
    first[1:] = (owners[1:] != owners[:-1]) | (times[1:] != times[:-1])
    steps, starts = np.bincount(owners[first], minlength=len(sequences)), np.flatnonzero(first)
    users = np.flatnonzero(steps >= _LEAST).astype(np.int32)
    if not len(users):
        raise DataError(f"split untied: none of the {len(sequences):,} users has interactions at {_LEAST} distinct times")
    last = np.cumsum(steps)[users] - 1
    validation, test = starts[last - 1], starts[last]

    def examples(cut: np.ndarray, end: np.ndarray) -> Examples:
        histories = sequences.between(sequences.offsets[:-1][users], cut)
        return Examples(users, histories, _distinct(sequences.between(cut, end), ascending=True))

    stops = np.array(sequences.offsets[1:])
    stops[users] = validation
    train_users = np.flatnonzero(stops > sequences.offsets[:-1]).astype(np.int32)
    train = sequences.between(sequences.offsets[:-1][train_users], stops[train_users])
    ends = sequences.offsets[1:][users]
    return Split("untied", train, train_users, examples(validation, test), examples(test, ends), len(sequences) - len(users))


def by_time(sequences: Sequences, validation_share: float = 0.1, test_share: float = 0.1) -> Split:
    """Cuts before the latest test_share of all interactions and before the validation_share ahead of it; equal times lie after a cut."""
    if not (0 < validation_share < 1 and 0 < test_share < 1 and validation_share + test_share < 1):
        raise ConfigError(f"split time: shares {validation_share} and {test_share} must be positive and leave some for training")
    if sequences.times is None:
        raise DataError("split time: the interactions have no times; use leave-last-out")
    times, n = sequences.times, len(sequences.times)
    second = n - max(1, round(n * test_share))
    first = max(0, second - max(1, round(n * validation_share)))
    ordered = np.partition(times, (first, second))
    validation_cut, test_cut = ordered[first], ordered[second]

    starts, stops = sequences.offsets[:-1], sequences.offsets[1:]
    before_validation, before_test = starts + _count_before(sequences, validation_cut), starts + _count_before(sequences, test_cut)
    train_users = np.flatnonzero(before_validation > starts).astype(np.int32)
    train = sequences.between(starts[train_users], before_validation[train_users])

    def examples(cut: np.ndarray, end: np.ndarray, window: str) -> Examples:
        users = np.flatnonzero((cut > starts) & (end > cut)).astype(np.int32)
        if not len(users):
            raise DataError(f"split time: no user has interactions both before and in the {window} window; other shares may help")
        return Examples(users, sequences.between(starts[users], cut[users]), _distinct(sequences.between(cut[users], end[users])))

    validation = examples(before_validation, before_test, "validation")
    test = examples(before_test, stops, "test")
    seen = np.zeros(len(sequences), bool)
    for users in (train_users, validation.users, test.users):
        seen[users] = True
    return Split("time", train, train_users, validation, test, int((~seen).sum()))


def _count_before(sequences: Sequences, cut: int) -> np.ndarray:
    """int64 [n]: how many interactions of each sequence lie strictly before the cut."""
    running = np.r_[0, np.cumsum(sequences.times < cut)]
    return running[sequences.offsets[1:]] - running[sequences.offsets[:-1]]


def _shuffled_ties(sequences: Sequences, seed: int) -> Sequences:
    """Interactions of one sequence at one time in an order that the seed draws; by item first, so that the order they came in is
    forgotten."""
    owners = sequences.owners
    order = np.lexsort((sequences.items, sequences.times, owners))
    drawn = np.empty(len(order))
    drawn[order] = np.random.default_rng(seed).random(len(order))
    order = np.lexsort((drawn, sequences.times, owners))
    return Sequences(sequences.offsets, sequences.items[order], sequences.times[order])


def _distinct(sequences: Sequences, ascending: bool = False) -> Sequences:
    """Each sequence without repetitions, in the order of first appearance or ascending; without times."""
    owners = sequences.owners
    pairs = owners * (int(sequences.items.max()) + 1) + sequences.items
    _, first = np.unique(pairs, return_index=True)  # in the order of the pairs: ascending in each sequence
    if not ascending:
        first.sort()
    offsets = np.zeros(len(sequences) + 1, np.int64)
    np.cumsum(np.bincount(owners[first], minlength=len(sequences)), out=offsets[1:])
    return Sequences(offsets, sequences.items[first])
