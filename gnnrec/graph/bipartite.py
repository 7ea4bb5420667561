"""BipartiteGraph: who is connected with what, by user and by item."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from gnnrec.graph import _build
from gnnrec.graph.reorder import Method, Reordering, node_order
from gnnrec.graph.sparse import MAX_INT32, SparseMatrix


class BipartiteGraph:
    """An undirected graph between users and items without repeated edges.

    Build it with `from_edges`. Immutable; matrices made from it are kept on the object.

    Attributes:
        num_users, num_items, num_edges: counts.
        user_indptr: int64 [num_users + 1]; user_items: int32 [num_edges], the sorted items of every user.
        item_indptr: int64 [num_items + 1]; item_users: int32 [num_edges], the sorted users of every item.
    """

    def __init__(
        self,
        user_indptr: _build.Int64Array,
        user_items: _build.Int32Array,
        item_indptr: _build.Int64Array,
        columns: _build.Int32Array,
    ) -> None:
        self.num_users, self.num_items = len(user_indptr) - 1, len(item_indptr) - 1
        self.num_edges = len(user_items)
        self.user_indptr, self.user_items = user_indptr, user_items
        # Of `norm_adjacency`, whose second half they are. Untouched before that is made, the first takes no memory.
        self._columns = columns
        self.item_indptr, self.item_users = item_indptr, columns[self.num_edges :]

    @classmethod
    def from_edges(cls, users: npt.ArrayLike, items: npt.ArrayLike, num_users: int, num_items: int) -> BipartiteGraph:
        """Build the graph from integer arrays [n] in any order; a pair given several times is one edge.

        O(edges) time, of which pairs that are sorted by user, then by item, take a third. Memory beyond the input is
        that of the result: 8 bytes an edge and node.

        Raises:
            ValueError: arrays that differ in length, are no integers, or hold numbers outside the counts; more nodes
                than int32 counts (users and items together).
        """
        user_indptr, user_items = _by_user(users, items, num_users, num_items)
        columns = np.empty(2 * len(user_items), np.int32)
        item_indptr, _ = _build.transpose(user_indptr, user_items, num_items, columns[len(user_items) :])
        return cls(user_indptr, user_items, item_indptr, columns)

    @property
    def num_nodes(self) -> int:
        """Users and items together; item i is node num_users + i."""
        return self.num_users + self.num_items

    @cached_property
    def user_degrees(self) -> _build.Int64Array:
        """Number of items of every user, int64."""
        return np.diff(self.user_indptr)

    @cached_property
    def item_degrees(self) -> _build.Int64Array:
        """Number of users of every item, int64."""
        return np.diff(self.item_indptr)

    def norm_adjacency(self) -> SparseMatrix:
        """D^-1/2 A D^-1/2 over users and items, (users + items) square, norms kept as scales (LightGCN, eq. 7)."""
        return self._norm_adjacency

    def norm_user_item(self) -> SparseMatrix:
        """The users x items block of `norm_adjacency`."""
        return self._norm_user_item

    def user_item(self) -> SparseMatrix:
        """The users x items matrix of ones."""
        return self._user_item

    def reordered(self, method: Method) -> Reordering:
        """The same graph under numbers that bring neighbours together, so that products with it wait less for memory.

        Hold the parameters in the new order, train on `.graph` and undo the order once, at the border; an `apply` or
        `undo` costs a fifth of a product to a whole one:

            reordering = graph.reordered("community")
            final = reordering.undo(train(reordering.graph))

        Results differ from the original's by rounding only, since sums are taken in another order; a graph without
        edges keeps its numbers. A product on Gowalla (dim 64, float32, 2 cores) becomes about 1.2 times as fast by
        "rcm", which takes 0.05 s, and 1.4 times by "community", which takes 0.8 s. Where no communities are to be
        found, neither gains more than a few percent.

        Args:
            method: "rcm", reverse Cuthill-McKee (George 1971) through scipy, the cheaper one; "community", members of
                a community (Louvain method, Blondel et al. 2008) beside each other, through networkit.

        Returns:
            The renumbered graph with the permutations; equal for equal graphs.

        Raises:
            ValueError: no such method.
            GnnrecError: "community" where networkit is not installed.
        """
        order = node_order(self, method)
        is_user = order < self.num_users
        users, items = order[is_user].astype(np.int32), (order[~is_user] - self.num_users).astype(np.int32)
        new_users, new_items = _inverse(users), _inverse(items)
        edges = np.repeat(new_users, self.user_degrees), new_items[self.user_items]
        graph = BipartiteGraph.from_edges(*edges, self.num_users, self.num_items)
        return Reordering(graph, users, items, new_users, new_items)

    def moved(self, place: Callable[[str, torch.Tensor], torch.Tensor]) -> BipartiteGraph:
        """This graph with the arrays of `norm_adjacency` elsewhere.

        Args:
            place: makes a copy of the tensor of this name (indptr, indices, scale) in other memory.
        """
        matrix = self.norm_adjacency()
        assert matrix.row_scale is not None
        indptr, indices, scale = (
            place(name, x)
            for name, x in (("indptr", matrix.indptr), ("indices", matrix.indices), ("scale", matrix.row_scale))
        )
        return self._over(indptr, indices, scale)

    def with_columns(self, columns: _build.Int32Array) -> BipartiteGraph:
        """This graph with the columns of `norm_adjacency`, which hold the users of every item too, in other memory,
        int32 [2 * num_edges], where they lie already: see `adjacency_columns`."""
        indptr, scale = self._adjacency_rows()
        return self._over(indptr, torch.from_numpy(columns), scale)

    def adjacency_columns(self, first: int, last: int) -> _build.Int32Array:
        """The columns of some entries of `norm_adjacency`, int32 [last - first]; the others are not made for it."""
        edges = self.num_edges
        of_users = self.user_items[min(first, edges) : min(last, edges)] + np.int32(self.num_users)
        return np.concatenate([of_users, self.item_users[max(first - edges, 0) : max(last - edges, 0)]])

    def _over(self, indptr: torch.Tensor, indices: torch.Tensor, scale: torch.Tensor) -> BipartiteGraph:
        """This graph with the arrays of its adjacency in other memory."""
        result = BipartiteGraph(self.user_indptr, self.user_items, self.item_indptr, indices.numpy())
        shape = (self.num_nodes, self.num_nodes)
        result._norm_adjacency = SparseMatrix(indptr, indices, shape, scale, scale, symmetric=True)
        return result

    @cached_property
    def _norm_adjacency(self) -> SparseMatrix:
        np.add(self.user_items, np.int32(self.num_users), out=self._columns[: self.num_edges])
        indptr, scale = self._adjacency_rows()
        shape = (self.num_nodes, self.num_nodes)
        return SparseMatrix(indptr, torch.from_numpy(self._columns), shape, scale, scale, symmetric=True)

    def _adjacency_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Pointers and scales of the rows of `norm_adjacency`."""
        indptr = np.empty(self.num_nodes + 1, np.int64)
        indptr[: self.num_users] = self.user_indptr[:-1]
        np.add(self.item_indptr, self.num_edges, out=indptr[self.num_users :])
        return torch.from_numpy(indptr), _inverse_sqrt(indptr)

    @cached_property
    def _norm_user_item(self) -> SparseMatrix:
        return self._blocks(_inverse_sqrt(self.user_indptr), _inverse_sqrt(self.item_indptr))

    @cached_property
    def _user_item(self) -> SparseMatrix:
        return self._blocks(None, None)

    def _blocks(self, user_scale: torch.Tensor | None, item_scale: torch.Tensor | None) -> SparseMatrix:
        """The users x items matrix with its transpose, over this graph's own arrays."""
        shape = (self.num_users, self.num_items)
        matrix = SparseMatrix(
            torch.from_numpy(self.user_indptr), torch.from_numpy(self.user_items), shape, user_scale, item_scale
        )
        back = SparseMatrix(
            torch.from_numpy(self.item_indptr), torch.from_numpy(self.item_users), shape[::-1], item_scale, user_scale
        )
        matrix.__dict__["T"], back.__dict__["T"] = back, matrix
        return matrix

    def __repr__(self) -> str:
        return f"BipartiteGraph({self.num_users} users, {self.num_items} items, {self.num_edges} edges)"


