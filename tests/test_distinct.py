"""Identical ids: found, and repaired."""

from itertools import islice, pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymrec.errors import QuantizerError
from asymrec.quantize import MHQ, distinct
from asymrec.quantize.distinct import combinations, hashes, identical, join, make_distinct

small_codes = st.integers(1, 4).flatmap(lambda h: st.lists(st.lists(st.integers(0, 2), min_size=h, max_size=h), min_size=1, max_size=30))


def any_other(vector, codes):
    """All ids of three codewords a column, the nearest in count of changes first."""
    return iter(sorted(product(range(3), repeat=len(codes)), key=lambda other: np.sum(np.array(other) != codes)))


@given(small_codes)
def test_identical_ids_are_found(rows):
    codes = np.array(rows, dtype=np.int32)
    groups = {}
    for row, code in enumerate(rows):
        groups.setdefault(tuple(code), []).append(row)
    assert [group.tolist() for group in identical(codes)] == [group for group in groups.values() if len(group) > 1]


@given(small_codes)
def test_equal_hashes_of_different_ids_do_no_harm(rows):
    codes = np.array(rows, dtype=np.int32)
    expected = [group.tolist() for group in identical(codes)]
    kept, distinct.hashes = distinct.hashes, lambda codes: np.zeros(len(codes), dtype=np.uint64)
    try:
        assert [group.tolist() for group in identical(codes)] == expected
    finally:
        distinct.hashes = kept


@given(small_codes)
def test_repair_changes_only_later_rows_and_is_complete(rows):
    codes = np.array(rows, dtype=np.int32)
    vectors = codes.astype(np.float32)
    if len(codes) > 3 ** codes.shape[1]:
        with pytest.raises(QuantizerError, match="cannot have distinct ids: raise K"):
            make_distinct(codes, vectors, any_other, "raise K")
        return
    repaired = make_distinct(codes, vectors, any_other, "raise K")
    assert len(np.unique(repaired, axis=0)) == len(codes)
    _, first = np.unique(codes, axis=0, return_index=True)
    assert (repaired[first] == codes[first]).all()
    assert (make_distinct(codes, vectors, any_other, "raise K") == repaired).all()
    assert (make_distinct(repaired, vectors, any_other, "raise K") == repaired).all()


@given(small_codes, st.integers(0, 30))
def test_items_that_join_get_free_ids_and_leave_those_that_are_there(rows, there):
    codes = np.array(rows, dtype=np.int32)
    vectors = codes.astype(np.float32)
    if len(codes) > 3 ** codes.shape[1]:
        return
    there = min(there, len(codes))
    held = make_distinct(codes[:there], vectors[:there], any_other, "raise K")
    added = join(codes[there:], hashes(held), vectors[there:], any_other, "raise K")
    together = np.concatenate([held, added])
    assert len(np.unique(together, axis=0)) == len(codes)
    known = {tuple(row) for row in held.tolist()}
    for own, got in zip(codes[there:].tolist(), added.tolist()):  # the first who wants a free id has it
        assert (got == own) == (tuple(own) not in known)
        known |= {tuple(own), tuple(got)}


def test_who_joins_when_ids_are_used_up_is_told():
    held = np.arange(3, dtype=np.int32)[:, None]
    with pytest.raises(QuantizerError, match="4 items cannot have distinct ids: raise K"):
        join(held[:1], hashes(held), np.zeros((1, 2), np.float32), any_other, "raise K")


costs = st.lists(st.lists(st.floats(0, 9, width=16), min_size=1, max_size=4), min_size=1, max_size=4)


@given(costs)
@settings(max_examples=200)
def test_combinations_come_once_each_by_rising_cost(parts):
    parts = [sorted(part) for part in parts]
    found = list(combinations([iter([(cost, (rank,)) for rank, cost in enumerate(part)]) for part in parts]))
    assert sorted(found) == list(product(*(range(len(part)) for part in parts)))
    totals = [sum(part[rank] for part, rank in zip(parts, choice)) for choice in found]
    assert all(after >= before - 1e-6 for before, after in pairwise(totals))


def test_alternatives_are_all_ids_and_the_cheapest_come_first():
    vectors = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    for levels in (1, 2, 3):
        quantizer = MHQ(facets=2, levels=levels, codewords=3).fit(vectors)
        codes = quantizer.encode(vectors)
        for row in range(3):
            found = list(quantizer._alternatives(vectors[row], codes[row]))
            assert len(found) == len(set(found)) == 3 ** (2 * levels)
            upper = np.arange(2 * levels) % levels < levels - 1
            last_changed = np.array([other for other in found if (np.array(other)[upper] == codes[row][upper]).all()])
            errors = np.square(quantizer.decode(last_changed) - vectors[row]).sum(1)
            assert len(errors) == 9 and (np.diff(errors) >= -1e-5).all()


def test_the_repaired_item_takes_the_free_id_of_least_error():
    vectors = np.random.default_rng(1).normal(size=(100, 4)).astype(np.float32)
    vectors[60] = vectors[20]
    quantizer = MHQ(facets=2, levels=1, codewords=16).fit(vectors)
    raw, codes = quantizer.encode(vectors), quantizer.catalogue(vectors)
    others = {tuple(code) for code in codes[:60]} | {tuple(code) for code in raw}
    ids = np.array([code for code in product(range(16), repeat=2) if code not in others])
    errors = np.square(quantizer.decode(ids) - vectors[60]).sum(1)
    ours = np.square(quantizer.decode(codes[60:61])[0] - vectors[60]).sum()
    assert tuple(codes[20]) == tuple(raw[20]) != tuple(codes[60])
    assert ours <= errors.min() + 1e-5


@pytest.mark.parametrize("noise", [0, 1e-7])
def test_a_thousand_items_with_the_same_vector(noise):
    random = np.random.default_rng(2)
    vectors = np.concatenate((random.normal(size=(300, 8)), np.ones((1000, 8)) + noise * random.normal(size=(1000, 8)))).astype(np.float32)
    quantizer = MHQ(facets=2, levels=2, codewords=32).fit(vectors)
    codes = quantizer.catalogue(vectors)
    assert len(np.unique(codes, axis=0)) == 1300
    report = quantizer.report(vectors, codes)
    assert report["identical_ids"] >= 1000 / 1300 and report["shared_ids"] < 0.3


def test_many_different_items_in_few_cells():
    vectors = np.random.default_rng(3).normal(size=(1000, 4)).astype(np.float32)
    quantizer = MHQ(facets=2, levels=1, codewords=32).fit(vectors)
    codes = quantizer.catalogue(vectors)
    assert len(np.unique(codes, axis=0)) == 1000  # of 1024 ids
    with pytest.raises(QuantizerError, match="1000 items cannot have distinct ids"):
        MHQ(facets=2, levels=1, codewords=16).fit(vectors).catalogue(vectors)


def test_alternatives_are_lazy():
    vectors = np.random.default_rng(4).normal(size=(600, 32)).astype(np.float32)
    quantizer = MHQ(quantizer_epochs=0).fit(vectors)  # 256^48 ids
    codes = quantizer.encode(vectors)
    assert len(set(islice(quantizer._alternatives(vectors[0], codes[0]), 5000))) == 5000
