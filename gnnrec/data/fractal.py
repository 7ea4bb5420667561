"""Very large logs that look like a real one: a stochastic fractal expansion.

The users x items matrix R of the base log is multiplied by a smaller matrix K, and interactions are drawn from the
Kronecker product K (x) R: every base user and item gets copies, and user (copy a, base user b) can have item (copy c,
base item d) only where b has d. How likely it is goes by K[a, c]. K is the base once more, pooled: its users are cut
into as many stripes as a user has copies, its items likewise, and K counts the interactions of every stripe of users
with every stripe of items. So the blocks of the base return on two scales. Degrees are products of a base degree and a
pooled one: their distribution keeps its shape, and its tail grows longer with the size, as a power law's does.

Unlike the plain product, the result has as many users, items and interactions as asked, and every node has at least
one: first each item draws a user, then each user draws items up to its degree. An item of expected degree m is then
drawn less often by the factor 1 - 1/m, which makes up for the user that it has already.

Source: Belletti et al. 2019, "Scalable realistic recommendation datasets through fractal expansions" (arXiv
1901.08910).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from gnnrec.data.columns import Int32Array
from gnnrec.data.interactions import IdMap, Interactions
from gnnrec.errors import DataError

Int64Array = npt.NDArray[np.int64]

_LARGEST = 2**31 - 1  # numbers are int32, and products of two counts int64
_BLOCK = 1 << 14  # users or items that one generator serves; results depend on it, not on the threads
_PATIENCE = 20  # draws for each interaction, after which a user takes any copy of its base user's items

_jit: Any = numba.njit(cache=True, nogil=True, error_model="numpy")


class _Side(NamedTuple):
    """The users, or the items, of base and expansion.

    Args:
        indptr: int64 [nodes + 1]; neighbours: int32 [base interactions], of the base's nodes.
        stripes: int64 [2, copies + 2]: where in `neighbours` the stripes of a node's copies start, of nodes with the
            usual number of copies, and of those with one more.
        total: nodes of the expansion; node n is copy n // nodes of the base's node n % nodes.
    """

    indptr: Int64Array
    neighbours: Int32Array
    stripes: Int64Array
    total: int

    @property
    def nodes(self) -> int:
        """Nodes of the base."""
        return len(self.indptr) - 1

    def copies(self) -> Int64Array:
        """Of every node of the base, int64 [nodes]."""
        return self.total // self.nodes + (np.arange(self.nodes) < self.total % self.nodes)


def generate(
    base: Sequence[Interactions], num_users: int, num_items: int, num_interactions: int, seed: int = 0
) -> Interactions:
    """The expansion as a log, whose ids are integers from 0.

    Args:
        base: the log, or the parts of a split one, which share their ids.
        num_users, num_items, num_interactions, seed: as in `expand`.

    Raises:
        DataError: as `expand`.
    """
    users = np.concatenate([part.users for part in base])
    items = np.concatenate([part.items for part in base])
    whole = Interactions(users, items, base[0].user_ids, base[0].item_ids, name=base[0].name)
    columns = expand(whole, num_users, num_items, num_interactions, seed)
    return Interactions(*columns, IdMap.range(num_users), IdMap.range(num_items), name="fractal")


def expand(
    base: Interactions, num_users: int, num_items: int, num_interactions: int, seed: int = 0
) -> tuple[Int32Array, Int32Array]:
    """Draws a fractal expansion of a log (see the module's docstring).

    Args:
        base: the log; its users and items without an interaction are left out, repeated pairs count once.
        num_users, num_items: of the expansion, at least those of the base.
        num_interactions: distinct pairs, at least num_users + num_items. As many as the base has, on as many users and
            items, are the base itself.
        seed: 0 or more. Equal arguments give equal pairs, whatever the number of threads.

    Returns:
        Users and items int32 [num_interactions], sorted by user, then by item. Every number below num_users and
        num_items is there. An interaction takes about 0.4 us of one thread; beside the result there are about 50 bytes
        a user and 8 an item.

    Raises:
        DataError: a count or seed out of its range.
    """
    base = base.compact()
    _check(base, num_users, num_items, num_interactions, seed)
    pairs = np.unique(base.users * np.int64(base.num_items) + base.items)
    rows, columns = np.divmod(pairs, base.num_items)
    users = _side(rows, columns, base.num_users, num_users)
    items = _side(columns, rows, base.num_items, num_items)
    most = np.add.reduceat(items.copies()[users.neighbours], users.indptr[:-1])
    room = int((users.copies() * most).sum())
    if num_interactions > room:
        raise DataError(
            f"num_interactions is {num_interactions}, where copies of {base.name}'s {len(pairs)} interactions leave "
            f"room for {room}",
            where="fractal",
            remedy="Ask for fewer, or for more users or items",
        )

    drawn = np.empty(num_items, np.int32)
    _in_blocks(num_items, [seed, 0], lambda *block: _draw_users(*block, items, users, drawn))
    counts = np.bincount(drawn, minlength=num_users)
    degrees = _degrees(users, np.maximum(counts, 1), most, num_interactions)
    indptr = np.concatenate([[0], np.cumsum(degrees)])
    result = np.empty(num_interactions, np.int32)
    _place(drawn, indptr, result)
    scale = num_interactions / len(pairs) ** 2
    _in_blocks(num_users, [seed, 1], lambda *block: _draw_items(*block, users, items, scale, counts, indptr, result))
    return np.repeat(np.arange(num_users, dtype=np.int32), degrees), result


def _check(base: Interactions, num_users: int, num_items: int, num_interactions: int, seed: int) -> None:
    if not len(base):
        raise DataError("no interactions", where=base.name, remedy="Give a log to expand")
    least = max(num_users + num_items, 1)
    for name, value, valid, allowed in (
        ("num_users", num_users, base.num_users <= num_users <= _LARGEST, f"{base.num_users} to {_LARGEST}"),
        ("num_items", num_items, base.num_items <= num_items <= _LARGEST, f"{base.num_items} to {_LARGEST}"),
        (
            "num_interactions",
            num_interactions,
            least <= num_interactions <= _LARGEST,
            f"{least}, one for every user and item, to {_LARGEST}",
        ),
        ("seed", seed, seed >= 0, "0 or more"),
    ):
        if not valid:
            raise DataError(f"{name} is {value}", where="fractal", remedy=f"Use {allowed}")


def _side(nodes: Int64Array, neighbours: Int64Array, count: int, total: int) -> _Side:
    """The side of `nodes`, `count` of them, from the base's pairs."""
    indptr = np.concatenate([[0], np.cumsum(np.bincount(nodes, minlength=count))])
    copies = total // count
    stripes = np.stack([np.append(_stripes(indptr, copies), indptr[-1]), _stripes(indptr, copies + 1)])
    return _Side(indptr, neighbours[np.argsort(nodes, kind="stable")].astype(np.int32), stripes, total)


def _stripes(indptr: Int64Array, count: int) -> Int64Array:
    """Borders int64 [count + 1] between the neighbours of equal parts of the nodes; a node may be cut, too."""
    node, part = np.divmod(np.arange(count + 1) * (len(indptr) - 1), count)
    return np.asarray(indptr[node] + part * np.diff(indptr, append=indptr[-1])[node] // count)


def _degrees(users: _Side, least: Int64Array, most: Int64Array, total: int) -> Int64Array:
    """Interactions of each user of the expansion, int64, with the given total: at least `least`, and at most `most`, by
    base user."""
    copy, node = np.divmod(np.arange(users.total), users.nodes)
    one_more = (node < users.total % users.nodes).astype(np.int64)
    of_base = np.diff(total * users.indptr // users.indptr[-1])[node]
    stop, start = (of_base * users.stripes[one_more, copy + after] // users.indptr[-1] for after in (1, 0))
    limit = most[node]
    degrees: Int64Array = np.clip(stop - start, least, limit)
    while lack := total - int(degrees.sum()):
        # In proportion, so that the distribution keeps its shape.
        spare = np.minimum(limit - degrees, degrees) if lack > 0 else degrees - least
        ends = np.cumsum(spare)
        moved = np.diff(ends * min(abs(lack), int(ends[-1])) // ends[-1], prepend=0)
        degrees += moved if lack > 0 else -moved
    return degrees


def _in_blocks(count: int, key: Sequence[int], work: Callable[[np.random.Generator, int, int], None]) -> None:
    """Calls work(generator, first, stop) for blocks of 0 .. count - 1, in threads; a block's generator is its own."""

    def block(number: int) -> None:
        generator = np.random.Generator(np.random.Philox([*key, number]))
        work(generator, number * _BLOCK, min((number + 1) * _BLOCK, count))

    with ThreadPoolExecutor(numba.get_num_threads()) as pool:
        list(pool.map(block, range(-(-count // _BLOCK))))


@_jit
def _locate(side: Any, number: Any) -> Any:
    """The base's node of a node, and the stripe of its copy."""
    nodes = len(side.indptr) - 1
    copy, node = divmod(number, nodes)
    borders = side.stripes[np.int64(node < side.total % nodes)]
    return node, borders[copy], borders[copy + 1]


@_jit
def _neighbour(rng: Any, own: Any, other: Any, number: Any, anywhere: Any) -> Any:
    """Draws a node of the other side for node `number`: a neighbour of its base node, of which it takes the copy that a
    neighbour of its stripe belongs to, or any."""
    node, start, stop = _locate(own, number)
    degree = own.indptr[node + 1] - own.indptr[node]
    neighbour = own.neighbours[own.indptr[node] + np.int64(rng.random() * degree)]
    nodes = len(other.indptr) - 1
    copies = other.total // nodes + np.int64(neighbour < other.total % nodes)
    place = rng.random()
    if not anywhere:
        pattern = own.neighbours[start + np.int64(rng.random() * (stop - start))]
        place = (pattern + place) / nodes
    return min(np.int64(place * copies), copies - 1) * nodes + neighbour


@_jit
def _draw_users(rng: Any, first: Any, stop: Any, items: Any, users: Any, drawn: Any) -> None:
    """A user for each of the items first .. stop - 1."""
    for item in range(first, stop):
        drawn[item] = _neighbour(rng, items, users, item, False)


@_jit
def _place(drawn: Any, indptr: Any, result: Any) -> None:
    """Puts every item at the start of its user's row, in rising order."""
    end = indptr[:-1].copy()
    for item in range(len(drawn)):
        result[end[drawn[item]]] = item
        end[drawn[item]] += 1


@_jit
def _draw_items(
    rng: Any, first: Any, stop: Any, users: Any, items: Any, scale: Any, counts: Any, indptr: Any, result: Any
) -> None:
    """Fills the rows of users first .. stop - 1, of which counts[user] items are there, with other ones."""
    for user in range(first, stop):
        row = result[indptr[user] : indptr[user + 1]]
        count, draws = counts[user], 0
        while count < len(row):
            draws += 1
            anywhere = draws > _PATIENCE * len(row)
            item = _neighbour(rng, users, items, user, anywhere)
            if not anywhere:
                node, start, end = _locate(items, item)
                expected = scale * (items.indptr[node + 1] - items.indptr[node]) * (end - start)
                if rng.random() * expected >= expected - 1:
                    continue
            place = np.searchsorted(row[:count], item)
            if place < count and row[place] == item:
                continue
            for k in range(count, place, -1):
                row[k] = row[k - 1]
            row[place] = item
            count += 1
