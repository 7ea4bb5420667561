"""The samplers: negatives, uniformity, replay, users once an epoch."""

import math

import numba
import numpy as np
import pytest

from gnnrec.config import BPRConfig, LightGCNConfig, OptimizerConfig, TrainerConfig
from gnnrec.errors import DataError
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.memtier.demands import HeldOut
from gnnrec.memtier.workload import Workload
from gnnrec.ops import _philox, set_num_threads
from gnnrec.training.sampler import TripleSampler, UserSampler, _alias_table

SEVERAL = {"negatives": 3, "popularity": 0.75}


@pytest.fixture(scope="module")
def graph() -> BipartiteGraph:
    """60 users; user 0 has no item, user 1 has all of them, user 2 all but one."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(3, 60, 700), rng.integers(0, 40, 700)
    users = np.concatenate([users, np.full(40, 1), np.full(39, 2)])
    items = np.concatenate([items, np.arange(40), np.arange(39)])
    return BipartiteGraph.from_edges(users, items, 60, 40)


def edges(graph: BipartiteGraph) -> set[tuple[int, int]]:
    rows = np.repeat(np.arange(graph.num_users), graph.user_degrees)
    return set(zip(rows.tolist(), graph.user_items.tolist()))


@pytest.mark.parametrize("options", [{}, SEVERAL], ids=["one", "several"])
@pytest.mark.parametrize("sampling", ["users", "interactions"])
def test_triples_are_positive_and_negative(graph, sampling, options):
    known = edges(graph)
    sampler = TripleSampler(graph, 64, sampling, seed=3, **options)
    for step in range(2 * sampler.steps_per_epoch):
        users, positives, *negatives = sampler.batch(step)[0].numpy()
        assert len(negatives) == options.get("negatives", 1)
        negatives = np.stack(negatives)
        assert all((u, p - 60) in known for u, p in zip(users.tolist(), positives.tolist()))
        assert not any((u, n - 60) in known for row in negatives for u, n in zip(users.tolist(), row.tolist()))
        assert negatives.min() >= 60
        assert negatives.max() < 100
        assert not set(users.tolist()) & {0, 1}


def test_an_epoch_of_interactions_is_every_edge_once(graph):
    sampler = TripleSampler(graph, 64, "interactions", seed=1)
    drawn = np.concatenate([sampler.batch(step)[0].numpy() for step in range(sampler.steps_per_epoch)], axis=1)
    pairs = sorted(zip(drawn[0].tolist(), (drawn[1] - 60).tolist()))
    assert pairs == sorted(pair for pair in edges(graph) if pair[0] != 1)
    following = sampler.batch(sampler.steps_per_epoch)[0].numpy()
    assert not np.array_equal(following[:2], drawn[:2, :64])  # another order in the next epoch


def test_the_order_of_an_epoch_takes_what_plans_count(peak_memory):
    users, items, each = 100_000, 1000, 100
    starts = np.arange(users, dtype=np.int32)[:, None] % 900
    columns = (starts + np.arange(each, dtype=np.int32)).ravel()
    graph = BipartiteGraph.from_edges(np.repeat(np.arange(users, dtype=np.int32), each), columns, users, items)
    sampler = TripleSampler(graph, 64, "interactions", seed=1)
    sampler.batch(0)
    counted = Workload.of(
        graph,
        model=LightGCNConfig(dim=16),
        loss=BPRConfig(),
        optimizer=OptimizerConfig(),
        trainer=TrainerConfig(epochs=1, batch_size=64, sampling="interactions"),
        held_out=HeldOut(0, 1, 20),
        threads=1,
        cache_bytes=1 << 20,
    )
    order = next(demand.bytes for demand in counted.resident() if demand.name == "order")
    _, peak = peak_memory(lambda: sampler.batch(sampler.steps_per_epoch))  # of the next epoch
    assert peak < 1 << 22 < order == sampler._order[1].nbytes  # the one takes the place of the other


def test_users_are_uniform_and_items_uniform_within_a_user(graph):
    sampler = TripleSampler(graph, 100_000, "users", seed=7)
    drawn = np.concatenate([sampler.batch(step)[0].numpy() for step in range(300)], axis=1)
    counts = np.bincount(drawn[0], minlength=60)[2:]
    expected = drawn.shape[1] / 58
    assert abs(counts - expected).max() < 6 * np.sqrt(expected)
    user = 5
    items = drawn[1][drawn[0] == user] - 60
    degree = graph.user_degrees[user]
    frequency = np.bincount(items, minlength=40)
    assert (frequency > 0).sum() == degree
    share = len(items) / degree
    assert abs(frequency[frequency > 0] - share).max() < 6 * np.sqrt(share)
    negatives = np.bincount(drawn[2][drawn[0] == user] - 60, minlength=40)
    share = len(items) / (40 - degree)
    assert abs(negatives[negatives > 0] - share).max() < 6 * np.sqrt(share)
    assert (drawn[2][drawn[0] == 2] == 99).all()  # the only item that user 2 has not


def chi_square(counts, chances):
    """The statistic less its mean, in its standard deviations; what has no chance must not come."""
    possible = chances > 0
    assert not counts[~possible].any()
    expected = counts.sum() * chances[possible] / chances[possible].sum()
    freedom = possible.sum() - 1
    return (((counts[possible] - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * max(1, freedom))


@pytest.mark.parametrize("sampling", ["users", "interactions"])
@pytest.mark.parametrize("popularity", [0.0, 0.75, 1.0, -0.5])
def test_several_negatives_by_popularity(graph, sampling, popularity):
    sampler = TripleSampler(graph, 20_000, sampling, seed=11, negatives=3, popularity=popularity)
    users, _, *negatives = np.concatenate([sampler.batch(step)[0].numpy() for step in range(150)], axis=1)
    negatives = np.stack(negatives) - 60
    missing = np.ones((60, 40), bool)
    missing[tuple(zip(*edges(graph)))] = False
    chances = missing * np.maximum(graph.item_degrees, 1.0) ** popularity
    for user in (2, 5, 20, 40):
        for role in negatives:
            assert chi_square(np.bincount(role[users == user], minlength=40), chances[user]) < 5
    # Those of one pair are drawn independently: as often the same as two draws are.
    user = 5
    pairs = np.bincount(negatives[0, users == user] * 40 + negatives[1, users == user], minlength=1600)
    assert chi_square(pairs, np.outer(chances[user], chances[user]).ravel()) < 5


def test_the_first_of_several_negatives_is_the_only_one_of_one(graph):
    for popularity in (0.0, 0.5):
        one = TripleSampler(graph, 300, seed=2, popularity=popularity).batch(1)[0]
        assert np.array_equal(
            TripleSampler(graph, 300, seed=2, negatives=4, popularity=popularity).batch(1)[0][:3], one
        )


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_an_alias_table_has_the_chances_it_was_made_for(count):
    """Exactly, but for the 32 bits of a limit."""
    chances = np.random.default_rng(count).pareto(0.7, count) + 1e-6
    chances /= chances.sum()
    limits, others = _alias_table(chances)
    own = limits.astype(np.float64) / 2**32
    found = (own + np.bincount(others, 1 - own, minlength=count)) / count
    assert limits.min() >= 1
    assert abs(found - chances).max() < 2**-31
    assert abs(_alias_table(np.full(count, 1 / count))[0] / 2**32 - 1).max() < 1e-9


def test_a_user_without_one_rare_item_gets_it():
    """Nearly all that is drawn is the user's own."""
    users, items = np.repeat(np.arange(1000), 2), np.tile([0, 1], 1000)
    graph = BipartiteGraph.from_edges(users, items, 1000, 3)
    (batch,) = TripleSampler(graph, 500, negatives=2, popularity=1.0).batch(0)
    assert (batch[2:] == 1002).all()