def user_rows(users: npt.ArrayLike, items: npt.ArrayLike, num_users: int, num_items: int) -> SparseMatrix:
    """The users x items matrix of ones alone, for rankings: half of what a graph holds.

    Raises:
        ValueError: as for `BipartiteGraph.from_edges`.
    """
    indptr, indices = map(torch.from_numpy, _by_user(users, items, num_users, num_items))
    return SparseMatrix(indptr, indices, (num_users, num_items))


def _by_user(
    users: npt.ArrayLike, items: npt.ArrayLike, num_users: int, num_items: int
) -> tuple[_build.Int64Array, _build.Int32Array]:
    """Pointers and the sorted, different items of every user."""
    if min(num_users, num_items) < 0 or num_users + num_items > MAX_INT32:
        raise ValueError(
            f"num_users and num_items must lie within 0 and {MAX_INT32} together, got {num_users} and {num_items}"
        )
    user_array = _build.numbers("users", users, num_users)
    item_array = _build.numbers("items", items, num_items)
    if len(user_array) != len(item_array):
        raise ValueError(f"users has {len(user_array)} entries where items has {len(item_array)}")
    if _build.are_sorted(user_array, item_array):
        indptr, indices = _build.row_pointers(user_array, num_users), item_array.astype(np.int32)
    else:
        # Grouped by item, then walked item by item: the user rows come out sorted.
        indptr, indices = _build.transpose(*_build.group_by(item_array, user_array, num_items), num_users)
    _build.drop_repeated(indptr, indices)
    if indptr[-1] < len(indices):
        indices = indices[: indptr[-1]].copy()
    return indptr, indices


def _inverse(permutation: _build.Int32Array) -> _build.Int32Array:
    """Where every number stands in the permutation."""
    inverse = np.empty_like(permutation)
    inverse[permutation] = np.arange(len(permutation), dtype=np.int32)
    return inverse


def _inverse_sqrt(indptr: _build.Int64Array) -> torch.Tensor:
    """degree^-1/2 as float32, 0 for a node without edges."""
    return torch.from_numpy(_build.inverse_sqrt_degrees(indptr))
