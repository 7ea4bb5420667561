"""What a training step moves: every tensor with its bytes, and the bytes of it that are read and written in a step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from gnnrec.config import (
    BPRConfig,
    LightGCNConfig,
    LossConfig,
    ModelConfig,
    NGCFConfig,
    OptimizerConfig,
    SoftmaxConfig,
    TrainerConfig,
)
from gnnrec.errors import ConfigError
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.memtier.costs import Access
from gnnrec.memtier.stream import BLOCK_BYTES, ROWS_BYTES
from gnnrec.ops._operator import Case
from gnnrec.ops.adam.reference import bytes_moved as adam_bytes
from gnnrec.ops.lightgcn_propagate.reference import bytes_moved as propagate_bytes
from gnnrec.ops.ngcf_layer.passes import CHUNK_ROWS, CHUNKS
from gnnrec.ops.ngcf_layer.reference import bytes_moved as ngcf_bytes

LINE = 64  # bytes of a cache line: of the least that a draw or a scale is fetched with
GROUP = 16  # columns; panels are a multiple of it
STATE = ("exp_avg", "exp_avg_sq")
FLOAT = 4  # bytes
# Of a triple's item, by one thread: random bits and a search among the user's items. 28 to 48 ns on Gowalla, batches of
# 2048 to 131072 with 1 to 16 negatives, on one core of Zen 4.
DRAW_SECONDS = 45e-9
MISSED = 16  # rows over so many times the cache are hardly ever found in it


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


@dataclass(frozen=True)
class Pass:
    """A part of a step that goes over files by itself.

    Args:
        compute: what is moved in memory meanwhile.
        flops: of dense products.
        transfer: what is moved of the files.
        waited: bytes of it that are read panel by panel before there is something to compute on.
    """

    compute: tuple[Access, ...]
    flops: float
    transfer: tuple[Access, ...]
    waited: float = 0.0


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
        block_bytes: of such a block, about.
        passes: the parts that the step consists of, where it is no single one.
    """

    panel: int
    panels: int
    panel_bytes: int
    demands: tuple[Demand, ...]
    update: tuple[Access, ...]
    files: tuple[Demand, ...]
    matrices: int
    beside: tuple[Access, ...] = ()
    block_bytes: int = BLOCK_BYTES
    passes: tuple[Pass, ...] = ()


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

    @cached_property
    def edges(self) -> int:
        return int(self.degrees @ self.counts)

    def share(self, nodes: float) -> float:
        """The share of the edges that end at so many nodes of the highest degrees."""
        before = np.minimum(np.cumsum(self.counts), nodes)
        taken = np.diff(before, prepend=0.0)
        return float(taken @ self.degrees) / max(self.edges, 1)


