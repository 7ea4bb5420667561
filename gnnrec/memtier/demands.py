"""What a plan is made for: tensors with their bytes, parts of a step, degrees of a graph."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gnnrec.memtier.costs import Access
from gnnrec.memtier.layout import BLOCK_BYTES

STATE = ("exp_avg", "exp_avg_sq")
RANKING = "ranking"
FINAL = "final"  # embeddings, mapped for processors to rank


@dataclass(frozen=True)
class Demand:
    """A tensor, or buffers that serve one purpose.

    Args:
        name: as `memory.pin` takes it.
        bytes: that it needs.
        accesses: what a step moves of it.
        movable: whether it may lie in another tier than the one that computes.
        held: whether it is in memory already when a plan is made, so that free memory is what is left beside it.
    """

    name: str
    bytes: int
    accesses: tuple[Access, ...] = ()
    movable: bool = False
    held: bool = False

    @property
    def moved(self) -> float:
        """Bytes in a step."""
        return sum(access.bytes for access in self.accesses)


@dataclass(frozen=True)
class Pass:
    """A part of a step that goes over files by itself.

    Args:
        compute: what is moved in memory meanwhile.
        flops: of dense products.
        transfer: what is moved of the files.
        waited: bytes of it that are read panel by panel before there is something to compute on.
        gathers: the share of the graph's entries whose rows are gathered, for every panel.
    """

    compute: tuple[Access, ...]
    flops: float
    transfer: tuple[Access, ...]
    waited: float = 0.0
    gathers: float = 0.0


@dataclass(frozen=True)
class Streamed:
    """A step in column panels, whose embeddings and state lie in files, or in DRAM beside a GPU.

    Args:
        panel: columns of a panel.
        panels: how many there are.
        panel_bytes: of the embedding and its state in a panel: they are read and written once a step.
        demands: what lies where the computation is, but for the ring of staging buffers.
        update: what the optimizer moves of the ring in a step, while panels come and go.
        beside: what of the demands is moved meanwhile too: by the last layer of the backward pass.
        files: what lies elsewhere, and what is moved of it; beside a GPU, from and to the GPU.
        matrices: of the blocks that a buffer of the ring has room for.
        in_files: matrices; each has a buffer of a block for passes over all of it, as checkpoints make.
        block_bytes: of such a block, about.
        passes: the parts that the step consists of, where it is no single one.
        graph_reads: of a graph whose columns are among the files, bytes that are read while nothing else needs to be,
            and those that are read while panels come and go.
    """

    panel: int
    panels: int
    panel_bytes: int
    demands: tuple[Demand, ...]
    update: tuple[Access, ...]
    files: tuple[Demand, ...]
    matrices: int
    in_files: int
    beside: tuple[Access, ...] = ()
    block_bytes: int = BLOCK_BYTES
    passes: tuple[Pass, ...] = ()
    graph_reads: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Side:
    """Users or items: `counts[k]` of them have `degrees[k]` neighbours; both int64 [n], degrees falling."""

    degrees: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, degrees: npt.NDArray[np.int64]) -> Side:
        """From the degree of every node."""
        counts = np.bincount(degrees)
        there = np.flatnonzero(counts)[::-1]
        return cls(there.astype(np.int64), counts[there])

    @cached_property
    def nodes(self) -> int:
        return int(self.counts.sum())

    @property
    def longest(self) -> int:
        """The highest degree."""
        return int(self.degrees[0]) if len(self.degrees) else 0

    @cached_property
    def edges(self) -> int:
        return int(self.degrees @ self.counts)

    def share(self, nodes: float) -> float:
        """The share of the edges that end at so many nodes of the highest degrees."""
        before = np.minimum(np.cumsum(self.counts), nodes)
        taken = np.diff(before, prepend=0.0)
        return float(taken @ self.degrees) / max(self.edges, 1)


@dataclass(frozen=True)
class HeldOut:
    """What is ranked, and how.

    Args:
        valid, test: interactions of the validation part, 0 where there is none, and of the test part.
        k: items of a list.
    """

    valid: int
    test: int
    k: int


class Moved:
    """Accesses by tensor, equal ones added up."""

    def __init__(self, cache_bytes: int) -> None:
        self.cache_bytes = cache_bytes
        self.bytes: dict[str, dict[Access, float]] = defaultdict(lambda: defaultdict(float))

    def add(self, tensor: str, *accesses: Access) -> None:
        for access in accesses:
            self.bytes[tensor][replace(access, bytes=0)] += access.bytes

    def all(self, tensor: str, **patterns: float) -> None:
        """Bytes in the order of memory, by pattern."""
        self.add(tensor, *(Access(pattern, count) for pattern, count in patterns.items()))

    def rows(self, tensor: str, count: float, row_bytes: int, working_set: int) -> None:
        """Bytes of rows gathered from a working set."""
        self.add(tensor, Access("gather", count, row_bytes, working_set))

    def of(self, tensor: str) -> tuple[Access, ...]:
        return tuple(replace(access, bytes=count) for access, count in self.bytes[tensor].items() if count > 0)

    def accesses(self) -> tuple[Access, ...]:
        """Of all tensors together."""
        return tuple(
            replace(access, bytes=count)
            for moved in self.bytes.values()
            for access, count in moved.items()
            if count > 0
        )

    def demand(self, name: str, size: int, *, movable: bool = False, held: bool = False) -> Demand:
        return Demand(name, size, self.of(name), movable, held)