@pytest.mark.parametrize("options", [{}, SEVERAL], ids=["one", "several"])
@pytest.mark.parametrize("sampling", ["users", "interactions"])
def test_any_step_can_be_replayed_alone(graph, sampling, options):
    first = TripleSampler(graph, 50, sampling, seed=5, **options)
    batches = [first.batch(step)[0].numpy() for step in range(40)]
    set_num_threads(1)
    try:
        again = TripleSampler(graph, 50, sampling, seed=5, **options)
        for step in (39, 3, 20, 0):
            assert np.array_equal(again.batch(step)[0].numpy(), batches[step])
    finally:
        set_num_threads(2)
    other = TripleSampler(graph, 50, sampling, seed=6, **options)
    assert not np.array_equal(other.batch(0)[0].numpy(), batches[0])
    assert not np.array_equal(batches[0], batches[1])


def test_the_last_batch_of_an_epoch_holds_the_rest(graph):
    sampler = TripleSampler(graph, 64)
    sizes = [sampler.batch(step)[0].shape[1] for step in range(sampler.steps_per_epoch)]
    assert sum(sizes) == sampler.epoch_size == graph.num_edges - 40
    assert set(sizes[:-1]) == {64}


def test_nobody_to_learn_from():
    everything = BipartiteGraph.from_edges([0, 0], [0, 1], 2, 2)
    with pytest.raises(DataError, match="no user to learn from: of 2 users none"):
        TripleSampler(everything, 8)