@dataclass(frozen=True, eq=False)
class Workload:
    """A training: its graph and its settings, without open ones.

    Args:
        users, items: degrees.
        model, loss, optimizer, trainer: as configured; the trainer as `training.scaling.scaled` gives it.
        validated: whether the best parameters so far are kept beside the present ones.
        threads: of the kernels.
        cache_bytes: of the last-level cache.
        flops: that dense products get a second, None where it is not known.
        on_gpu: whether a GPU computes.

    Raises:
        ConfigError: a model, loss or optimizer whose traffic is not known here.
    """

    users: Side
    items: Side
    model: ModelConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    trainer: TrainerConfig
    validated: bool
    threads: int
    cache_bytes: int
    flops: float | None = None
    on_gpu: bool = False

    def __post_init__(self) -> None:
        for where, section, known in (
            ("model", self.model, (LightGCNConfig, NGCFConfig)),
            ("loss", self.loss, (BPRConfig, SoftmaxConfig)),
        ):
            if not isinstance(section, known):
                raise _unknown(where, section.name, [kind.name for kind in known])
        if self.optimizer.name not in ("adam", "adamw"):
            raise _unknown("optimizer", self.optimizer.name, ["adam", "adamw"])
        if getattr(self.model, "layer_weights", None) == "learned":
            raise _unknown("model.layer_weights", "learned", ["null", "numbers"])

    @classmethod
    def of(cls, graph: BipartiteGraph, **settings: Any) -> Workload:
        """With the graph's degrees; settings: all other fields."""
        return cls(Side.of(graph.user_degrees), Side.of(graph.item_degrees), **settings)

    def with_dim(self, dim: int) -> Workload:
        """The same with another width of the embeddings."""
        return replace(self, model=replace(self.model, dim=dim))  # type: ignore[arg-type]  # as below

    def with_batch(self, batch: int) -> Workload:
        """The same with another batch."""
        return replace(self, trainer=replace(self.trainer, batch_size=batch))

    @property
    def nodes(self) -> int:
        return self.users.nodes + self.items.nodes

    @property
    def entries(self) -> int:
        """Of the adjacency, which holds an edge both ways."""
        return 2 * self.users.edges

    @property
    def dim(self) -> int:
        dim: int = self.model.dim  # type: ignore[union-attr]  # of the models that are known here
        return dim

    @property
    def layers(self) -> int:
        layers: int = self.model.layers  # type: ignore[union-attr]
        return layers

    @property
    def steps_per_epoch(self) -> int:
        return max(1, ceil(self.users.edges / self.batch))

    @property
    def batch(self) -> int:
        """Interactions of a step."""
        assert self.trainer.batch_size is not None
        return self.trainer.batch_size

    @property
    def can_stream_state(self) -> bool:
        """Whether the optimizer's state alone may lie in files: beside the processors of this machine."""
        return self._float32 and not self.on_gpu

    @property
    def can_stream(self) -> bool:
        """Whether the training has a form in column panels, with embeddings elsewhere too."""
        drawn = isinstance(self.model, NGCFConfig) and not self.on_gpu
        drawn = drawn or (isinstance(self.model, LightGCNConfig) and self.model.init == "normal")
        columns = drawn and self.dim % GROUP == 0 and isinstance(self.loss, BPRConfig) and self.optimizer.clip is None
        return columns and self._float32

    @property
    def panel_widths(self) -> list[int]:
        """Columns that a panel may have, wide ones first."""
        groups = ceil(self.dim / GROUP)
        return [GROUP * width for width in range(groups, 0, -1) if groups % width == 0]

    @property
    def product_seconds(self) -> float:
        """Of the dense products of a step.

        Raises:
            ConfigError: there are some, and it is not known how fast they are.
        """
        count = 0.0
        if isinstance(self.model, NGCFConfig):  # two products of dim x dim on every node, their gradients by both sides
            count += 12.0 * self.nodes * self.dim**2 * self.layers
        if isinstance(self.loss, SoftmaxConfig):  # scores, and their gradients by users and by items
            others = self.loss.negatives or self.items.nodes
            count += 6.0 * self.users.nodes / self.steps_per_epoch * others * self._final_dim
        return self.seconds_of_products(count)

    def seconds_of_products(self, count: float) -> float:
        """Of so many operations in dense products.

        Raises:
            ConfigError: there are some, and it is not known how fast they are.
        """
        if count and self.flops is None:
            found = "makes dense products, whose speed on that hardware is not known"
            raise ConfigError(
                found, where=f"model={self.model.name}, loss={self.loss.name}", remedy="Use hardware=here"
            )
        return count / self.flops if self.flops else 0.0

    @property
    def sampling_seconds(self) -> float:
        """Of drawing a batch of triples."""
        return self.batch * (1 + self._negatives) * DRAW_SECONDS / self.threads if self._negatives else 0.0

    def resident(self) -> list[Demand]:
        """Every tensor of a step that computes on all of them as they lie."""
        moved = self._step()
        self._adam(moved)
        return [*self._graph(moved), *self._demands(self._sizes(), moved)]

    def state_streamed(self) -> Streamed:
        """A step whose optimizer's state alone lies in files: it passes by while the optimizer works."""
        moved, optimizer = self._step(), _Moved(self.cache_bytes)
        self._adam(optimizer)
        sizes = {name: size for name, size in self._sizes().items() if name not in STATE}
        update = tuple(access for demand in ("gradient", "embedding", *STATE) for access in optimizer.of(demand))
        files = tuple(Demand(name, self._sizes()[name], optimizer.of(name)) for name in STATE)
        demands = (*self._graph(moved), *self._demands(sizes, moved))
        return Streamed(self.dim, 1, sum(demand.bytes for demand in files), demands, update, files, len(files))

    def _step(self) -> _Moved:
        """What a step moves but for the optimizer."""
        moved, size = _Moved(self.cache_bytes), self._size
        numbers = self.nodes * self.dim * size
        if isinstance(self.model, NGCFConfig):
            self._ngcf(moved, size)
        else:
            self._propagate(moved, "embedding", "final", self.dim, size)
            self._propagate(moved, "final", "gradient", self.dim, size)
        self._loss(moved, size)
        if self._reg:  # added up where both ways to the embedding meet
            moved.all("ego_gradient", read=numbers)
            moved.all("gradient", mixed=2 * numbers)
        return moved

    def _sizes(self) -> dict[str, int]:
        """Bytes of what is as long as the nodes."""
        numbers, wide = self.nodes * self.dim * self._size, self.nodes * self._final_dim * self._size
        state = self.nodes * self.dim * self._state_size
        sizes = {"embedding": numbers, STATE[0]: state, STATE[1]: state, "gradient": numbers, "final": wide}
        if self.trainer.storage == "bfloat16":
            sizes["master"] = self.nodes * self.dim * FLOAT
        if isinstance(self.model, NGCFConfig):
            sizes |= {"layers": self.layers * numbers, "final_gradient": wide}
        elif self.layers > 1:
            sizes["work"] = numbers
        if self._reg:
            sizes["ego_gradient"] = numbers
        if self.validated and not self.on_gpu:  # kept on the CPU
            sizes["best"] = numbers
        return sizes

    def streamed(self, panel: int) -> Streamed:
        """A step with BPR in panels of so many columns, embeddings and state in files."""
        return self._ngcf_streamed(panel) if isinstance(self.model, NGCFConfig) else self._lightgcn_streamed(panel)

    def _lightgcn_streamed(self, panel: int) -> Streamed:
        """Of LightGCN; every pass below happens once a panel."""
        moved, panels = _Moved(self.cache_bytes), ceil(self.dim / panel)
        dense, columns = self.nodes * panel * FLOAT, panel * panels
        numbers = self.nodes * columns * FLOAT
        # Backward through all layers, forward through all but the last, and that for the batch's rows alone.
        moved.all("panels", write=numbers)
        self._propagate(moved, "panels", "panels", panel, FLOAT, times=panels)
        rows, entries = self._batch_rows()
        self._propagate(moved, "panels", "panels", panel, FLOAT, times=panels, layers=self.layers - 1)
        if self.layers:
            self._gather_neighbours(moved, "panels", panel * FLOAT, panels * entries / max(self.entries, 1))
            moved.all("graph", read=panels * 8.0 * entries)
        moved.all("batch_rows", mixed=8 * rows * columns * FLOAT)  # final and ego rows come, gradients of both go
        for _ in range(panels):
            self._triples(moved, "batch_rows", panel * FLOAT)
        self._places(moved, rows)
        moved.all("panels", read=numbers, write=numbers)  # the gradient, and the new embedding for the forward pass

        # Final rows of this step's batch, which give way to those of the next one panel by panel.
        most = min(self.nodes, (2 + self._negatives) * self.batch)
        sizes = {"panels": 3 * dense, "batch_rows": most * (columns + 3 * panel) * FLOAT}
        ways = (
            (Access("to_gpu", numbers), Access("from_gpu", numbers)) if self.on_gpu else (Access("mixed", 2 * numbers),)
        )
        files = [Demand(name, numbers, ways) for name in ("embedding", *STATE)]
        files.append(Demand("final", numbers))  # for evaluation, mapped
        if self.validated:
            files.append(Demand("best", numbers))
        update = (Access("mixed", 6 * numbers),)
        if self.on_gpu:  # pointers of blocks of rows, and which rows of them are short
            sizes["row_blocks"] = 16 * self.nodes
        demands = (*self._graph(moved), *self._demands(sizes, moved))
        last = _Moved(self.cache_bytes)
        self._propagate(last, "panels", "panels", panel, FLOAT, times=panels, layers=min(self.layers, 1))
        return Streamed(panel, panels, 3 * dense, demands, update, tuple(files), 3, last.accesses())

    def _ngcf_streamed(self, panel: int) -> Streamed:
        """Of NGCF: see `gnnrec.models.streamed_ngcf`."""
        panels, inner = ceil(self.dim / panel), self.layers - 1
        numbers, norms = self.nodes * self.dim * FLOAT, self.nodes * FLOAT
        rows, entries = self._batch_rows()
        batch, products = rows * self.dim * FLOAT, 4.0 * self.dim**2  # a row's two products, forward
        state = dict.fromkeys(("embedding", *STATE), (1, 1))
        total, files, passes = _Moved(self.cache_bytes), _Moved(self.cache_bytes), list[Pass]()

        def add(moved: _Moved, ways: dict[str, tuple[int, int]], flops: float = 0.0, waited: float = 0.0) -> None:
            """A pass that reads and writes the files so many times each."""
            transfer = _Moved(self.cache_bytes)
            pattern = "mixed" if any(write for _, write in ways.values()) else "read"
            for name, counts in ways.items():
                transfer.all(name, **{pattern: sum(counts) * numbers})
            moved.all("buffers", mixed=sum(map(sum, ways.values())) * numbers)
            for whole, part in ((total, moved), (files, transfer)):
                for name, accesses in part.bytes.items():
                    whole.add(name, *(replace(access, bytes=count) for access, count in accesses.items()))
            passes.append(Pass(moved.accesses(), flops, transfer.accesses(), waited))

        def gathered(share: float = 1.0) -> _Moved:
            """What is moved where neighbours are gathered, panel by panel, for rows with this share of all entries."""
            moved = _Moved(self.cache_bytes)
            moved.all("panels", write=numbers)
            self._gather_neighbours(moved, "panels", panel * FLOAT, panels * share)
            self._read_graph(moved, panels * share)
            return moved

        for layer in range(self.layers):
            source = "layers" if layer else "embedding"
            last = layer == inner
            moved = gathered(entries / max(self.entries, 1) if last else 1.0)
            moved.all("batch_rows", mixed=(4 if last else 2) * batch)
            add(moved, {source: (1, 0)} | ({} if last else {"aggregates": (0, 1)}), waited=numbers)
            if not last:
                moved = _Moved(self.cache_bytes)
                moved.all("blocks", mixed=6 * numbers)  # rows put together and taken apart
                moved.all("norms", write=norms)
                ways = {source: (1, 0), "aggregates": (1, 0)}
                ways["layers"] = (ways.get("layers", (0, 0))[0], 1)
                add(moved, ways, self.nodes * products)
        moved = _Moved(self.cache_bytes)
        moved.all("batch_rows", mixed=(12 + 2 * (self.layers + 1)) * batch)
        self._triples(moved, "batch_rows", self._final_dim * FLOAT)
        self._places(moved, rows)
        add(moved, {}, 3 * rows * products)
        add(gathered(), {"gradient": (0, 1)} if inner else state)
        for layer in reversed(range(inner)):
            moved = _Moved(self.cache_bytes)
            moved.all("blocks", mixed=17 * numbers)
            moved.all("norms", read=norms)
            ways = {"aggregates": (1, 1), "gradient": (1, 1)}
            ways |= {"layers": (2, 0)} if layer else {"embedding": (1, 0), "layers": (1, 0)}
            add(moved, ways, 2 * self.nodes * products)
            ways = {"gradient": (1, 1)} if layer else {"gradient": (1, 0)} | state
            add(gathered(), {"aggregates": (1, 0)} | ways, waited=numbers)

        most = min(self.nodes, (2 + self._negatives) * self.batch)
        # Rows of all columns: inputs, outputs and gradients of a layer; a block of every file. Of the weights, parts of
        # the gradients of one layer too.
        sizes = {"panels": self.nodes * panel * FLOAT, "norms": inner * norms}
        sizes |= {"batch_rows": most * (self.layers + 6) * self.dim * FLOAT}
        sizes |= {"blocks": (8 + self.layers) * min(ROWS_BYTES, numbers)}
        parts = min(max(self.nodes // CHUNK_ROWS, 1), CHUNKS)
        sizes |= {"weights": (4 * self.layers + parts) * 2 * (self.dim + 1) * self.dim * FLOAT}
        lying = {"embedding": 1, STATE[0]: 1, STATE[1]: 1, "layers": inner, "aggregates": max(inner, 1)}
        lying |= {"gradient": min(inner, 1), "final": self.layers + 1, "best": int(self.validated)}
        return Streamed(
            panel,
            panels,
            5 * self.nodes * panel * FLOAT,
            (*self._graph(total), *self._demands(sizes, total)),
            total.of("buffers"),
            tuple(Demand(name, count * numbers, files.of(name)) for name, count in lying.items() if count),
            max(5, 4 * panels),
            block_bytes=ROWS_BYTES // panels,
            passes=tuple(passes),
        )

    @property
    def _float32(self) -> bool:
        """Whether embeddings and state are float32, as panels and blocks of them are."""
        return self.trainer.storage == "float32" and self.optimizer.state_dtype == "float32"

    @property
    def _size(self) -> int:
        """Bytes of a number of the embeddings and gradients."""
        return 2 if self.trainer.storage == "bfloat16" else FLOAT

    @property
    def _state_size(self) -> int:
        return 2 if self.optimizer.state_dtype == "bfloat16" else FLOAT

    @property
    def _reg(self) -> bool:
        return isinstance(self.loss, BPRConfig) and self.loss.reg > 0

    @property
    def _final_dim(self) -> int:
        return self.dim * (self.layers + 1) if isinstance(self.model, NGCFConfig) else self.dim

    @property
    def _negatives(self) -> int:
        return self.loss.negatives if isinstance(self.loss, BPRConfig) else 0

    @property
    def _matrix(self) -> Any:
        """What the operators' bytes_moved ask of an adjacency."""
        return _Adjacency((self.nodes, self.nodes), self.entries)

    def _graph(self, moved: _Moved) -> Iterator[Demand]:
        """The adjacency, and the users x items matrix both ways that batches are drawn from."""
        yield moved.demand("graph", 8 * (self.nodes + 1) + 4 * self.entries + 4 * self.nodes, movable=True)
        draws = self.batch * (3 + 2 * self._negatives) * LINE  # a user, its row, an item; an item and the user's row
        moved.rows("interactions", draws, LINE, 4 * self.users.edges)
        if not self.on_gpu:  # batches are drawn on the CPU
            yield moved.demand("interactions", 8 * (self.nodes + 2) + 8 * self.users.edges, held=True)

    def _demands(self, sizes: dict[str, int], moved: _Moved) -> Iterator[Demand]:
        for name, size in sizes.items():
            yield moved.demand(name, size, movable=name in ("embedding", "master", *STATE) and not self.on_gpu)
        places = (2 + self._negatives) * self.batch * (8 + 4 + 2 * FLOAT)  # numbers, order, scores and weights
        yield moved.demand("batch", places + 24 * (self.nodes + 1) * isinstance(self.loss, BPRConfig))

    def _propagate(
        self, moved: _Moved, source: str, target: str, dim: int, size: int, times: int = 1, layers: int | None = None
    ) -> None:
        """`lightgcn_propagate`: a layer gathers, reads the first input again and writes."""
        layers = self.layers if layers is None else layers
        numbers = times * self.nodes * dim * size
        if layers <= 0:
            moved.all(source, read=numbers)
            moved.all(target, write=numbers)
            return
        work = "work" if source != target else source
        case = Case("", {"x": (self.nodes, dim)}, {"matrix": self._matrix, "num_layers": layers})
        gathered = layers * (self.entries * dim * size + _graph_bytes(self.nodes, self.entries))
        dense = times * (propagate_bytes(case, size) - gathered) / layers  # the half of it read, the other written
        read = source
        for layer in range(1, layers + 1):
            written = work if (layers - layer) % 2 else target
            self._gather_neighbours(moved, read, dim * size, times)
            self._read_graph(moved, times)
            moved.all(source, read=dense / 2)
            moved.all(written, write=dense / 2)
            read = written

    def _ngcf(self, moved: _Moved, size: int) -> None:
        """`ngcf_layer` forward; backward, which aggregates again, then sends gradients to the neighbours."""
        numbers = self.nodes * self.dim * size
        tensors: dict[str, tuple[int, ...]] = {"x": (self.nodes, self.dim)}
        tensors |= dict.fromkeys(("w1", "w2"), (self.dim, self.dim))
        for layer in range(self.layers):
            source = "layers" if layer else "embedding"
            case = Case("", tensors, {"matrix": self._matrix})
            gathered = self.entries * self.dim * size + _graph_bytes(self.nodes, self.entries)
            dense = ngcf_bytes(case, size) - gathered  # the rows' own, results and norms
            for _ in range(2):
                self._gather_neighbours(moved, source, self.dim * size)
                self._read_graph(moved)
            moved.all(source, read=2 * numbers)
            moved.all("layers", write=dense - numbers, read=numbers)
            moved.all("final_gradient", read=numbers)
            moved.all("gradient", write=2 * numbers, mixed=2 * numbers)
            self._gather_neighbours(moved, "gradient", self.dim * size)
            self._read_graph(moved)
        moved.all("layers", read=self.layers * numbers)  # side by side
        moved.all("embedding", read=numbers)
        moved.all("final", write=(self.layers + 1) * numbers)

    def _loss(self, moved: _Moved, size: int) -> None:
        wide, row = self.nodes * self._final_dim * size, self._final_dim * size
        gradient = "final_gradient" if isinstance(self.model, NGCFConfig) else "final"
        moved.all(gradient, write=wide)
        if isinstance(self.loss, SoftmaxConfig):  # rows and keys are divided by their lengths, and so are gradients
            moved.all("final", read=2 * wide, mixed=4 * wide)
            moved.rows("final", 4 * self.batch * row, row, self.items.nodes * row)
            return
        assert isinstance(self.loss, BPRConfig)
        self._triples(moved, "final", row)
        self._places(moved, self.nodes)
        if self.loss.reg:
            ego = self.nodes * self.dim * size
            kept = 3 if self.loss.hardest else 2 + self._negatives
            moved.rows("embedding", kept * self.batch * self.dim * size, self.dim * size, ego)
            moved.all("embedding", read=ego)
            moved.all("ego_gradient", write=ego)

    def _triples(self, moved: _Moved, source: str, row_bytes: int) -> None:
        """Rows that `bpr_loss` gathers: for the scores, once more for the gradient, for that of users and of items."""
        assert isinstance(self.loss, BPRConfig)
        counted = 1 if self.loss.hardest else self._negatives
        rows = self.batch * (2 * (2 + self._negatives) + 2 * (1 + counted))
        moved.rows(source, rows * row_bytes, row_bytes, self.nodes * row_bytes)

    def _places(self, moved: _Moved, nodes: float) -> None:
        """The batch grouped by node, by one thread: counts, their sum, places; then chunks of equal work."""
        pointers, numbers = 8 * int(nodes + 1), (2 + self._negatives) * self.batch
        moved.add("batch", Access("write", pointers, serial=True), Access("mixed", 4 * pointers, serial=True))
        moved.add("batch", Access("gather", 3 * numbers * 8, 8, pointers, serial=True))
        moved.all("batch", mixed=3 * pointers, read=2 * pointers + 8 * numbers)

    def _adam(self, moved: _Moved) -> None:
        """`adam_step` reads the gradient, and reads and writes the parameter and both moments: seven times a number."""
        case = Case("", {"parameter": (self.nodes, self.dim)}, {})
        numbers = adam_bytes(case, 1) / 7
        moved.all("gradient", read=numbers * self._size)
        for name in STATE:
            moved.all(name, mixed=2 * numbers * self._state_size)
        if self.trainer.storage == "bfloat16":
            moved.all("master", mixed=2 * numbers * FLOAT)
            moved.all("embedding", write=numbers * self._size)
        else:
            moved.all("embedding", mixed=2 * numbers * self._size)

    def _read_graph(self, moved: _Moved, times: float = 1) -> None:
        """Pointers, columns and scales of rows in order; the scale of a column is fetched with a line of its own."""
        scales = FLOAT * self.entries
        moved.all("graph", read=times * (_graph_bytes(self.nodes, self.entries) - scales))
        for side in (self.users, self.items):
            self._gather(moved, "graph", side, times * scales / 2, FLOAT, LINE)

    def _gather_neighbours(self, moved: _Moved, source: str, row_bytes: int, times: float = 1) -> None:
        """A row for every entry: users gather items, then items users; the most popular rows stay in the cache."""
        for side in (self.users, self.items):
            self._gather(moved, source, side, times * side.edges * row_bytes, row_bytes, row_bytes)

    def _gather(self, moved: _Moved, source: str, side: Side, count: float, row_bytes: int, line: int) -> None:
        """Rows of users or of items, gathered as often as these have neighbours: all are found in the cache where it
        holds them, else the most popular, each in a line of its own, are."""
        together = side.nodes * row_bytes
        held = 1.0 if together <= self.cache_bytes else side.share(self.cache_bytes / max(row_bytes, line))
        moved.rows(source, held * count, row_bytes, min(self.cache_bytes, together))
        moved.rows(source, (1 - held) * count, row_bytes, max(MISSED * self.cache_bytes, together))

    def _batch_rows(self) -> tuple[float, float]:
        """Different nodes of a batch to be expected, and the entries of their rows."""
        users = -np.expm1(-self.batch / max(self.users.nodes, 1)) * np.ones(len(self.users.degrees))
        drawn = self.items.degrees / max(self.items.edges, 1) + self._negatives / max(self.items.nodes, 1)
        items = -np.expm1(-self.batch * drawn)
        rows = entries = 0.0
        for side, chance in ((self.users, users), (self.items, items)):
            rows += float(chance @ side.counts)
            entries += float(chance @ (side.counts * side.degrees))
        return rows, entries


@dataclass(frozen=True)
class _Adjacency:
    """The size of a matrix with scales of rows and columns, where the operators' bytes_moved take a matrix."""

    shape: tuple[int, int]
    nnz: int
    row_scale: bool = True
    col_scale: bool = True


class _Moved:
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


def _graph_bytes(nodes: int, entries: int) -> int:
    """Pointers, columns and scales of rows and columns, as a product reads them."""
    return 8 * (nodes + 1) + 8 * entries + 4 * nodes


def _unknown(where: str, name: str, known: list[str]) -> ConfigError:
    return ConfigError(
        f"is {name!r}, whose traffic the planner does not know", where=where, remedy=f"Known are: {', '.join(known)}"
    )
