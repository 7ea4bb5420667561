"""Synthetic interaction logs with a planted model, so that the best attainable accuracy is known.

Every user and every item belongs to one community, and item weights w follow a power law. User u draws items from

    p(i|u) = (1 - noise) * w_i [c(i) = c(u)] / W_c(u)  +  noise * w_i / W

(W_c: the weight of community c, W: of all items), with replacement, until a number of distinct items set beforehand is
reached. The log holds the distinct pairs.

Why no model can rank better than by p(i|u): let i and j be items that u does not have in train, with p(i|u) > p(j|u).
Take any course of draws, and any random split of its distinct items, that puts j into test and leaves i undrawn. With i
drawn wherever j was, it leads to the same train part and to as many test items, and it is the more probable course, by
the factor p(i|u) / p(j|u) for each such draw. So, given train, i is the likelier test item, whatever the size of the
test part, and to rank the items outside train by p(i|u) maximises the expected recall and NDCG at every K. (The recall
of one log scatters around its expectation.)
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from os import PathLike
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gnnrec.data.columns import Int32Array
from gnnrec.data.interactions import IdMap, Interactions
from gnnrec.errors import DataError
from gnnrec.storage import atomic_write

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

MIN_PER_USER = 5
_ACTIVITY_SHAPE = 1.5  # of the Pareto distribution of the users' activity: a heavy tail with a finite mean
_MOST_MASS = 0.9  # no user has more of its community's weight: the more it has, the longer it draws to find a new item
_BLOCK_CELLS = 1 << 22  # of the users x items mask that best_topk holds at a time


@dataclass(frozen=True)
class PlantedModel:
    """The model behind a synthetic log; users and items are their numbers in it.

    Args:
        user_community: int32 [users].
        item_community: int32 [items].
        item_weight: float64 [items], above 0.
        noise: share of the draws that do not heed communities, 0 to 1.
    """

    user_community: Int32Array
    item_community: Int32Array
    item_weight: Float64Array
    noise: float

    @property
    def num_items(self) -> int:
        """Number of items."""
        return len(self.item_weight)

    def probability(self, community: int, items: npt.NDArray[np.integer]) -> Float64Array:
        """p(i|u) of the given items for any user of `community`, float64 [len(items)]."""
        weight, inside = self.item_weight[items], self.item_community[items] == community
        own = self.item_weight[self.item_community == community].sum()
        return np.asarray((1 - self.noise) * inside * weight / own + self.noise * weight / self.item_weight.sum())

    def best_topk(self, users: npt.NDArray[np.integer], k: int, train: Interactions) -> Int32Array:
        """The best K items for each user: by p(i|u), without the user's items in `train`.

        Args:
            users: numbers of the users.
            k: how many.
            train: the log's train part, with the log's id maps.

        Returns:
            int32 [len(users), k], best first; equal p by weight, then by number; -1 where a user has fewer items left.

        Raises:
            DataError: `train` belongs to another log, or k is not within 1 and the number of items.
        """
        self._check(train, k)
        counts = np.bincount(train.users, minlength=train.num_users)
        items = train.items[np.argsort(train.users, kind="stable")]
        starts = np.cumsum(counts) - counts
        by_weight = np.argsort(-self.item_weight, kind="stable")
        top = np.empty((len(users), k), dtype=np.int32)
        for community in np.unique(self.user_community[users]):
            # those with the most items in train first: k and what they have seen bound the width of every later block
            members = np.flatnonzero(self.user_community[users] == community)
            members = members[np.argsort(-counts[users[members]], kind="stable")]
            ranking = self._ranking(by_weight, community, k + int(counts[users[members[0]]]))
            while len(members):
                width = min(k + int(counts[users[members[0]]]), self.num_items)
                block, members = np.split(members, [max(1, _BLOCK_CELLS // width)])
                seen = counts[users[block]]
                row = np.repeat(np.arange(len(block)), seen)
                cell = np.arange(len(row)) + np.repeat(starts[users[block]] - (np.cumsum(seen) - seen), seen)
                top[block] = self._first_unseen(ranking[:width], row, items[cell], len(block), k)
        return top

    def best_recall(self, train: Interactions, test: Interactions, k: int) -> float:
        """Recall@K of `best_topk`: hits / the user's test items, mean over the users with a test item.

        Raises:
            DataError: as `best_topk`, or `test` is empty.
        """
        hits, wanted = self._best_hits(train, test, k)
        return float(np.mean(hits.sum(axis=1) / wanted))

    def best_ndcg(self, train: Interactions, test: Interactions, k: int) -> float:
        """NDCG@K of `best_topk`, the ideal DCG over min(K, test items), mean over the users with a test item.

        Raises:
            DataError: as `best_topk`, or `test` is empty.
        """
        hits, wanted = self._best_hits(train, test, k)
        discount = 1 / np.log2(np.arange(2, k + 2))
        ideal = np.cumsum(discount)[np.minimum(wanted, k) - 1]
        return float(np.mean(hits @ discount / ideal))

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the model to an npz file. Raises StorageError where that fails."""
        buffer = io.BytesIO()
        np.savez(buffer, **asdict(self))
        atomic_write(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> PlantedModel:
        """Reads what `save` wrote; nothing is unpickled. Raises DataError where the file is missing or another one."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(**{name: file[name] for name in file.files} | {"noise": float(file["noise"])})
        except (OSError, BadZipFile, ValueError, KeyError, TypeError) as error:
            remedy = "Give the file that PlantedModel.save wrote, or generate the log again"
            raise DataError(f"no planted model can be read: {error}", where=str(path), remedy=remedy) from error

    def _best_hits(self, train: Interactions, test: Interactions, k: int) -> tuple[npt.NDArray[np.bool_], Int64Array]:
        """Of each user with a test item: which of the best K are in test [users, k], and the number of test items."""
        if not len(test):
            raise DataError("no interactions", where=test.name, remedy="Give the test part of the log")
        users, wanted = np.unique(test.users, return_counts=True)
        top = self.best_topk(users, k, train)
        pairs = np.sort(test.users * np.int64(self.num_items) + test.items)
        asked = users[:, None] * np.int64(self.num_items) + top
        found = pairs[np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)] == asked
        return found & (top >= 0), wanted

    def _ranking(self, by_weight: Int64Array, community: int, length: int) -> Int64Array:
        """The first `length` items for a user of `community` with none in train.

        The items inside the community, and those outside, are ranked by weight: so the first of all items are among the
        first inside and the first by weight.
        """
        inside = by_weight[self.item_community[by_weight] == community]
        items = np.union1d(inside[:length], by_weight[:length])
        order = np.lexsort((items, -self.item_weight[items], -self.probability(community, items)))
        return np.asarray(items[order][:length])

    def _first_unseen(self, ranking: Int64Array, row: Int64Array, seen: Int32Array, rows: int, k: int) -> Int64Array:
        """The first k of `ranking` for each of `rows` users, without what they have: user row[n] has item seen[n]."""
        place = np.full(self.num_items, len(ranking))
        place[ranking] = np.arange(len(ranking))
        taken = np.zeros((rows, len(ranking) + 1), dtype=np.bool_)
        taken[row, place[seen]] = True
        first = np.argsort(taken[:, :-1], axis=1, kind="stable")[:, :k]
        return np.where(np.take_along_axis(taken, first, axis=1), -1, ranking[first])

    def _check(self, train: Interactions, k: int) -> None:
        if (train.num_users, train.num_items) != (len(self.user_community), self.num_items):
            raise DataError(
                f"{train.num_users} users and {train.num_items} items, where the planted model has "
                f"{len(self.user_community)} and {self.num_items}",
                where=train.name,
                remedy="Give a split of the log the model was generated with, not compacted",
            )
        if not 1 <= k <= self.num_items:
            raise DataError(f"k is {k}", where="k", remedy=f"Use 1 to {self.num_items}, the number of items")


@dataclass(frozen=True)
class SyntheticLog:
    """A synthetic log and the model that it was drawn from."""

    log: Interactions
    truth: PlantedModel


def generate(
    num_users: int = 3000,
    num_items: int = 2000,
    num_interactions: int = 120_000,
    communities: int = 10,
    popularity_exponent: float = 0.8,
    noise: float = 0.1,
    seed: int = 0,
) -> SyntheticLog:
    """Draws a log from a planted model (see the module's docstring), in O(interactions) memory.

    Args:
        num_users, num_items: how many; each user has at least 5 interactions, an item may have none.
        num_interactions: number of distinct (user, item) pairs. How active the users are follows a Pareto distribution.
        communities: number of communities; their numbers of users and of items differ by one at most.
        popularity_exponent: the item of rank r, from 1, has the weight r ** -popularity_exponent.
        noise: share of the draws that do not heed communities, 0 to 1.
        seed: 0 or more; equal arguments give an equal log.

    Returns:
        The log, its rows sorted by user and item and with ids such as "u0042" and "i0007" (from 1 on), and the model.

    Raises:
        DataError: an argument out of its range, or more interactions than can be drawn in reasonable time.
    """
    _check_arguments(num_users, num_items, num_interactions, communities, popularity_exponent, noise, seed)
    rng = np.random.Generator(np.random.Philox(seed))
    rank = rng.permutation(num_items)
    truth = PlantedModel(
        user_community=(rng.permutation(num_users) % communities).astype(np.int32),
        item_community=(rank % communities).astype(np.int32),
        item_weight=np.power(rank + 1.0, -popularity_exponent),
        noise=noise,
    )
    sampler = _Sampler(truth, communities)
    degrees = _degrees(rng, sampler.most_items[truth.user_community], num_interactions)
    pairs = sampler.draw_distinct(rng, degrees)
    log = Interactions(
        (pairs // num_items).astype(np.int32),
        (pairs % num_items).astype(np.int32),
        _ids("u", num_users),
        _ids("i", num_items),
        name="synthetic",
    )
    return SyntheticLog(log, truth)


def _check_arguments(
    num_users: int, num_items: int, num_interactions: int, communities: int, exponent: float, noise: float, seed: int
) -> None:
    largest = int(np.iinfo(np.int32).max)
    most = min(num_users, num_items)
    for name, value, valid, allowed in (
        ("num_users", num_users, 1 <= num_users <= largest, f"1 to {largest}"),
        ("num_items", num_items, 1 <= num_items <= largest, f"1 to {largest}"),
        ("communities", communities, 1 <= communities <= most, f"1 to {most}, the users or items"),
        (
            "num_interactions",
            num_interactions,
            num_interactions >= num_users * MIN_PER_USER,
            f"{num_users * MIN_PER_USER} or more, {MIN_PER_USER} a user",
        ),
        ("popularity_exponent", exponent, 0 <= exponent < 10, "0 to below 10"),
        ("noise", noise, 0 <= noise <= 1, "0 to 1"),
        ("seed", seed, seed >= 0, "0 or more"),
    ):
        if not valid:
            raise DataError(f"{name} is {value}", where="synthetic", remedy=f"Use {allowed}")


class _Sampler:
    """Draws items by p(i|u): the items lie on a line, community after community, each as long as its weight."""

    def __init__(self, truth: PlantedModel, communities: int) -> None:
        self.truth = truth
        self.items = np.lexsort((-truth.item_weight, truth.item_community))
        self.ends = np.cumsum(truth.item_weight[self.items])
        last = np.cumsum(np.bincount(truth.item_community, minlength=communities))
        bounds = np.concatenate([[0.0], self.ends[last - 1]])
        self.start, self.length = bounds[:-1], np.diff(bounds)
        # by community: how many of its items, the heaviest first, hold _MOST_MASS of its weight
        self.most_items = np.searchsorted(self.ends, self.start + _MOST_MASS * self.length) + 1
        self.most_items -= last - np.diff(last, prepend=0)

    def draw(self, rng: np.random.Generator, users: Int64Array) -> Int64Array:
        community = self.truth.user_community[users]
        place = rng.random(len(users))
        heeds = rng.random(len(users)) >= self.truth.noise
        place = np.where(heeds, self.start[community] + place * self.length[community], place * self.ends[-1])
        return self.items[np.minimum(np.searchsorted(self.ends, place, side="right"), len(self.items) - 1)]

    def draw_distinct(self, rng: np.random.Generator, degrees: Int64Array) -> Int64Array:
        """Pairs user * items + item, sorted: as many draws as a user lacks, then again for what these repeated."""
        num_items = len(self.items)
        pairs = np.empty(0, dtype=np.int64)
        lacking = degrees.copy()
        while lacking.any():
            users = np.repeat(np.arange(len(degrees)), lacking)
            drawn = users * num_items + self.draw(rng, users)
            drawn.sort()
            drawn = drawn[np.diff(drawn, prepend=-1) > 0]
            if len(pairs):
                drawn = drawn[pairs[np.minimum(np.searchsorted(pairs, drawn), len(pairs) - 1)] != drawn]
            lacking -= np.bincount(drawn // num_items, minlength=len(degrees))
            pairs = np.concatenate([pairs, drawn])
            pairs.sort(kind="stable")  # merges the two sorted runs in linear time
        return pairs


def _degrees(rng: np.random.Generator, most: Int64Array, total: int) -> Int64Array:
    """Interactions of each user, int64, with the given sum: heavy-tailed, from MIN_PER_USER to `most`."""
    if total > most.sum() or most.min() < MIN_PER_USER:
        raise DataError(
            f"{total} interactions, where the communities have items for {most.sum()}, for {most.min()} of one user",
            where="num_interactions",
            remedy=f"Ask for fewer (but {MIN_PER_USER} a user), for more users or items, or for fewer communities",
        )
    activity = rng.pareto(_ACTIVITY_SHAPE, len(most)) + 1
    low, high = 0.0, float(most.max())
    for _ in range(100):  # bisects for the scale at which the bounded activities have the wanted sum
        scale = (low + high) / 2
        enough = np.clip(scale * activity, MIN_PER_USER, most).sum() >= total
        low, high = (low, scale) if enough else (scale, high)
    wanted = np.clip(low * activity, MIN_PER_USER, most)  # just below the total: rounded down, and the rest handed out
    degrees = np.floor(wanted).astype(np.int64)
    spare = np.flatnonzero(degrees < most)
    spare = spare[np.argsort(degrees[spare] - wanted[spare], kind="stable")]
    degrees[spare[: total - degrees.sum()]] += 1
    return degrees


def _ids(prefix: str, n: int) -> IdMap:
    digits = pc.utf8_lpad(pa.array(np.arange(1, n + 1)).cast(pa.string()), width=len(str(n)), padding="0")
    return IdMap(pc.binary_join_element_wise(prefix, digits, ""))
