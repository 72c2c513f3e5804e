"""Leave-last-out, untied and global time against plain loops over users."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asymrec.data import Dataset, Sequences
from asymrec.data.splits import split
from asymrec.errors import ConfigError, DataError

N_ITEMS = 6
interactions = st.lists(st.tuples(st.integers(0, 12), st.integers(0, N_ITEMS - 1)), min_size=1, max_size=8)  # (time, item)
users = st.lists(interactions.map(lambda user: sorted(user, key=lambda each: each[0])), max_size=8)


def made(users):
    return Sequences.of([[item for _, item in user] for user in users], [[time for time, _ in user] for user in users])


def aslists(sequences):
    return [sequences[i].tolist() for i in range(len(sequences))]


def examples(part):
    return list(zip(part.users.tolist(), aslists(part.histories), aslists(part.targets)))


@given(users)
def test_leave_last_out(users):
    items = [[item for _, item in user] for user in users]
    long = [row for row, user in enumerate(items) if len(user) >= 3]
    if not long:
        with pytest.raises(DataError, match=r"none of the .* users has 3 interactions"):
            split(made(users))
        return
    parts = split(made(users), "leave-last-out")
    assert examples(parts.validation) == [(row, items[row][:-2], [items[row][-2]]) for row in long]
    assert examples(parts.test) == [(row, items[row][:-1], [items[row][-1]]) for row in long]
    assert aslists(parts.train) == [items[row][:-2] for row in long] and parts.train_users.tolist() == long
    assert parts.train.times.tolist() == [time for row in long for time, _ in users[row][:-2]]
    assert parts.left_out == len(users) - len(long)
    counts = [sum(items[row][:-2].count(item) for row in long) for item in range(N_ITEMS)]
    assert parts.train_counts(N_ITEMS).tolist() == counts


def windows(users, cut, end):
    for row, user in enumerate(users):
        history = [item for time, item in user if time < cut]
        targets = list(dict.fromkeys(item for time, item in user if cut <= time < end))
        if history and targets:
            yield row, history, targets


@settings(deadline=None, max_examples=150)
@given(users, st.sampled_from([(0.1, 0.1), (0.2, 0.3), (0.3, 0.2)]))
def test_by_time(users, shares):
    assume(users)
    times = sorted(time for user in users for time, _ in user)
    n_validation, n_test = (max(1, round(len(times) * share)) for share in shares)
    assume(n_validation + n_test <= len(times))
    first, second = times[-n_test - n_validation], times[-n_test]
    validation, test = list(windows(users, first, second)), list(windows(users, second, np.inf))
    if not validation or not test:
        with pytest.raises(DataError, match="no user has interactions both before and in the"):
            split(made(users), "time", *shares)
        return
    parts = split(made(users), "time", *shares)
    assert examples(parts.validation) == validation and examples(parts.test) == test
    train = [(row, [item for time, item in user if time < first]) for row, user in enumerate(users)]
    train = [(row, history) for row, history in train if history]
    assert list(zip(parts.train_users.tolist(), aslists(parts.train))) == train
    assert parts.train.times.max() < first <= min(time for user in users for time, _ in user if time >= first)
    inside = {row for row, *_ in (*train, *validation, *test)}
    assert parts.left_out == len(users) - len(inside)


def steps_of(user):
    """[(time, [items])], ascending times."""
    return [(time, [item for when, item in user if when == time]) for time in sorted({time for time, _ in user})]


def by_step(items, times):
    """{time: sorted items} of one sequence, its times in order."""
    assert times.tolist() == sorted(times.tolist())
    return {time: sorted(items[times == time].tolist()) for time in np.unique(times).tolist()}


def times_of(sequences, i):
    return sequences.times[sequences.offsets[i] : sequences.offsets[i + 1]]


few_times = st.lists(st.tuples(st.integers(0, 4), st.integers(0, N_ITEMS - 1)), max_size=9)


@settings(deadline=None, max_examples=150)
@given(st.lists(few_times.map(lambda user: sorted(user, key=lambda each: each[0])), max_size=7), st.integers(0, 3), st.randoms())
def test_untied(users, seed, random):
    steps = [steps_of(user) for user in users]
    tested = [row for row, each in enumerate(steps) if len(each) >= 3]
    if not tested:
        with pytest.raises(DataError, match=r"split untied: none of the .* users has interactions at 3 distinct times"):
            split(made(users), "untied", seed=seed)
        return
    parts = split(made(users), "untied", seed=seed)
    assert (parts.name, parts.left_out) == ("untied", len(users) - len(tested))
    for part, cut in ((parts.validation, -2), (parts.test, -1)):
        assert part.users.tolist() == tested
        assert aslists(part.targets) == [sorted(set(steps[row][cut][1])) for row in tested]
        for at, row in enumerate(tested):
            expected = {time: sorted(items) for time, items in steps[row][:cut]}
            assert by_step(part.histories[at], times_of(part.histories, at)) == expected
    trained = [(row, steps[row][:-2] if row in tested else steps[row]) for row in range(len(users)) if users[row]]
    assert parts.train_users.tolist() == [row for row, _ in trained]
    for at, (_, each) in enumerate(trained):
        assert by_step(parts.train[at], times_of(parts.train, at)) == {time: sorted(items) for time, items in each}
    for at, row in enumerate(tested):  # training and histories tell the same order
        own = parts.train[parts.train_users.tolist().index(row)].tolist()
        assert own == parts.validation.histories[at].tolist() == parts.test.histories[at].tolist()[: len(own)]

    other = [user.copy() for user in users]  # the order of the file inside a time step has no influence
    for user in other:
        random.shuffle(user)
        user.sort(key=lambda each: each[0])
    again = split(made(other), "untied", seed=seed)
    assert aslists(again.train) == aslists(parts.train) and again.train.times.tolist() == parts.train.times.tolist()
    assert examples(again.validation) == examples(parts.validation) and examples(again.test) == examples(parts.test)


def test_untied_orders_equal_times_by_the_seed():
    users = [[(day // 10, (user + day) % N_ITEMS) for day in range(40)] for user in range(30)]
    one, same, other = (split(made(users), "untied", seed=seed) for seed in (1, 1, 2))
    assert aslists(one.train) == aslists(same.train) != aslists(other.train)
    assert aslists(one.test.histories) != aslists(other.test.histories)
    assert aslists(one.test.targets) == aslists(other.test.targets)
    # every order of a step is as likely: the item that came first is first in about a tenth of them
    flat = Sequences.of([range(10)] * 2000, [[0] * 10] * 2000)
    flat = Sequences.of([[*row, 10, 11] for row in aslists(flat)], [[0] * 10 + [1, 2]] * 2000)
    first = np.bincount([row[0] for row in aslists(split(flat, "untied", seed=3).train)], minlength=10)
    assert (abs(first - 200) < 70).all()


def test_untied_counts_in_a_data_set():
    who, what, when = [1, 1, 1, 1, 2, 2, 3], [0, 1, 2, 0, 3, 4, 5], [5, 6, 7, 7, 5, 6, 9]
    dataset = Dataset.read(pa.table({"user_id": who, "item_id": what, "timestamp": when}), pa.table({"item_id": np.arange(6)}))
    parts = dataset.split("untied", seed=4)
    assert examples(parts.test) == [(0, [0, 1], [0, 2])]  # an item of the history may be a target again
    assert parts.train_counts(6).tolist() == [1, 0, 0, 1, 1, 1] and parts.left_out == 2


def test_shares_of_distinct_times_are_kept():
    n = 1000
    order = np.random.default_rng(0).permutation(n)
    dataset = Dataset.read(
        pa.table({"user_id": np.arange(n) % 10, "item_id": np.arange(n) % 50, "timestamp": order}), pa.table({"item_id": np.arange(50)})
    )
    parts = dataset.split("time", validation_share=0.2, test_share=0.1)
    assert len(parts.train.items) == 700 and parts.train.times.max() == 699
    assert parts.validation.histories.times.max() == 699 and parts.test.histories.times.max() == 899
    part = parts.test.take(np.array([2, 0]))
    assert part.users.tolist() == [2, 0] and len(part) == 2 and part.targets[1].tolist() == parts.test.targets[0].tolist()


def test_what_cannot_be_split_is_said():
    sequences = Sequences.of([[1, 2, 3]])
    with pytest.raises(DataError, match="split time: the interactions have no times; use leave-last-out"):
        split(sequences, "time")
    with pytest.raises(DataError, match="split untied: the interactions have no times; use leave-last-out"):
        split(sequences, "untied")
    with pytest.raises(ConfigError, match="unknown split 'leave-one-out'; did you mean 'leave-last-out'"):
        split(sequences, "leave-one-out")
    with pytest.raises(ConfigError, match="unknown split 'qq'; known are leave-last-out, untied, time"):
        split(sequences, "qq")
    with pytest.raises(ConfigError, match="did you mean 'untied'"):
        split(sequences, "untie")
    for shares in ((0, 0.1), (0.1, 0), (0.5, 0.5), (-0.1, 0.2)):
        with pytest.raises(ConfigError, match="must be positive and leave some for training"):
            split(Sequences.of([[1, 2, 3]], [[1, 2, 3]]), "time", *shares)
