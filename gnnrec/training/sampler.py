"""Batches, drawn by counter: triples (user, item of the user, items not of the user), or users with all their items."""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
import torch

from gnnrec import extensions
from gnnrec.config import BPRConfig, CustomLossConfig, LossConfig, SoftmaxConfig, TrainerConfig
from gnnrec.errors import DataError
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.graph.rows import GraphRows
from gnnrec.memtier.workload import order_bytes
from gnnrec.ops._numba import VERSION, inline
from gnnrec.ops._parallel import consecutive, kernel
from gnnrec.ops._philox import below, philox

TINY = 1e-30  # a chance whose logarithm is still finite
serial: Any = numba.njit(cache=True, nogil=True, error_model="numpy")


class TripleSampler:
    """Draws batches of triples; batch number `step` is a function of (seed, step) alone, so any can be replayed.

    Args:
        graph: the training graph. Users without items, or with all of them, are never drawn. Of a graph whose rows lie
            with several ranks, each draws the items for its users, and all get the same batches; sampling is then by
            users.
        batch_size: triples in a batch; the last one of an epoch holds the rest.
        sampling: "users": a uniform user, then a uniform item of the user, as many as there are edges in an epoch (the
            code of He et al. 2020); "interactions": every edge once an epoch, shuffled.
        seed: of the draws.
        negatives: items for every positive, each drawn for itself.
        popularity: a negative is drawn with a probability proportional to its number of users, at least 1, to this
            power. Items of the user are drawn again, so that a negative takes 1 / (probability of all items that the
            user has not) draws on average, however few these are.
        pinned: put batches into memory from which a GPU copies while the CPU goes on.

    Raises:
        DataError: no user has both an item and a missing item.
    """

    def __init__(
        self,
        graph: BipartiteGraph | GraphRows,
        batch_size: int,
        sampling: str = "users",
        seed: int = 0,
        *,
        negatives: int = 1,
        popularity: float = 0.0,
        pinned: bool = False,
    ) -> None:
        degrees = graph.user_degrees
        active = np.flatnonzero((degrees > 0) & (degrees < graph.num_items))
        if not len(active):
            raise DataError(
                f"no user to learn from: of {graph.num_users} users none has some but not all of the "
                f"{graph.num_items} items",
                where="training data",
                remedy="Check the filters (data.min_rating, data.k_core) and the columns that were read",
            )
        self.graph, self.batch_size, self.seed, self.pinned = graph, batch_size, seed, pinned
        self._active, self._shuffle = active.astype(np.int32), sampling == "interactions"
        self._negatives = negatives
        # Uniform draws need no table.
        self._table = _alias_table(_chances(graph, popularity) if popularity else np.empty(0))
        self.epoch_size = int(degrees[active].sum())
        self.steps_per_epoch = -(-self.epoch_size // batch_size)
        self._order: tuple[int, Any] = (-1, None)

    def batch(self, step: int) -> tuple[torch.Tensor]:
        """The triples of this step as node numbers, int64 [2 + negatives, batch]: users, positive items, negative
        items."""
        epoch, within = divmod(step, self.steps_per_epoch)
        first = within * self.batch_size
        count = min(self.batch_size, self.epoch_size - first)
        batch = torch.empty((2 + self._negatives, count), dtype=torch.int64, pin_memory=self.pinned)
        triples = batch.numpy()
        if self._shuffle:
            edges = self._edges(epoch)[first : first + count]
            triples[0] = np.searchsorted(self.graph.user_indptr, edges, side="right") - 1
            triples[1] = self.graph.user_items[edges]
        _compile()(
            triples.shape[1],
            np.uint64(self.seed),
            np.uint64(epoch * self.epoch_size + first),
            self._shuffle,
            self._active,
            self.graph.user_indptr,
            self.graph.user_items,
            self.graph.num_items,
            *self._table,
            triples,
        )
        triples[1:] += self.graph.num_users
        if isinstance(self.graph, GraphRows):
            which, _ = self.graph.here(batch[0])
            batch[1:] = self.graph.collect(batch[0], batch[1:, which].int().T.contiguous()).T
        return (batch,)

    def nodes(self, batch: tuple[torch.Tensor, ...]) -> tuple[Any, Any]:
        """The different users and positive items of a batch, int64 node numbers in rising order."""
        users, items = batch[0].numpy()[:2]
        return _different(users, self.graph.num_nodes), _different(items, self.graph.num_nodes)

    def _edges(self, epoch: int) -> Any:
        """The edges of the active users in this epoch's order; kept for the epoch, `order_bytes` each."""
        if self._order[0] != epoch:
            self._order = (-1, None)  # before there is another one
            degrees, count = self.graph.user_degrees, self.graph.num_edges
            edges = np.arange(count, dtype=f"i{order_bytes(count)}")
            if self.epoch_size < count:
                edges = edges[np.repeat(degrees < self.graph.num_items, degrees)]
            np.random.Generator(np.random.Philox(key=[self.seed, epoch])).shuffle(edges)
            self._order = (epoch, edges)
        return self._order[1]


class UserSampler:
    """Draws batches of users, each once an epoch, and items as negatives that a batch shares; batch number `step` is a
    function of (seed, step) alone.

    Args:
        graph: the training graph. Users without items are never drawn.
        batch_size: about how many interactions the users of a batch have together. A batch has at least one user, who
            may have more of them.
        negatives: draws of an item for a batch, of which the different ones are taken; None draws none.
        popularity: an item is drawn with a probability proportional to its number of users, at least 1, to this power.
        in_batch: take the different items of the batch's users as negatives instead.
        correction: also give the logarithm of the probability that an item is among a batch's negatives; in_batch, for
            a user of the batch who has it not, as if all batches of so many users were as likely.
        seed: of the draws.
        pinned: as in TripleSampler.

    Raises:
        DataError: no user has an item.
    """

    def __init__(
        self,
        graph: BipartiteGraph,
        batch_size: int,
        negatives: int | None = None,
        popularity: float = 0.0,
        correction: bool = True,
        seed: int = 0,
        *,
        in_batch: bool = False,
        pinned: bool = False,
    ) -> None:
        active = np.flatnonzero(graph.user_degrees)
        if not len(active):
            raise DataError("holds no interaction", where="training data", remedy="Check the filters")
        self.graph, self.batch_size, self.seed, self.pinned = graph, batch_size, seed, pinned
        self._active, self._degrees = active, graph.user_degrees
        self.steps_per_epoch = min(len(active), -(-int(graph.user_degrees.sum()) // batch_size))
        self._order: tuple[int, Any, Any] = (-1, None, None)
        self._negatives, self._in_batch, self._correction = negatives, in_batch, correction
        self._chances = _chances(graph, popularity)
        self._below = np.cumsum(self._chances)

    def batch(self, step: int) -> tuple[torch.Tensor, ...]:
        """Users int64 [n]; with negatives, items int64 [m] in rising order; with the correction, float32 [m]."""
        epoch, within = divmod(step, self.steps_per_epoch)
        users, starts = self._shuffled(epoch)
        parts = [users[starts[within] : starts[within + 1]]]
        if self._negatives is not None:
            key = np.array([self.seed, 2**63 + step], np.uint64)  # of a list numpy would make float64
            generator = np.random.Generator(np.random.Philox(key=key))
            # In rising order, so that the next one is found near the last.
            drawn = np.searchsorted(self._below, np.sort(generator.random(self._negatives)), side="right")
            drawn = np.minimum(drawn, len(self._below) - 1)
            items = drawn[np.diff(drawn, prepend=-1) > 0]
            self._add(parts, items, self._negatives * np.log1p(-self._chances[items]))
        elif self._in_batch:
            items = self._items(parts[0])
            self._add(parts, items, _log_missed(len(self._active), len(parts[0]), self.graph.item_degrees[items]))
        tensors = [torch.from_numpy(np.ascontiguousarray(part)) for part in parts]
        return tuple(tensor.pin_memory() if self.pinned else tensor for tensor in tensors)

    def _add(self, parts: list[Any], items: Any, log_never: Any) -> None:
        """The negatives of a batch, and by the logarithm of their chance not to be among them that of the contrary."""
        parts.append(items)
        if self._correction:
            chance = np.maximum(-np.expm1(log_never), TINY)  # a batch of one user has no negatives
            parts.append(np.log(chance).astype(np.float32))

    def nodes(self, batch: tuple[torch.Tensor, ...]) -> tuple[Any, Any]:
        """The users of a batch and the different items of these, int64 node numbers in rising order."""
        users = np.sort(batch[0].numpy())
        return users, self._items(users) + self.graph.num_users

    def _items(self, users: Any) -> Any:
        """The different items of users, int64 in rising order."""
        graph = self.graph
        parts = [graph.user_items[graph.user_indptr[user] : graph.user_indptr[user + 1]] for user in users]
        return _different(np.concatenate(parts), graph.num_items)

    def _shuffled(self, epoch: int) -> tuple[Any, Any]:
        """The users in this epoch's order, and where in it batches start; the last number is where the last ends."""
        if self._order[0] != epoch:
            users = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(self._active)
            before = np.cumsum(self._degrees[users]) - self._degrees[users]
            steps, every = self.steps_per_epoch, np.arange(self.steps_per_epoch)
            starts = np.searchsorted(before, every * self.batch_size)
            starts = np.maximum.accumulate(starts - every) + every  # no batch without a user,
            starts = np.minimum(starts, len(users) - steps + every)  # the last ones either
            self._order = (epoch, users, np.append(starts, len(users)))
        return self._order[1], self._order[2]


class WithNodes:
    """Batches of another sampler, before each the nodes that a contrastive term takes: found on the CPU, where nothing
    has to wait for how many there are.

    Args:
        sampler: the other one.
        most: how many users, and how many items, of a batch are taken at the most; where there are more, as many are
            drawn, a function of (seed, step).
    """

    def __init__(self, sampler: TripleSampler | UserSampler, most: int) -> None:
        self.sampler, self.most, self.steps_per_epoch = sampler, most, sampler.steps_per_epoch

    def batch(self, step: int) -> tuple[torch.Tensor, ...]:
        """Different users int64 [n] and items int64 [m] as node numbers, then the other sampler's batch."""
        given = self.sampler.batch(step)
        key = np.array([self.sampler.seed, 2**62 + step], np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        taken = [
            nodes if len(nodes) <= self.most else np.sort(generator.choice(nodes, self.most, replace=False))
            for nodes in self.sampler.nodes(given)
        ]
        tensors = (torch.from_numpy(nodes) for nodes in taken)
        return (*(tensor.pin_memory() if self.sampler.pinned else tensor for tensor in tensors), *given)


Sampler = TripleSampler | UserSampler | WithNodes


def _log_missed(users: int, batch: int, degrees: Any) -> Any:
    """The logarithm of the chance that a user's batch has no user of an item, of whom there are `degrees` among the
    others: C(users - 1 - degree, batch - 1) / C(users - 1, batch - 1), as a product over the item's users."""
    others = users - 1.0 - np.arange(int(degrees.max(initial=0)))
    with np.errstate(divide="ignore"):
        factors = np.log1p(-np.minimum((batch - 1) / np.maximum(others, 1), 1))
    return np.concatenate([[0.0], np.cumsum(factors)])[np.minimum(degrees, users - 1)]


def _different(numbers: Any, size: int) -> Any:
    """The different ones of numbers below size, int64, in rising order."""
    there = np.zeros(size, bool)
    there[numbers] = True
    return np.flatnonzero(there)


def build(
    loss: LossConfig, graph: BipartiteGraph | GraphRows, config: TrainerConfig, seed: int, *, pinned: bool
) -> TripleSampler | UserSampler:
    """The sampler of what the loss takes."""
    assert config.batch_size is not None
    if isinstance(loss, BPRConfig):
        return TripleSampler(
            graph,
            config.batch_size,
            config.sampling or "users",
            seed,
            negatives=loss.negatives,
            popularity=loss.popularity,
            pinned=pinned,
        )
    assert isinstance(graph, BipartiteGraph)
    if isinstance(loss, CustomLossConfig) and loss.batches not in ("triples", "users"):
        make, options = extensions.load("loss.batches", loss.batches), {"seed": seed, "pinned": pinned}
        custom: TripleSampler = make(graph, config.batch_size, **options)
        return custom
    if isinstance(loss, CustomLossConfig) and loss.batches == "triples":
        return TripleSampler(graph, config.batch_size, config.sampling or "users", seed, pinned=pinned)
    if not isinstance(loss, SoftmaxConfig):
        return UserSampler(graph, config.batch_size, seed=seed, pinned=pinned)
    correction = True if loss.correction is None else loss.correction
    drawn = loss.negatives, loss.popularity or 0.0, correction
    return UserSampler(graph, config.batch_size, *drawn, seed, in_batch=loss.in_batch, pinned=pinned)


def _chances(graph: BipartiteGraph | GraphRows, popularity: float) -> Any:
    """Probabilities of the items, proportional to their numbers of users, at least 1, to a power; float64 [items]."""
    chances = np.where(graph.item_degrees > 0, graph.item_degrees, 1.0).astype(np.float64) ** popularity
    return chances / chances.sum()


@serial
def _alias_table(chances: Any) -> Any:
    """Limits uint64 [n] and others int32 [n]: a number has its chance, in units of 2^-32 / n, if it is drawn uniformly
    and then, unless a 32-bit word lies below its limit, given up for its other. Made in O(n).

    Source: Vose 1991, "A linear algorithm for generating random numbers with a given distribution".
    """
    count = len(chances)
    shares = chances * count
    limits, others = np.full(count, 2**32, np.uint64), np.arange(count, dtype=np.int32)
    # The numbers with a share below 1 from the front, the others from the back.
    stack = np.empty(count, np.int32)
    small, large = 0, count
    for item in range(count):
        if shares[item] < 1:
            stack[small] = item
            small += 1
        else:
            large -= 1
            stack[large] = item
    while small > 0 and large < count:
        low, high = stack[small - 1], stack[large]
        # At least 1, so that every item is drawn in the end.
        limits[low] = np.uint64(max(1.0, np.rint(shares[low] * 2**32)))
        others[low] = high
        shares[high] -= 1 - shares[low]
        small -= 1
        if shares[high] < 1:
            large += 1
            stack[small] = high
            small += 1
    # What is left, on either side, has a share of 1 but for rounding.
    return limits, others


@inline
def _draw(first: Any, second: Any, num_items: Any, limits: Any, others: Any) -> Any:
    """An item from two 32-bit words; uniform without a table."""
    item = below(first, num_items)
    return item if len(limits) == 0 or second < limits[item] else np.int64(others[item])


@inline
def _has(items: Any, start: Any, stop: Any, item: Any) -> Any:
    """Whether the sorted items[start:stop] hold the item."""
    while start < stop:
        middle = (start + stop) // 2
        if items[middle] < item:
            start = middle + 1
        elif items[middle] > item:
            stop = middle
        else:
            return True
    return False


@cache
def _compile() -> Any:
    version = VERSION

    @kernel
    def draw(
        team: Any,
        seed: Any,
        first: Any,
        given: Any,
        active: Any,
        indptr: Any,
        items: Any,
        num_items: Any,
        limits: Any,
        others: Any,
        triples: Any,
    ) -> None:
        _ = version  # part of the cache key
        for t in consecutive(team):
            counter = first + np.uint64(t)
            words = philox(seed, np.uint64(0), counter)
            if not given:
                user = active[below(words[0], len(active))]
                start = indptr[user]
                triples[0, t] = user
                if indptr[user + 1] == start:  # the items of this user lie with another rank
                    continue
                triples[1, t] = items[start + below(words[1], indptr[user + 1] - start)]
            user = triples[0, t]
            negative = _draw(words[2], words[3], num_items, limits, others)
            for k in range(len(triples) - 2):
                stream = np.uint64(k) << np.uint64(32)  # of the same counter; its next ones are for further attempts
                if k > 0:
                    words = philox(seed, stream, counter)
                    negative = _draw(words[0], words[1], num_items, limits, others)
                while _has(items, indptr[user], indptr[user + 1], negative):
                    stream += np.uint64(1)
                    words = philox(seed, stream, counter)
                    negative = _draw(words[0], words[1], num_items, limits, others)
                triples[2 + k, t] = negative

    return draw
