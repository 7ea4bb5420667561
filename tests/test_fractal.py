"""Fractal expansions: the counts that were asked for, on the base's pattern, with its shape on both scales."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.config import DataConfig
from gnnrec.data import catalog, dataset, fractal
from gnnrec.data.interactions import IdMap, Interactions
from gnnrec.data.synthetic import generate
from gnnrec.errors import ConfigError, DataError

QUANTILES = (0.5, 0.75, 0.9, 0.99)  # below, draws blur the few interactions that a node has


def log_of(users, items, num_users, num_items):
    columns = np.asarray(users, np.int32), np.asarray(items, np.int32)
    return Interactions(*columns, IdMap.range(num_users), IdMap.range(num_items), name="base")


@pytest.fixture(scope="module")
def base():
    """A log with heavy tails, in which every user and item has an interaction."""
    return generate(300, 200, 6000, communities=4, seed=1).log.compact()


def room(log, num_users, num_items):
    """Pairs of copies whose base pair is in the log, by counting."""
    copies = [
        np.bincount(np.arange(total) % count, minlength=count)
        for total, count in ((num_users, log.num_users), (num_items, log.num_items))
    ]
    return int((copies[0][log.users] * copies[1][log.items]).sum())


def check(log, num_users, num_items, num_interactions, seed=0):
    users, items = fractal.expand(log, num_users, num_items, num_interactions, seed)
    assert users.dtype == items.dtype == np.int32
    pairs = users * np.int64(num_items) + items
    assert len(pairs) == num_interactions
    assert (np.diff(pairs) > 0).all()  # distinct, and sorted
    np.testing.assert_array_equal(np.unique(users), np.arange(num_users))
    np.testing.assert_array_equal(np.unique(items), np.arange(num_items))
    on_base = users % log.num_users * np.int64(log.num_items) + items % log.num_items
    assert np.isin(on_base, log.users * np.int64(log.num_items) + log.items).all()
    return users, items


@st.composite
def targets(draw):
    """A small base without empty rows or columns, and any sizes that it can be expanded to."""
    num_users, num_items = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    pairs = {(k % num_users, k % num_items) for k in range(max(num_users, num_items))}
    pairs |= draw(st.sets(st.tuples(st.integers(0, num_users - 1), st.integers(0, num_items - 1))))
    log = log_of(*zip(*sorted(pairs)), num_users, num_items)
    users, items = (draw(st.integers(count, 9 * count)) for count in (num_users, num_items))
    most = room(log, users, items)
    least = min(users + items, most)
    return log, users, items, draw(st.integers(least, most)), draw(st.integers(0, 2**63))


@settings(deadline=None)
@given(targets())
def test_any_target_is_met_exactly(given_targets):
    log, users, items, interactions, seed = given_targets
    if interactions < users + items:
        with pytest.raises(DataError, match="one for every user and item"):
            fractal.expand(log, users, items, interactions, seed)
    else:
        check(log, users, items, interactions, seed)


@pytest.mark.parametrize(
    ("users", "items", "interactions"),
    [
        (300, 200, 6000),  # the base itself
        (301, 399, 700),  # one interaction for each node, and none more
        (300, 70_000, 200_000),  # more copies than the base has nodes
        (50_000, 200, 100_000),
        (1000, 3000, 200_000),
    ],
)
def test_sizes_at_the_borders(base, users, items, interactions):
    assert base.num_items == 200
    expanded = check(base, users, items, interactions)
    if users == 300 and items == 200:
        np.testing.assert_array_equal(expanded, (base.users, base.items))


def test_all_the_room_can_be_filled(base):
    check(base, 450, 333, room(base, 450, 333))


def test_equal_for_equal_seeds_and_any_number_of_threads(base, monkeypatch):
    size = (50_000, 40_000, 300_000)  # several blocks
    expanded = []
    for threads in (1, 4):
        monkeypatch.setattr(fractal.numba, "get_num_threads", lambda threads=threads: threads)
        expanded.append(fractal.expand(base, *size, seed=5))
    np.testing.assert_array_equal(*expanded)
    assert (fractal.expand(base, *size, seed=6)[1] != expanded[0][1]).mean() > 0.5


def check_shape(log, users, items, tolerance):
    """Quantiles of degree / mean degree are those of the base; the tail is at least as long."""
    for numbers, base_numbers in ((users, log.users), (items, log.items)):
        degrees, base_degrees = np.bincount(numbers), np.bincount(base_numbers)
        ours, theirs = (np.quantile(d / d.mean(), QUANTILES) for d in (degrees, base_degrees))
        np.testing.assert_allclose(ours, theirs, rtol=tolerance)
        assert degrees.max() / degrees.mean() >= 0.8 * base_degrees.max() / base_degrees.mean()


def test_degrees_keep_their_shape(base):
    check_shape(base, *fractal.expand(base, 4500, 3000, 90_000), tolerance=0.15)


def test_degrees_of_gowalla_keep_their_shape(data_root):
    parts = catalog.read("gowalla", data_root)
    columns = (np.concatenate([getattr(part, side) for part in parts]) for side in ("users", "items"))
    log = log_of(*columns, parts[0].num_users, parts[0].num_items)
    check_shape(log, *fractal.expand(log, 60_000, 82_000, 2_060_000), tolerance=0.1)


def test_blocks_of_the_base_return_among_the_copies():
    """The first half of the users has the first half of the items: so has the first half of anyone's copies."""
    users = np.repeat(np.arange(100), 20)
    first = np.where(users < 50, 0, 50)
    items = first + (users * 7 + np.tile(np.arange(20), 100) * 3) % 50
    log = log_of(users, items, 100, 100)
    expanded = check(log, 800, 1200, 16_000)
    copies = expanded[0] // 100, expanded[1] // 100
    together = np.histogram2d(copies[0] // 4, copies[1] // 6, bins=2)[0] / 16_000
    np.testing.assert_allclose(together, [[0.5, 0], [0, 0.5]], atol=0.02)


def test_repeated_pairs_and_empty_nodes_of_the_base_do_not_count(base):
    holes = log_of(np.tile(base.users * 2, 2), np.tile(base.items * 3, 2), 600, 600)
    np.testing.assert_array_equal(fractal.expand(holes, 700, 800, 9000), fractal.expand(base, 700, 800, 9000))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((299, 500, 9000), "num_users is 299. Use 300 to"),
        ((2**31, 500, 9000), f"num_users is {2**31}. Use 300 to {2**31 - 1}"),
        ((500, 199, 9000), "num_items is 199. Use 200 to"),
        ((500, 500, 999), "num_interactions is 999. Use 1000, one for every user and item, to"),
        ((300, 200, 6001), "num_interactions is 6001, where copies of .* 6000 interactions leave room for 6000"),
        ((500, 500, 9000, -1), "seed is -1. Use 0 or more"),
    ],
)
def test_what_cannot_be_expanded_to(base, arguments, message):
    with pytest.raises(DataError, match=message):
        fractal.expand(base, *arguments)


def test_an_empty_base():
    with pytest.raises(DataError, match="no interactions"):
        fractal.expand(log_of([], [], 3, 3), 5, 5, 10)


def test_as_a_data_set(base, monkeypatch):
    monkeypatch.setattr(catalog, "read", lambda name, root: [base.take(base.users % 2 == part) for part in (0, 1)])
    sizes = {"num_users": 500, "num_items": 600, "num_interactions": 8000}
    config = DataConfig(source="fractal", name="fractal", base="gowalla", duplicates="keep", valid_ratio=0, **sizes)
    config.validate()
    loaded = dataset.load(config)
    assert loaded.counts() == {"users": 500, "items": 600, "train": 6400, "test": 1600}
    assert loaded.train.user_ids.decode(np.array([0, 499])).tolist() == [0, 499]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "fractal"}, "data.base: is None. Say what to expand"),
        ({"source": "fractal", "base": "gowalla", "num_users": 0}, "data.num_users: is 0"),
        ({"source": "synthetic", "num_items": 5}, "data.num_items: has no effect with data.source=synthetic"),
    ],
)
def test_its_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**settings).validate()