def test_philox_gives_the_published_numbers():
    """Known answers of Philox4x32-10 that come with the authors' Random123 library."""
    ones = np.uint64(0xFFFFFFFFFFFFFFFF)
    zero = np.uint64(0)
    philox = numba.njit(_philox.philox.py_func)  # which kernels alone can call
    assert [int(word) for word in philox(zero, zero, zero)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert [int(word) for word in philox(ones, ones, ones)] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_an_epoch_is_every_user_with_items_once(graph):
    sampler = UserSampler(graph, 50, seed=1)
    epochs = []
    for epoch in range(2):
        steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
        batches = [sampler.batch(step)[0].numpy() for step in steps]
        sizes = [graph.user_degrees[batch].sum() for batch in batches]
        assert max(sizes) < 50 + graph.user_degrees.max()
        assert abs(np.mean(sizes) - 50) < 2
        epochs.append(np.concatenate(batches))
        assert sorted(epochs[-1]) == np.flatnonzero(graph.user_degrees).tolist()
    assert not np.array_equal(*epochs)
    again = UserSampler(graph, 50, seed=1)
    assert np.array_equal(again.batch(9)[0].numpy(), sampler.batch(9)[0].numpy())  # whatever came before


@pytest.mark.parametrize("popularity", [0.0, 0.75])
def test_negatives_are_shared_and_their_chance_is_known(graph, popularity):
    sampler = UserSampler(graph, 50, 12, popularity, seed=4)
    counts = np.zeros(graph.num_items)
    for step in range(3000):
        _, negatives, log_counts = (part.numpy() for part in sampler.batch(step))
        assert (np.diff(negatives) > 0).all()
        assert log_counts.dtype == np.float32
        counts[negatives] += 1
    chances = np.full(graph.num_items, np.nan)
    chances[negatives] = np.exp(log_counts)
    known = ~np.isnan(chances)
    expected = 3000 * chances[known]
    assert (np.abs(counts[known] - expected) < 5 * np.sqrt(expected)).all()
    assert (np.ptp(expected) < 1e-3) == (popularity == 0)
    assert len(UserSampler(graph, 50, 12, correction=False).batch(0)) == 2


@pytest.mark.parametrize("batch_size", [50, 10_000])
def test_the_items_of_a_batch_and_their_chance(graph, batch_size):
    sampler = UserSampler(graph, batch_size, in_batch=True, seed=4)
    found, expected = np.zeros(graph.num_items), np.zeros(graph.num_items)
    active = int((graph.user_degrees > 0).sum())
    for step in range(400 * sampler.steps_per_epoch):
        users, items, log_counts = (part.numpy() for part in sampler.batch(step))
        owned = [graph.user_items[graph.user_indptr[user] : graph.user_indptr[user + 1]] for user in users]
        has_it = np.bincount(np.concatenate(owned), minlength=graph.num_items)
        assert np.array_equal(items, np.flatnonzero(has_it))
        ways = math.comb(active - 1, len(users) - 1)
        missed = [math.comb(max(active - 1 - degree, 0), len(users) - 1) / ways for degree in graph.item_degrees]
        chances = np.maximum(1 - np.array(missed), 1e-30)
        np.testing.assert_allclose(np.exp(log_counts), chances[items], rtol=1e-5)
        # Of the users who have an item not: how many find it in their batch.
        found += (has_it > 0) * (len(users) - has_it)
        expected += chances * (len(users) - has_it)
    there = expected > 0
    assert abs(found[there] / expected[there] - 1).max() < 0.1
    assert len(UserSampler(graph, 50, in_batch=True, correction=False).batch(0)) == 2


def test_users_without_items_cannot_be_learned_from():
    with pytest.raises(DataError, match="holds no interaction"):
        UserSampler(BipartiteGraph.from_edges([], [], 3, 4), 5)


@pytest.mark.parametrize("batch_size", [1, 5, 37, 10_000])
def test_no_batch_is_without_users(graph, batch_size):
    sampler = UserSampler(graph, batch_size, seed=2)
    batches = [sampler.batch(step)[0].numpy() for step in range(sampler.steps_per_epoch)]
    assert min(map(len, batches)) > 0
    assert sorted(np.concatenate(batches)) == np.flatnonzero(graph.user_degrees).tolist()
