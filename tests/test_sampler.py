"""The samplers: negatives, uniformity, replay, users once an epoch."""

import numpy as np
import pytest

from gnnrec.errors import DataError
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.ops import set_num_threads
from gnnrec.ops._philox import philox
from gnnrec.training.sampler import TripleSampler, UserSampler


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


@pytest.mark.parametrize("sampling", ["users", "interactions"])
def test_triples_are_positive_and_negative(graph, sampling):
    known = edges(graph)
    sampler = TripleSampler(graph, 64, sampling, seed=3)
    for step in range(2 * sampler.steps_per_epoch):
        users, positives, negatives = sampler.batch(step)[0].numpy()
        assert all((u, p - 60) in known for u, p in zip(users.tolist(), positives.tolist()))
        assert not any((u, n - 60) in known for u, n in zip(users.tolist(), negatives.tolist()))
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


@pytest.mark.parametrize("sampling", ["users", "interactions"])
def test_any_step_can_be_replayed_alone(graph, sampling):
    first = TripleSampler(graph, 50, sampling, seed=5)
    batches = [first.batch(step)[0].numpy() for step in range(40)]
    set_num_threads(1)
    try:
        again = TripleSampler(graph, 50, sampling, seed=5)
        for step in (39, 3, 20, 0):
            assert np.array_equal(again.batch(step)[0].numpy(), batches[step])
    finally:
        set_num_threads(2)
    other = TripleSampler(graph, 50, sampling, seed=6)
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


def test_users_without_items_cannot_be_learned_from():
    with pytest.raises(DataError, match="holds no interaction"):
        UserSampler(BipartiteGraph.from_edges([], [], 3, 4), 5)


@pytest.mark.parametrize("batch_size", [1, 5, 37, 10_000])
def test_no_batch_is_without_users(graph, batch_size):
    sampler = UserSampler(graph, batch_size, seed=2)
    batches = [sampler.batch(step)[0].numpy() for step in range(sampler.steps_per_epoch)]
    assert min(map(len, batches)) > 0
    assert sorted(np.concatenate(batches)) == np.flatnonzero(graph.user_degrees).tolist()
