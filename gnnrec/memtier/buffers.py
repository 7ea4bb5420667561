"""The buffers of a streamed training: the ring that blocks pass through, and those of matrices in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gnnrec.memtier.demands import RANKING, Demand, Streamed
from gnnrec.memtier.layout import Layout
from gnnrec.memtier.ring import FEWEST
from gnnrec.memtier.staging import host_layout
from gnnrec.memtier.tiers import Tier
from gnnrec.memtier.workload import Workload


class Buffers:
    """Of a form of the training's step, with its matrices in files of a tier, or in DRAM beside a GPU.

    Attributes:
        block_bytes: of a buffer of the ring, which holds a block of several matrices.
        in_files: buffers of matrices in files, one at a time of which is gone over by itself; beside a GPU they lie in
            DRAM, and none count.
    """

    def __init__(self, workload: Workload, streamed: Streamed, files: Tier) -> None:
        self.streamed = streamed
        columns = streamed.panel * streamed.panels
        if files.kind == "dram":
            layout = host_layout(workload.nodes, columns, streamed.panel)
        else:
            layout = Layout.of(workload.nodes, columns, streamed.panel, files.granularity, streamed.block_bytes)
        self._blocks = layout.panels * layout.blocks
        self.block_bytes = streamed.matrices * layout.block_bytes
        self.in_files = Demand("file_buffers", 0 if workload.on_gpu else streamed.in_files * layout.block_bytes)

    def ring(self, buffer_bytes: int) -> Demand:
        """The staging buffers: whole blocks, at least as many as a stream makes."""
        count = min(max(FEWEST, buffer_bytes // self.block_bytes), self._blocks)
        return Demand("buffers", count * self.block_bytes, self.streamed.update)

    def held(self, ring: Demand) -> list[Demand]:
        """All that lies where the computation is: the form's demands, the ring, other buffers."""
        others = [self.in_files] if self.in_files.bytes else []
        return [*_beside(ring, self.streamed.demands), ring, *others]


def _beside(ring: Demand, demands: Sequence[Demand]) -> list[Demand]:
    """Of rankings what they take beyond the ring, whose buffers are given up before."""
    return [
        replace(demand, bytes=max(0, demand.bytes - ring.bytes)) if demand.name == RANKING else demand
        for demand in demands
    ]
