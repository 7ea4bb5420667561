"""The synthetic log: what was asked for, the planted model in it, and a best ranking that is the best."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnnrec.data.interactions import IdMap, Interactions
from gnnrec.data.splits import split
from gnnrec.data.synthetic import PlantedModel, generate
from gnnrec.errors import DataError, StorageError


@pytest.fixture(scope="module")
def default():
    return generate()


def dense_probability(truth):
    """p(i|u) from its definition, float64 [users, items]."""
    same = truth.user_community[:, None] == truth.item_community[None, :]
    within = np.where(same, truth.item_weight, 0.0)
    everywhere = truth.item_weight / truth.item_weight.sum()
    return (1 - truth.noise) * within / within.sum(axis=1, keepdims=True) + truth.noise * everywhere


def dense(log):
    matrix = np.zeros((log.num_users, log.num_items), dtype=bool)
    matrix[log.users, log.items] = True
    return matrix


def rank_all(scores, train, k):
    """Top-k of every user by scores [users, items], without the train items."""
    return np.argsort(np.where(dense(train), -np.inf, scores), axis=1, kind="stable")[:, ::-1][:, :k]


def recall(top, test):
    wanted = dense(test)
    hits = np.take_along_axis(wanted, top, axis=1).sum(axis=1)
    degree = wanted.sum(axis=1)
    return (hits[degree > 0] / degree[degree > 0]).mean()


def ndcg(top, test):
    wanted = dense(test)
    degree = wanted.sum(axis=1)
    discount = 1 / np.log2(np.arange(top.shape[1]) + 2)
    dcg = (np.take_along_axis(wanted, top, axis=1) * discount).sum(axis=1)
    ideal = np.array([discount[:d].sum() for d in degree])
    return (dcg[degree > 0] / ideal[degree > 0]).mean()


def test_log_is_what_was_asked_for(default):
    log = default.log
    assert (log.num_users, log.num_items, len(log)) == (3000, 2000, 120_000)
    assert log.users.dtype == log.items.dtype == np.int32
    assert dense(log).sum() == 120_000  # distinct pairs
    pairs = log.users * np.int64(log.num_items) + log.items
    assert (np.diff(pairs) > 0).all()
    assert log.user_ids.decode(np.array([0, 41, 2999])).tolist() == ["u0001", "u0042", "u3000"]
    assert log.item_ids.decode(np.array([0, 1999])).tolist() == ["i0001", "i2000"]
    assert default.truth.user_community.dtype == default.truth.item_community.dtype == np.int32
    assert default.truth.item_weight.dtype == np.float64
    for community in (default.truth.user_community, default.truth.item_community):
        sizes = np.bincount(community)
        assert len(sizes) == 10
        assert np.ptp(sizes) <= 1


@pytest.mark.parametrize(
    ("users", "items", "interactions", "communities", "noise"),
    [(1, 50, 5, 1, 0.0), (7, 1000, 35, 3, 1.0), (100, 101, 1500, 3, 0.0), (997, 333, 20_001, 4, 0.5)],
)
def test_any_size_is_met_exactly(users, items, interactions, communities, noise):
    made = generate(users, items, interactions, communities, noise=noise, seed=3)
    assert len(made.log) == interactions == dense(made.log).sum()
    assert np.bincount(made.log.users, minlength=users).min() >= 5
    if noise == 0:
        truth = made.truth
        assert (truth.user_community[made.log.users] == truth.item_community[made.log.items]).all()


def test_activity_has_a_heavy_tail():
    degree = np.sort(np.bincount(generate(3000, 20_000, 60_000, 4).log.users))
    assert degree[0] >= 5
    assert degree[-1] > 20 * np.median(degree)
    assert degree[-150:].sum() > 0.25 * degree.sum()  # the most active twentieth
    hill = 1 / np.mean(np.log(degree[-150:] / degree[-151]))
    assert hill == pytest.approx(1.5, abs=0.35)  # the exponent of the Pareto tail, standard error 0.12


def test_seed_decides_the_log():
    first, again, other = (generate(200, 100, 2000, 2, seed=s) for s in (5, 5, 6))
    np.testing.assert_array_equal(first.log.items, again.log.items)
    np.testing.assert_array_equal(first.log.users, again.log.users)
    np.testing.assert_array_equal(first.truth.item_weight, again.truth.item_weight)
    assert not np.array_equal(first.truth.item_weight, other.truth.item_weight)
    assert not np.array_equal(first.log.items, other.log.items)


def test_weights_follow_the_power_law_and_the_log_follows_the_weights():
    made = generate(4000, 1000, 80_000, 4, popularity_exponent=1.1, noise=0.3, seed=1)
    weights = np.sort(made.truth.item_weight)[::-1]
    np.testing.assert_allclose(weights, np.arange(1, 1001) ** -1.1, rtol=1e-12)
    # Hardly a user draws one of the lighter items twice, so their counts go with the sum of p(i|u) over users,
    # times one factor: the draws that repeated a heavy item and were drawn again.
    expected = dense_probability(made.truth).sum(axis=0)
    counts = np.bincount(made.log.items, minlength=1000)
    order = np.argsort(-made.truth.item_weight)
    bands = [counts[band].sum() / expected[band].sum() for band in np.split(order[100:], 9)]
    assert max(bands) < 1.2 * min(bands)
    slope = np.polyfit(np.log(np.arange(101, 1001)), np.log(counts[order[100:]]), 1)[0]
    assert slope == pytest.approx(-1.1, abs=0.1)


def test_share_of_noise():
    made = generate(3000, 3000, 30_000, 3, popularity_exponent=0.0, noise=0.3, seed=2)
    inside = made.truth.user_community[made.log.users] == made.truth.item_community[made.log.items]
    # a third of the noisy draws fall inside all the same; with flat weights few draws repeat
    assert inside.mean() == pytest.approx(0.7 + 0.3 / 3, abs=0.01)


def test_probability_is_the_definition(default):
    p = dense_probability(default.truth)
    for user in (0, 17, 2999):
        community = int(default.truth.user_community[user])
        np.testing.assert_allclose(default.truth.probability(community, np.arange(2000)), p[user], rtol=1e-12)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)


def brute_topk(truth, train, users, k):
    """Every user's order by (p, weight, smaller number), from the dense matrix; -1 for what is in train."""
    p = dense_probability(truth)
    seen = dense(train)
    number = np.arange(truth.num_items)
    top = np.full((len(users), k), -1)
    for row, user in enumerate(users):
        order = np.lexsort((number, -truth.item_weight, -p[user].round(14)))
        order = order[~seen[user, order]][:k]
        top[row, : len(order)] = order
    return top


