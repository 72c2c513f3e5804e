"""Packing: every item once, nothing across borders, few empty places, quickly."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asymrec.data import Sequences
from asymrec.data.batches import epoch_batches, pack, place


def beauty_like(n, seed=0):
    """Lengths with the mean 7 and the maximum 50: most are short, a few fill a row."""
    lengths = 3 + np.random.default_rng(seed).geometric(0.22, n)
    lengths[np.random.default_rng(seed + 1).random(n) < 0.02] = 50
    return np.minimum(lengths, 50)


@given(st.lists(st.lists(st.integers(0, 99), max_size=12), max_size=20), st.integers(1, 10), st.randoms())
def test_every_history_lies_whole_in_one_row(histories, width, random):
    rows = random.sample(range(len(histories)), k=len(histories) // 2 + len(histories) % 2)
    packed = pack(Sequences.of(histories), np.array(rows, np.int64), width)
    assert packed.items.shape == packed.segment.shape == packed.position.shape and packed.items.shape[1] == width
    used = np.zeros(packed.items.shape, bool)
    for i, history in enumerate(histories[row] for row in rows):
        kept = history[-width:]
        assert packed.length[i] == len(kept)
        if not kept:
            assert packed.row[i] == -1
            continue
        here = (packed.row[i], slice(packed.start[i], packed.start[i] + len(kept)))
        assert packed.items[here].tolist() == kept
        assert (packed.segment[here] == i).all() and packed.position[here].tolist() == list(range(len(kept)))
        assert not used[here].any()
        used[here] = True
    assert (packed.items[~used] == -1).all() and (packed.segment[~used] == -1).all() and (packed.position[~used] == 0).all()
    kept = [item for row in rows for item in histories[row][-width:]]
    assert packed.items.reshape(-1)[packed.places].tolist() == kept
    assert packed.padding == pytest.approx(1 - used.mean() if used.size else 1)
    assert used.any(axis=1).all()


def test_times_lie_where_their_items_lie():
    histories, times = [[1, 2, 3], [], [4], [5, 6, 7, 8]], [[10, 20, 20], [], [7], [-3, 0, 5, 9]]
    packed = pack(Sequences.of(histories, times), np.array([3, 0, 2, 1, 0]), 3)
    assert packed.times.dtype == np.int64 and packed.times.shape == packed.items.shape
    assert packed.times.reshape(-1)[packed.places].tolist() == [0, 5, 9, 10, 20, 20, 7, 10, 20, 20]
    assert (packed.times[packed.items < 0] == 0).all() and (packed.items < 0).any()
    assert pack(Sequences.of(histories), None, 3).times is None


@given(st.lists(st.integers(0, 9), max_size=30))
def test_placing_is_best_fit_decreasing(lengths):
    """Against the textbook's loop over all open rows."""
    rooms, expected = [], {}
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[i]:
            fitting = [room for room in rooms if room >= lengths[i]]
            if fitting:
                rooms[rooms.index(min(fitting))] -= lengths[i]
                expected[i] = min(fitting)
            else:
                rooms.append(9 - lengths[i])
                expected[i] = 9
    row, start = place(np.array(lengths, np.int64), 9)
    assert {i: 9 - int(start[i]) for i in expected} == expected
    assert len(set(row[row >= 0].tolist())) == len(rooms)


def test_padding_is_a_few_per_cent_where_one_history_a_row_wastes_most():
    lengths = beauty_like(256)
    assert 6 < lengths.mean() < 9 and lengths.max() == 50
    packed = pack(Sequences.of([np.arange(length) for length in lengths]), None, 50)
    assert packed.padding < 0.08 < 0.8 < 1 - lengths.mean() / 50


def test_packing_is_quick_and_the_same_each_time():
    sequences = Sequences.of([np.arange(length) for length in beauty_like(4096)])
    rows = np.arange(256)
    first = pack(sequences, rows, 50)
    seconds = []
    for _ in range(20):
        begin = time.process_time()
        again = pack(sequences, rows, 50)
        seconds.append(time.process_time() - begin)
    assert np.array_equal(first.items, again.items) and np.array_equal(first.row, again.row)
    assert min(seconds) < 0.003  # 0.3 ms on a quiet core


def test_nothing_to_pack():
    packed = pack(Sequences.of([]), None, 5)
    assert packed.items.shape == (0, 5) and len(packed) == 0 and packed.padding == 1.0
    packed = pack(Sequences.of([[], [1]]), None, 5)
    assert packed.row.tolist() == [-1, 0] and len(packed) == 2


def test_impossible_lengths_are_refused():
    for lengths, width in (([6], 5), ([-1], 5), ([1], 0)):
        with pytest.raises(ValueError, match="lengths must be from 0 to the width"):
            place(np.array(lengths), width)


def test_an_epoch_holds_every_row_once_and_depends_on_nothing_else():
    sizes = np.array([1, 3, 2, 5, 1, 1, 4, 2, 2, 9])
    first = epoch_batches(sizes, 10, seed=3, epoch=1)
    assert sorted(np.concatenate(first).tolist()) == list(range(10))
    np.random.default_rng().random(7)
    np.random.seed(1)
    again = epoch_batches(sizes, 10, seed=3, epoch=1)
    assert len(first) == len(again) and all(np.array_equal(one, other) for one, other in zip(first, again))
    for other in (epoch_batches(sizes, 10, seed=3, epoch=2), epoch_batches(sizes, 10, seed=4, epoch=1)):
        assert not np.array_equal(np.concatenate(first), np.concatenate(other))
    assert epoch_batches(np.zeros(0, np.int64), 4, seed=0, epoch=0) == []
    with pytest.raises(ValueError, match="at least 1"):
        epoch_batches(sizes, 0, seed=0, epoch=0)


def test_batches_are_about_equal_in_the_sum_of_their_sizes():
    sizes = beauty_like(5000)
    batches = epoch_batches(sizes, 2048, seed=0, epoch=1)
    sums = np.array([sizes[batch].sum() for batch in batches])
    assert abs(sums[:-1] - 2048).max() < 50 and 0 < sums[-1] < 2048 + 50
