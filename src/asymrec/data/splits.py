"""Splits into training, validation and test: the last of each user left out, or everything after a point in time.

Leave-last-out (Kang & McAuley, "Self-Attentive Sequential Recommendation", arXiv 1808.09781): a user's last interaction is the
test target, the one before it the validation target, the rest is trained on. The test history holds the validation target.

Global time: the latest share of all interactions is the test, the share before it the validation; a user's targets are the
distinct items inside the window and the history is all that lies before the window. Equal times fall on one side of a cut.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np

from asymrec.data.sequences import Sequences
from asymrec.errors import ConfigError, DataError

_LEAST = 3  # interactions that a user needs for one of each: training, validation, test


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

    left_out: users of the data set of whom no part is in the split.
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


def split(sequences: Sequences, name: str = "leave-last-out", validation_share: float = 0.1, test_share: float = 0.1) -> Split:
    """Split all users' sequences.

    name: `leave-last-out`, or `time` with the shares of the interactions that validation and test get.
    Raises ConfigError: unknown name, impossible shares. DataError: too little data, or `time` and the data has no times.
    """
    if name == "leave-last-out":
        return leave_last_out(sequences)
    if name == "time":
        return by_time(sequences, validation_share, test_share)
    near = difflib.get_close_matches(name, ["leave-last-out", "time"], n=1, cutoff=0.4)
    raise ConfigError(f"unknown split '{name}'; {f'did you mean {near[0]!r}?' if near else 'known are leave-last-out, time'}")


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


def _distinct(sequences: Sequences) -> Sequences:
    """Each sequence without repetitions, in the order of first appearance; without times."""
    owners = sequences.owners
    pairs = owners * (int(sequences.items.max()) + 1) + sequences.items
    _, first = np.unique(pairs, return_index=True)
    first.sort()
    offsets = np.zeros(len(sequences) + 1, np.int64)
    np.cumsum(np.bincount(owners[first], minlength=len(sequences)), out=offsets[1:])
    return Sequences(offsets, sequences.items[first])
