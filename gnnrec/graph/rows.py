"""The rows of a graph that one of several processes has: no process holds more of its edges than these.

A rank has a range of the users and one of the items, cut so that every rank has about as many edges, and nodes, of
either. Of the others it knows their degrees alone. A matrix with a row a node is of a rank's own nodes, users first, or
of all, as everywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from gnnrec.graph import _build
from gnnrec.graph.bipartite import user_rows
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ranks import Ranks

# Edges that count as much as a node when ranges are cut. In a step's time a node takes as much as some 4, with its
# embedding and moments hundreds in memory: graphs that differ much in degrees from range to range get a part of both.
NODE = 32


def borders(degrees: npt.NDArray[np.int64], size: int) -> list[int]:
    """Where ranges of nodes begin, so many of about equal weight, and where the last one ends."""
    indptr = np.concatenate([[0], np.cumsum(degrees)])
    found: list[int] = _build.balanced_borders(indptr, np.empty(0, np.int64), size, NODE).tolist()
    return found


class GraphRows:
    """What a rank has of a BipartiteGraph, under the names and numbers that this has.

    Args:
        users, items: of all edges, integer arrays [n], needed no longer than this takes. A pair given several times is
            one edge.
        num_users, num_items: counts.
        ranks: that cut the same edges; all make theirs together.

    Attributes:
        num_users, num_items: of the whole graph.
        own_users, own_items: the ranges that this rank has, as numbers of users and of items.
        user_degrees, item_degrees: of all nodes, int64.
        user_indptr, user_items: as of a BipartiteGraph in which all other users have no items.
        matrix: the rows of `norm_adjacency` that this rank has, [own nodes, num_nodes], users first.
        numbers: of these nodes, int64 in rising order.
    """

    def __init__(
        self, users: npt.NDArray[np.int32], items: npt.NDArray[np.int32], num_users: int, num_items: int, ranks: Ranks
    ) -> None:
        self.num_users, self.num_items, self.ranks = num_users, num_items, ranks
        self._users = borders(np.bincount(users, minlength=num_users), ranks.size)
        self._items = borders(np.bincount(items, minlength=num_items), ranks.size)
        self.own_users, self.own_items = (
            slice(*cut[ranks.rank : ranks.rank + 2]) for cut in (self._users, self._items)
        )
        by_user = _own(users, items, self.own_users, num_items)
        by_item = _own(items, users, self.own_items, num_users)
        self.user_degrees, self.item_degrees = (
            ranks.all_rows(part.indptr.diff()).numpy() for part in (by_user, by_item)
        )
        self.user_items = by_user.indices.numpy()
        own_users, end = self.own_users, len(self.user_items)
        self.user_indptr = np.full(num_users + 1, end, np.int64)
        self.user_indptr[: own_users.start] = 0
        self.user_indptr[own_users.start : own_users.stop + 1] = by_user.indptr.numpy()
        indptr = torch.cat([by_user.indptr, by_item.indptr[1:] + end])
        indices = torch.cat([by_user.indices + num_users, by_item.indices])
        scale = torch.from_numpy(_build.inverse_sqrt_degrees(self.indptr.numpy()))
        self.numbers = torch.cat([torch.arange(rows.start, rows.stop) for rows in self.shares[ranks.rank]])
        shape = (len(self.numbers), self.num_nodes)
        self.matrix = SparseMatrix(indptr, indices, shape, scale[self.numbers], scale)

    @property
    def num_nodes(self) -> int:
        """Users and items of the whole graph."""
        return self.num_users + self.num_items

    @property
    def num_edges(self) -> int:
        """Of the whole graph."""
        return int(self.user_degrees.sum())

    @cached_property
    def indptr(self) -> torch.Tensor:
        """Row pointers of the whole adjacency, int64 [num_nodes + 1]."""
        return torch.from_numpy(np.cumsum(np.concatenate([[0], self.user_degrees, self.item_degrees])))

    @cached_property
    def shares(self) -> list[Sequence[slice]]:
        """The nodes of every rank: its users, its items."""
        first = self.num_users
        return [
            (slice(*self._users[k : k + 2]), slice(first + self._items[k], first + self._items[k + 1]))
            for k in range(self.ranks.size)
        ]

    def user_item(self) -> SparseMatrix:
        """The users x items matrix of ones, without the rows of other ranks' users."""
        pattern = torch.from_numpy(self.user_indptr), torch.from_numpy(self.user_items)
        return SparseMatrix(*pattern, (self.num_users, self.num_items))

    def here(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of these nodes, int64 [n], are this rank's, and their places among its own; both int64 [m]."""
        users, items = self.shares[self.ranks.rank]
        of_users = (nodes >= users.start) & (nodes < users.stop)
        of_items = (nodes >= items.start) & (nodes < items.stop)
        which = (of_users | of_items).nonzero().flatten()
        own = nodes[which]
        first = users.stop - users.start - items.start
        return which, torch.where(own < self.num_users, own - users.start, own + first)

    def collect(self, nodes: torch.Tensor, mine: torch.Tensor) -> torch.Tensor:
        """A row for each of these nodes, of whose rows every rank has its own, in their order. Of nodes in rising order
        nothing is held beside the result."""
        size, rank, first = self.ranks.size, self.ranks.rank, self.num_users
        starts = [*self._users[1:-1], *(first + start for start in self._items[:-1])]
        # The users of every rank, then the items of every rank: rising nodes lie so already.
        piece = torch.bucketize(nodes, torch.tensor(starts, device=nodes.device), right=True)
        ends = [0, *torch.bincount(piece, minlength=2 * size).cumsum(0).tolist()]
        shares = [[slice(*ends[k : k + 2]) for k in (number, size + number)] for number in range(size)]
        own = piece[(piece == rank) | (piece == size + rank)]
        pieces = mine.new_empty((len(nodes), *mine.shape[1:]))
        for k, rows in zip((rank, size + rank), shares[rank], strict=True):
            pieces[rows] = mine[own == k]
        self.ranks.spread(pieces, shares)
        if (piece.diff() >= 0).all():
            return pieces
        result = torch.empty_like(pieces)
        result[piece.argsort(stable=True)] = pieces
        return result

    def spread(self, own: torch.Tensor, out: torch.Tensor) -> None:
        """Put what every rank has of its own nodes, [own nodes, columns], into a matrix of all nodes."""
        users, items = self.shares[self.ranks.rank]
        count = users.stop - users.start
        out[users], out[items] = own[:count], own[count:]
        self.ranks.spread(out, self.shares)


def _own(rows: npt.NDArray[np.int32], columns: npt.NDArray[np.int32], own: slice, num_columns: int) -> SparseMatrix:
    """The pattern of a range of the rows."""
    here = (rows >= own.start) & (rows < own.stop)
    return user_rows(rows[here] - own.start, columns[here], own.stop - own.start, num_columns)
