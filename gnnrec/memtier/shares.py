"""What each of several ranks takes of the memory where it computes, and what it may take.

Tensors are those of `training.column_parallel` and `training.row_parallel`, with the gathers' buffers: nothing is
streamed, so bytes alone decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from gnnrec.config import NGCFConfig
from gnnrec.graph.rows import GraphRows
from gnnrec.memtier.demands import RANKING, STATE, Moved
from gnnrec.memtier.planner import PlanError
from gnnrec.memtier.workload import FLOAT, Workload
from gnnrec.units import in_bytes


@dataclass(frozen=True)
class Share:
    """Of one rank.

    Args:
        rank: its number.
        machine: its name.
        limit_bytes: memory.limit, if there is one.
        free_bytes: its share of what is free there, with what it holds of its tensors already; None: unknown.
        tensors: bytes by name.
    """

    rank: int
    machine: str
    limit_bytes: int | None
    free_bytes: int | None
    tensors: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(self.tensors.values())

    @property
    def room_bytes(self) -> int | None:
        """That it may take: the smaller of both bounds; None without one."""
        return min((bound for bound in (self.limit_bytes, self.free_bytes) if bound is not None), default=None)

    def check(self, split: str) -> None:
        """Raise a PlanError where they have no room."""
        room = self.room_bytes
        if room is None or self.bytes <= room:
            return
        most = sorted(self.tensors.items(), key=lambda entry: -entry[1])[:3]
        listed = ", ".join(f"{name} {in_bytes(count)}" for name, count in most)
        bound = "memory.limit allows" if room == self.limit_bytes else "are free for it"
        if self.free_bytes is not None and self.bytes > self.free_bytes:
            remedy = "Start ranks on more machines, or fewer on this one"  # which share what is free there
        else:
            remedy = f"Set memory.limit={ceil(self.bytes / 2**20)}MiB, or start more ranks"
        rows = ", take distributed.split=rows" if split == "columns" else ""
        raise PlanError(
            f"takes {in_bytes(self.bytes)} ({listed}, ...) of the {in_bytes(room)} that {bound}",
            where=f"memory of rank {self.rank} on {self.machine}",
            remedy=f"{remedy}{rows}, or lower model.dim or trainer.batch_size",
        )


@dataclass(frozen=True)
class Shares:
    """Of all ranks: what `plan.json` has in place of a plan.

    Args:
        split: columns or rows.
        ranks: theirs, in their order.
    """

    split: str
    ranks: Sequence[Share]

    def rows(self) -> list[dict[str, Any]]:
        """A table: a row a rank."""
        return [
            {"rank": share.rank, "machine": share.machine}
            | {"takes": in_bytes(share.bytes), "may take": _known(share.room_bytes)}
            for share in self.ranks
        ]

    def to_dict(self) -> dict[str, Any]:
        """For `plan.json`, units in the names."""
        ranks = [asdict(share) | {"bytes": share.bytes} for share in self.ranks]
        return {"mode": "ranks", "split": self.split, "ranks": ranks}


def of_columns(work: Workload, width: int, size: int) -> dict[str, int]:
    """Bytes of a rank that has so many columns, by tensor.

    Args:
        work: of the whole training.
        width: columns.
        size: ranks.
    """
    numbers, items = FLOAT * work.nodes * width, FLOAT * work.items.nodes
    sizes = dict.fromkeys(("embedding", *STATE, "gradient"), numbers)
    if work.layers > 1:  # what the last layer of the forward pass gathers is gone by then
        sizes["work"] = numbers
    if not work.in_part:  # the gradient by the final embeddings of all nodes
        sizes["final"] = numbers
    sizes |= {"best": numbers} if work.held_out.valid else {}
    found = _sized(work, sizes) | {demand.name: demand.bytes for demand in work.graph(Moved(0))}
    found["batch"] += int(3 * FLOAT * work.batch_rows()[0] * width)  # embeddings, final embeddings and their gradient
    # The model as it is now, and vectors of all items, sent and put together.
    found[RANKING] += 2 * numbers + items * (2 * ceil(work.dim / size) + 3 * work.dim)
    return found


def of_rows(work: Workload, graph: GraphRows, *, valid: bool) -> dict[str, int]:
    """Bytes of a rank that has these rows, by tensor.

    Args:
        work: of the whole training, with the rank's held-out parts.
        graph: its rows.
        valid: whether there is a validation part, of whichever ranks.
    """
    rows, nodes, users, layers = len(graph.numbers), work.nodes, work.users.nodes, work.layers
    own, wide = FLOAT * rows * work.dim, FLOAT * work.final_dim
    layered = isinstance(work.model, NGCFConfig)
    sizes = dict.fromkeys(("embedding", *STATE), own)
    if layered:  # outputs and aggregates of all layers but the last
        sizes["layers"] = 2 * (layers - 1) * own
    sizes["everyone"] = FLOAT * nodes * work.dim
    sizes |= {"best": own} if valid else {}
    found = _sized(work, sizes)
    # Rows of the batch's nodes, all and own, and of own nodes that are alive together: at the loss, and on the way back
    # (of NGCF through the last layer, which has the batch's nodes alone, and through others).
    drawn = FLOAT * work.batch_rows()[0] * work.dim
    mine = drawn / graph.ranks.size
    if layered:
        back = own + drawn + (layers + 6) * mine, 4 * own + (layers + 5) * mine if layers > 1 else 0
        found["batch"] += int(max((layers + 2) * drawn + (layers + 3) * mine, *back))
    else:
        found["batch"] += int(max(2 * drawn + mine, drawn + 2 * own + 3 * mine))
    found["graph"] = 4 * graph.matrix.nnz + 20 * (rows + 1) + 20 * (nodes + 1)  # degrees, pointers and scales of all
    found["interactions"] = 4 * len(graph.user_items) + 8 * (users + 1)
    copied = layered or work.model.popularity  # type: ignore[union-attr]  # else all items lie in what is sent to all
    found[RANKING] += (rows + (work.items.nodes if copied else 0)) * wide
    return found


def _sized(work: Workload, sizes: dict[str, int]) -> dict[str, int]:
    """With what a batch takes, and rankings."""
    return {demand.name: demand.bytes for demand in work.demands(sizes, Moved(0))}


def _known(count: int | None) -> str:
    return "unknown" if count is None else in_bytes(count)