@given(st.data())
def test_best_topk_equals_brute_force(data):
    users, items = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 25))
    communities = data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    truth = PlantedModel(
        rng.integers(0, communities, users).astype(np.int32),
        rng.permutation(np.arange(items) % communities).astype(np.int32),
        rng.choice([1.0, 0.5, 0.25, 0.125], items),  # many ties
        noise=data.draw(st.sampled_from([0.0, 0.1, 0.6, 1.0])),
    )
    truth.user_community[:] = truth.item_community[rng.integers(0, items, users)]  # a community that has items
    pairs = np.flatnonzero(rng.random(users * items) < data.draw(st.sampled_from([0.0, 0.3, 0.9, 1.0])))
    train = Interactions(
        (pairs // items).astype(np.int32), (pairs % items).astype(np.int32), IdMap.range(users), IdMap.range(items)
    ).take(rng.permutation(len(pairs)))
    asked = rng.integers(0, users, data.draw(st.integers(0, 20)))
    k = data.draw(st.integers(1, items))
    top = truth.best_topk(asked, k, train)
    assert top.dtype == np.int32
    np.testing.assert_array_equal(top, brute_topk(truth, train, asked, k))


def test_best_topk_and_metrics_on_the_default_log(default, monkeypatch):
    truth = default.truth
    train, _, test = split(default.log)
    users = np.arange(3000)
    whole = truth.best_topk(users, 20, train)
    np.testing.assert_array_equal(whole, brute_topk(truth, train, users, 20))
    assert truth.best_recall(train, test, 20) == pytest.approx(recall(whole, test), abs=1e-12)
    assert truth.best_ndcg(train, test, 20) == pytest.approx(ndcg(whole, test), abs=1e-12)
    monkeypatch.setattr("gnnrec.data.synthetic._BLOCK_CELLS", 3000)  # blocks of a few users, down to one
    np.testing.assert_array_equal(truth.best_topk(users, 20, train), whole)


def test_metrics_where_users_run_out_of_items():
    same = np.zeros(3, dtype=np.int32)
    truth = PlantedModel(same[:2], same, np.array([4.0, 2.0, 1.0]), noise=0.0)
    ids = IdMap.range(2), IdMap.range(3)
    train = Interactions(np.array([0, 1, 1], dtype=np.int32), np.array([0, 0, 1], dtype=np.int32), *ids)
    test = Interactions(np.array([0, 1], dtype=np.int32), np.array([2, 2], dtype=np.int32), *ids)
    assert truth.best_topk(np.array([1, 0]), 3, train).tolist() == [[2, -1, -1], [1, 2, -1]]
    assert truth.best_recall(train, test, 3) == 1.0
    assert truth.best_recall(train, test, 1) == 0.5
    assert truth.best_ndcg(train, test, 3) == pytest.approx((1 / np.log2(3) + 1) / 2)


def test_default_log_leaves_room_for_a_model(default):
    train, _, test = split(default.log)
    best = default.truth.best_recall(train, test, 20)
    popularity = np.broadcast_to(np.bincount(train.items, minlength=2000), (3000, 2000)).astype(float)
    popular = recall(rank_all(popularity, train, 20), test)
    assert 0.3 < best < 0.6
    assert popular < 0.6 * best
    assert recall(rank_all(np.random.default_rng(0).random((3000, 2000)), train, 20), test) < 0.05


@pytest.mark.parametrize("by", ["random", "per_user", "leave_one_out"])
def test_no_other_ranking_is_better_on_average(by):
    rng = np.random.default_rng(0)
    gains = {"perturbed": [], "popularity": [], "counts": [], "reversed": []}
    for seed in range(12):
        made = generate(400, 300, 8000, 4, noise=0.2, seed=seed)
        train, test = split(made.log, by, (0.7, 0.3), seed)
        p = dense_probability(made.truth)
        counts = np.stack(
            [np.bincount(train.items[made.truth.user_community[train.users] == c], minlength=300) for c in range(4)]
        )
        rivals = {
            "perturbed": p * np.exp(0.2 * rng.standard_normal(p.shape)),
            "popularity": np.broadcast_to(made.truth.item_weight, p.shape),
            "counts": counts[made.truth.user_community].astype(
                float
            ),  # estimated from train, with the communities known
            "reversed": -p,
        }
        for name, scores in rivals.items():
            top = rank_all(scores, train, 10)
            recalls = made.truth.best_recall(train, test, 10) - recall(top, test)
            ndcgs = made.truth.best_ndcg(train, test, 10) - ndcg(top, test)
            gains[name].append((recalls, ndcgs))
    for name, gain in gains.items():
        assert (np.mean(gain, axis=0) > 0).all(), name


def test_save_and_load(tmp_path, default):
    path = tmp_path / "truth.npz"
    default.truth.save(path)
    again = PlantedModel.load(path)
    for name in ("user_community", "item_community", "item_weight"):
        np.testing.assert_array_equal(getattr(again, name), getattr(default.truth, name))
        assert getattr(again, name).dtype == getattr(default.truth, name).dtype
    assert again.noise == default.truth.noise
    assert type(again.noise) is float


def test_load_refuses_what_is_no_model(tmp_path):
    pickled, other, array = tmp_path / "pickled.npz", tmp_path / "other.npz", tmp_path / "array.npz"
    np.savez(pickled, noise=0.1, item_weight=np.array([{}], dtype=object))
    np.savez(other, noise=0.1, item_weight=np.ones(3))
    with array.open("wb") as file:
        np.save(file, np.ones(3))
    (tmp_path / "text.npz").write_text("no zip")
    for name in ("missing.npz", "pickled.npz", "other.npz", "array.npz", "text.npz"):
        with pytest.raises(DataError, match=f"{name}: no planted model can be read"):
            PlantedModel.load(tmp_path / name)


def test_save_says_where_it_cannot(tmp_path, default):
    with pytest.raises(StorageError, match=r"none/truth\.npz"):
        default.truth.save(tmp_path / "none" / "truth.npz")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_users": 0}, "num_users is 0"),
        ({"num_items": 2**31}, "num_items is 2147483648"),
        ({"communities": 0}, "communities is 0"),
        ({"communities": 2001}, r"communities is 2001\. Use 1 to 2000"),
        ({"num_interactions": 14_999}, r"num_interactions is 14999\. Use 15000 or more, 5 a user"),
        ({"noise": 1.5}, r"noise is 1\.5\. Use 0 to 1"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"popularity_exponent": -1}, "popularity_exponent is -1"),
        ({"seed": -1}, "seed is -1"),
        (
            {"num_interactions": 3_000_000},
            "3000000 interactions, where the communities have items for .* Ask for fewer",
        ),
        ({"communities": 500}, "120000 interactions, where .* for 1 of one user.* fewer communities"),
    ],
)
def test_impossible_requests_are_refused(kwargs, message):
    with pytest.raises(DataError, match=message):
        generate(**kwargs)


def test_misuse_of_the_truth_is_refused(default):
    train, _, test = split(default.log)
    other = generate(50, 40, 300, 2).log
    with pytest.raises(DataError, match="50 users and 40 items, where the planted model has 3000 and 2000"):
        default.truth.best_topk(np.arange(3), 5, other)
    for k in (0, 2001):
        with pytest.raises(DataError, match=f"k is {k}. Use 1 to 2000"):
            default.truth.best_recall(train, test, k)
    with pytest.raises(DataError, match="no interactions"):
        default.truth.best_ndcg(train, test.take(np.arange(0)), 5)
