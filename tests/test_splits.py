"""Splits: partitions of the log, seeded, in the order of time where asked, without a leak."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnnrec.data.interactions import IdMap, Interactions
from gnnrec.data.splits import STRATEGIES, carve_valid, split
from gnnrec.errors import DataError

USERS, ITEMS = 12, 15


def make_log(pairs, times=None, users=USERS, items=ITEMS):
    u, i = np.array(pairs, dtype=np.int32).reshape(-1, 2).T
    times = None if times is None else np.array(times)
    ratings = np.arange(len(u), dtype=np.float32)  # a row's number, to follow it into its part
    return Interactions(u, i, IdMap.range(users), IdMap.range(items), ratings, times, name="log")


@st.composite
def logs(draw, timestamps=None):
    pairs = draw(
        st.lists(st.tuples(st.integers(0, USERS - 1), st.integers(0, ITEMS - 1)), min_size=1, max_size=80, unique=True)
    )
    timed = draw(st.booleans()) if timestamps is None else timestamps
    times = draw(st.lists(st.integers(0, 9), min_size=len(pairs), max_size=len(pairs))) if timed else None
    return make_log(pairs, times)


def try_split(log, *args, **kwargs):
    """The parts, or None where the log has too few rows for them: the only error that these logs may raise."""
    try:
        return split(log, *args, **kwargs)
    except DataError as error:
        if "would be empty" in str(error):
            return None
        raise


ratios_of_parts = st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.8, 0.2), (0.3, 0.7)])


@given(logs(), st.sampled_from(STRATEGIES), ratios_of_parts, st.integers(0, 5))
def test_parts_are_a_partition_in_the_order_of_the_log(log, by, ratios, seed):
    if "temporal" in by and log.timestamps is None:
        with pytest.raises(DataError, match="no timestamps"):
            split(log, by, ratios, seed)
        return
    parts = try_split(log, by, ratios, seed)
    if parts is None:
        return
    assert len(parts) == len(ratios)
    rows = [part.ratings.astype(int) for part in parts]
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(len(log)))
    for part, row in zip(parts, rows):
        assert (np.diff(row) > 0).all()
        np.testing.assert_array_equal(part.users, log.users[row])
        np.testing.assert_array_equal(part.items, log.items[row])
        if log.timestamps is not None:
            np.testing.assert_array_equal(part.timestamps, log.timestamps[row])
        assert part.user_ids is log.user_ids
        assert part.item_ids is log.item_ids
    again = split(log, by, ratios, seed)
    for part, same in zip(parts, again):
        np.testing.assert_array_equal(part.ratings, same.ratings)


@given(logs(timestamps=True), st.sampled_from(["per_user", "leave_one_out", "per_user_temporal"]), ratios_of_parts)
def test_every_user_keeps_a_train_row(log, by, ratios):
    parts = try_split(log, by, ratios)
    if parts is not None:
        assert set(parts[0].users) == set(log.users)


@given(logs(timestamps=True), ratios_of_parts)
def test_temporal_cuts_once_in_time(log, ratios):
    parts = try_split(log, "temporal", ratios)
    if parts is None:
        return
    bounds = np.floor(np.cumsum((0, *ratios)) * len(log) + 0.5).astype(int)
    assert [len(part) for part in parts] == np.diff(bounds).tolist()
    for earlier, later in pairwise(parts):
        last = max(zip(earlier.timestamps, earlier.ratings))
        assert last < min(zip(later.timestamps, later.ratings))  # (time, row): ties go by the row


@given(logs(timestamps=True), ratios_of_parts, st.sampled_from(["per_user_temporal", "leave_one_out"]))
def test_within_a_user_the_later_parts_are_later(log, ratios, by):
    parts = try_split(log, by, ratios)
    if parts is None:
        return
    for user in range(USERS):
        keys = [
            (time, row, p)
            for p, part in enumerate(parts)
            for time, row in zip(part.timestamps[part.users == user], part.ratings[part.users == user])
        ]
        assert [p for _, _, p in sorted(keys)] == sorted(p for _, _, p in keys)


@given(logs(), st.sampled_from([2, 3]))
def test_leave_one_out_takes_one_for_each_part(log, parts):
    made = try_split(log, "leave_one_out", (0.8, 0.2) if parts == 2 else (0.8, 0.1, 0.1))
    degree = np.bincount(log.users, minlength=USERS)
    if made is None:
        assert degree.max() < parts
        return
    for part in made[1:]:
        np.testing.assert_array_equal(np.bincount(part.users, minlength=USERS), degree >= parts)


@given(logs(), st.floats(0.05, 0.95), st.integers(0, 3))
def test_carve_valid_keeps_every_user_and_the_ratio(log, ratio, seed):
    try:
        train, valid = carve_valid(log, ratio, seed)
    except DataError as error:
        if "the valid part" in str(error):
            return
        raise
    rows = np.sort(np.concatenate([train.ratings, valid.ratings]))
    np.testing.assert_array_equal(rows, np.arange(len(log)))
    assert set(train.users) == set(log.users)
    degree, taken = (np.bincount(x.users, minlength=USERS) for x in (log, valid))
    most = np.maximum(degree - 1, 0)
    assert (taken >= np.minimum(np.floor(degree * ratio - 1e-9), most)).all()
    assert (taken <= np.minimum(np.ceil(degree * ratio + 1e-9), most)).all()
    assert valid.name == "log/valid"


def grid_log(users, items, times=False):
    pairs = [(u, i) for u in range(users) for i in range(items)]
    return make_log(pairs, np.arange(len(pairs)) if times else None, users, items)


def test_the_order_of_a_users_rows_may_be_that_of_time():
    log = make_log([(0, 3), (1, 0), (0, 1), (0, 2), (1, 4), (0, 0)])
    train, valid = carve_valid(log, 0.5, by="per_user_order")
    assert list(zip(train.users, train.items)) == [(0, 3), (1, 0), (0, 1)]
    assert list(zip(valid.users, valid.items)) == [(0, 2), (1, 4), (0, 0)]


@pytest.mark.parametrize("by", ["random", "per_user", "temporal", "per_user_temporal", "per_user_order"])
def test_sizes_are_those_of_the_ratios(by):
    sizes = [len(part) for part in split(grid_log(100, 10, times=True), by)]
    assert sizes == [800, 100, 100]


def test_few_interactions_a_user_still_give_the_ratios():
    # 3 a user: every fixed rounding of 2.4 and 2.7 would give a part nothing, or twice its share
    train, valid, test = split(grid_log(4000, 3), "per_user")
    assert len(train) / 12000 == pytest.approx(0.8, abs=0.01)
    assert len(valid) / 12000 == pytest.approx(0.1, abs=0.01)
    assert len(test) / 12000 == pytest.approx(0.1, abs=0.01)


def test_random_is_uniform_over_rows():
    log = grid_log(10, 10)
    counts = sum(np.bincount(split(log, seed=s)[2].ratings.astype(int), minlength=100) for s in range(400))
    # each row is in test in 400 x 0.1 = 40 of the splits, standard deviation 6
    assert counts.min() > 12
    assert counts.max() < 70


def test_exact_split_of_a_small_log():
    log = make_log([(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)], [5, 1, 3, 2, 3, 3])
    train, test = split(log, "temporal", (0.5, 0.5))
    assert train.ratings.tolist() == [1, 2, 3]  # times 1, 2, then the first of the three 3s
    assert test.ratings.tolist() == [0, 4, 5]
    train, valid, test = split(log, "leave_one_out")
    assert train.ratings.tolist() == [1, 2]
    assert valid.ratings.tolist() == [3, 4]
    assert test.ratings.tolist() == [0, 5]
    assert [part.name for part in (train, valid, test)] == ["log/train", "log/valid", "log/test"]


def test_seeds_differ_and_known_seed_stays():
    log = grid_log(5, 4)
    assert split(log, seed=0)[2].ratings.tolist() != split(log, seed=1)[2].ratings.tolist()
    # pinned: a published split must not change from one version to the next
    assert split(log, seed=0)[2].ratings.tolist() == [9, 18]
    assert split(log, "per_user", (0.5, 0.5), seed=3)[1].ratings.tolist() == [1, 2, 4, 6, 10, 11, 14, 15, 17, 19]


def test_float_timestamps():
    log = make_log([(0, 0), (0, 1), (0, 2)], [0.3, 0.1, 0.2])
    assert split(log, "temporal", (0.67, 0.33))[1].ratings.tolist() == [0]


@pytest.mark.parametrize(
    ("kwargs", "parts"),
    [
        ({"by": "per_usr"}, ("unknown split 'per_usr'", "Did you mean 'per_user'?", "leave_one_out")),
        ({"by": "xyz"}, ("unknown split 'xyz'", "Known: random")),
        ({"ratios": (0.8, 0.1)}, ("train 0.8, test 0.1 sum to 0.9", "sum to 1")),
        ({"ratios": (0.9, 0.0, 0.1)}, ("valid 0", "each must be above 0", "give two")),
        ({"ratios": (float("nan"), 1.0)}, ("train nan", "each must be above 0")),
        ({"ratios": (1.0,)}, ("1 ratios", "two")),
        ({"ratios": (0.4, 0.2, 0.2, 0.2)}, ("4 ratios", "three")),
        ({"seed": -1}, ("seed is -1",)),
        ({"by": "temporal"}, ("log: no timestamps", "by='temporal'", "column of the timestamps")),
        ({"by": "per_user_temporal"}, ("no timestamps",)),
        ({"ratios": (0.9, 0.05, 0.05)}, ("test part of a random split of 6 interactions", "empty", "ratio, now 0.05")),
    ],
)
def test_errors_name_the_value_and_the_remedy(kwargs, parts):
    log = make_log([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)])
    with pytest.raises(DataError) as error:
        split(log, **kwargs)
    for part in parts:
        assert part in str(error.value)


def test_empty_logs_and_short_users_are_refused():
    with pytest.raises(DataError, match=r"train part .* of 0 interactions"):
        split(make_log([]))
    with pytest.raises(DataError, match=r"valid part of a leave_one_out split .* Use two parts"):
        split(make_log([(0, 0), (0, 1), (1, 0)]), "leave_one_out")
    with pytest.raises(DataError, match="valid part of a per_user split"):
        carve_valid(make_log([(0, 0), (1, 0), (2, 0)]), 0.5)
    for ratio in (0.0, 1.0, -0.1, 1.5):
        with pytest.raises(DataError, match="each must be above 0"):
            carve_valid(make_log([(0, 0), (0, 1)]), ratio)


def test_repeated_pairs_are_refused():
    log = make_log([(0, 1), (2, 3), (0, 1), (2, 3), (2, 3), (1, 1)])
    with pytest.raises(DataError, match=r"3 of 6 rows repeat a \(user, item\) pair.*deduplicate\(\)"):
        split(log)
    with pytest.raises(DataError, match="3 of 6 rows"):
        carve_valid(log, 0.5)


def test_nan_times_are_refused_where_they_are_used():
    log = make_log([(0, 0), (0, 1), (1, 0), (1, 1)], [1.0, float("nan"), 2.0, 3.0])
    for by in ("temporal", "per_user_temporal", "leave_one_out"):
        with pytest.raises(DataError, match="1 timestamps are nan"):
            split(log, by, (0.5, 0.5))
    assert len(split(log, "random", (0.5, 0.5))[0]) == 2


@pytest.mark.skipif("GNNREC_DATA" not in os.environ, reason="GNNREC_DATA is not set: no Gowalla files")
def test_gowalla_has_no_repeated_pair_and_splits():
    path = Path(os.environ["GNNREC_DATA"]) / "gowalla" / "train.txt"
    rows = [np.array(line.split(), dtype=np.int32) for line in path.read_text().splitlines()]
    users = np.repeat([row[0] for row in rows], [len(row) - 1 for row in rows]).astype(np.int32)
    items = np.concatenate([row[1:] for row in rows])
    train = Interactions(users, items, IdMap.range(29858), IdMap.range(40981))
    kept, valid = carve_valid(train, 0.1)
    assert len(kept) + len(valid) == 810128
    assert len(valid) == pytest.approx(81013, rel=0.005)
    assert np.bincount(kept.users).min() >= 1
