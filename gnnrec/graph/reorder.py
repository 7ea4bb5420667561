"""Other numberings of a graph's nodes, in which those that are gathered together lie together in memory.

A product with the adjacency reads one row of the features for every edge. Where neighbours of one row and of the rows
after it have numbers close to each other, more of these reads are served by the caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from gnnrec.errors import GnnrecError
from gnnrec.graph import _build

if TYPE_CHECKING:
    from gnnrec.graph.bipartite import BipartiteGraph

Method = Literal["rcm", "community"]


@dataclass(frozen=True, eq=False)
class Reordering:
    """A graph with its users renumbered among the users and its items among the items, and the ways there and back.

    Made by `BipartiteGraph.reordered`. "Old" is a number in the graph that it was called on, "new" one in `graph`.

    Args:
        graph: the renumbered graph.
        users, items: the old number of every new one, int32 [users] and [items].
        new_users, new_items: the new number of every old one, int32 [users] and [items].
    """

    graph: BipartiteGraph
    users: _build.Int32Array
    items: _build.Int32Array
    new_users: _build.Int32Array
    new_items: _build.Int32Array

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Features of the nodes, [users + items, ...] of any dtype in old order, in new order; a differentiable copy.

        Raises:
            ValueError: another number of rows.
        """
        return self._gather("x", x, *self._orders)

    def undo(self, y: torch.Tensor) -> torch.Tensor:
        """What `apply` does, undone: [users + items, ...] in new order, in old order.

        Raises:
            ValueError: another number of rows.
        """
        return self._gather("y", y, *self._orders[::-1])

    @cached_property
    def _orders(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The old node of every new one, and the new node of every old one, int32 [users + items]."""
        first_item = np.int32(self.graph.num_users)
        there = np.concatenate([self.users, first_item + self.items])
        back = np.concatenate([self.new_users, first_item + self.new_items])
        return torch.from_numpy(there), torch.from_numpy(back)

    def _gather(self, name: str, x: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        if x.ndim == 0 or len(x) != self.graph.num_nodes:
            raise ValueError(
                f"{name} must have a row for each of {self.graph.num_nodes} users and items, got {list(x.shape)}"
            )
        result: torch.Tensor = _permute(x, order.to(x.device), inverse.to(x.device))
        return result


class _Permute(torch.autograd.Function):
    """Rows in another order. The gradient is gathered by the inverse, several times faster than torch scatters it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(order, inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return _permute(grad, inverse, order), None, None


_permute: Any = _Permute.apply


def node_order(graph: BipartiteGraph, method: Method) -> npt.NDArray[np.integer]:
    """The nodes of the graph in the order of `method`, users and items mixed; equal for equal graphs.

    Raises:
        ValueError: no such method.
        GnnrecError: "community" without networkit.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if not graph.num_edges:
        return np.arange(graph.num_nodes, dtype=np.int32)
    return _rcm(graph) if method == "rcm" else _community(graph)


def _rcm(graph: BipartiteGraph) -> npt.NDArray[np.integer]:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    adjacency = graph.norm_adjacency()
    pattern = csr_array(
        (np.ones(adjacency.nnz, np.int8), adjacency.indices.numpy(), adjacency.indptr.numpy()), shape=adjacency.shape
    )
    return np.asarray(reverse_cuthill_mckee(pattern, symmetric_mode=True))


def _community(graph: BipartiteGraph) -> npt.NDArray[np.integer]:
    try:
        import networkit
    except ModuleNotFoundError as error:
        raise GnnrecError(
            "networkit is not installed, which finds the communities",
            where='reordered("community")',
            remedy='Install it: pip install gnnrec[reorder], or use reordered("rcm")',
        ) from error
    users = np.repeat(np.arange(graph.num_users, dtype=np.int32), graph.user_degrees)
    edges = (users, graph.user_items + np.int32(graph.num_users))
    communities = networkit.community.PLM(
        networkit.GraphFromCoo(edges, n=graph.num_nodes),
        # One thread moves nodes, in the order of their numbers: with several, every call finds other communities, and
        # networkit's own number of threads is torch's too.
        par="none",
    )
    return np.argsort(communities.run().getPartition().getVector(), kind="stable")
