"""What a training step moves: every tensor with its bytes, and the bytes of it that are read and written in a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np

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
from gnnrec.graph.rows import GraphRows
from gnnrec.memtier.costs import Access
from gnnrec.memtier.demands import RANKING, STATE, Demand, HeldOut, Moved, Side
from gnnrec.ops._operator import Case
from gnnrec.ops.adam.reference import bytes_moved as adam_bytes
from gnnrec.ops.lightgcn_propagate import FEW, SIZES
from gnnrec.ops.lightgcn_propagate.reference import bytes_moved as propagate_bytes
from gnnrec.ops.ngcf_layer.reference import bytes_moved as ngcf_bytes
from gnnrec.ops.softmax_loss.panels import CPU_PANEL
from gnnrec.ops.topk_scores import users_at_a_time
from gnnrec.ops.topk_scores.cpu import packed_items

LINE = 64  # bytes of a cache line: of the least that a draw or a scale is fetched with
GROUP = 16  # columns; panels are a multiple of it
FLOAT = 4  # bytes
# Of a triple's item, by one thread: random bits and a search among the user's items. 28 to 48 ns on Gowalla, batches of
# 2048 to 131072 with 1 to 16 negatives, on one core of Zen 4.
DRAW_SECONDS = 45e-9
SELECTED = 20  # bytes an entry of rows that are selected: two numbers of entries, and its column
MISSED = 16  # rows over so many times the cache are hardly ever found in it


@dataclass(frozen=True, eq=False)
class Workload:
    """A training: its graph and its settings, without open ones.

    Args:
        users, items: degrees.
        model, loss, optimizer, trainer: as configured; the trainer as `training.scaling.scaled` gives it.
        held_out: what is ranked now and then, and in the end. With a validation part, the best parameters so far are
            kept beside the present ones.
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
    held_out: HeldOut
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
    def of(cls, graph: BipartiteGraph | GraphRows, **settings: Any) -> Workload:
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
            count += 6.0 * self.users.nodes / self.steps_per_epoch * others * self.final_dim
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
        return self.batch * (1 + self.negatives) * DRAW_SECONDS / self.threads if self.negatives else 0.0

    def resident(self) -> list[Demand]:
        """Every tensor of a step that computes on all of them as they lie."""
        moved = self.step()
        self.adam(moved)
        return [*self.graph(moved), *self.demands(self.sizes(), moved)]

    def step(self) -> Moved:
        """What a step moves but for the optimizer."""
        moved, size = Moved(self.cache_bytes), self._size
        if self.in_part:
            self._part(moved, size)
            return moved
        numbers = self.nodes * self.dim * size
        if isinstance(self.model, NGCFConfig):
            self._ngcf(moved, size)
        else:
            self.propagate(moved, "embedding", "final", self.dim, size)
            self.propagate(moved, "final", "gradient", self.dim, size)
        self._loss(moved, size)
        if self._reg:  # added up where both ways to the embedding meet
            moved.all("ego_gradient", read=numbers)
            moved.all("gradient", mixed=2 * numbers)
        return moved

    def sizes(self) -> dict[str, int]:
        """Bytes of what is as long as the nodes."""
        numbers, wide = self.nodes * self.dim * self._size, self.nodes * self.final_dim * self._size
        state = self.nodes * self.dim * self._state_size
        sizes = {"embedding": numbers, STATE[0]: state, STATE[1]: state, "gradient": numbers, "final": wide}
        if self.trainer.storage == "bfloat16":
            sizes["master"] = self.nodes * self.dim * FLOAT
        if isinstance(self.model, NGCFConfig):
            sizes |= {"layers": self.layers * numbers, "final_gradient": wide}
        elif self.layers > 1:
            sizes["work"] = numbers
        if self.in_part:  # what the last layer gathers is gone when the gradient is made
            del sizes["final"]
            # Final and ego embeddings with their gradients; which of these a node has.
            rows = min(self.batch_rows()[0] + self.nodes / SIZES, self.nodes)
            sizes["batch_rows"] = int(2 * (1 + self._reg) * rows * self.dim * self._size + 8 * self.nodes)
        elif self._reg:
            sizes["ego_gradient"] = numbers
        if self.held_out.valid and not self.on_gpu:  # kept on the CPU
            sizes["best"] = numbers
        return sizes

    @property
    def in_part(self) -> bool:
        """Whether a step makes embeddings of its batch's nodes alone, as `training.resident` does."""
        return isinstance(self.model, LightGCNConfig) and not self.on_gpu and self.batch_rows()[0] < FEW * self.nodes

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
    def final_dim(self) -> int:
        return self.dim * (self.layers + 1) if isinstance(self.model, NGCFConfig) else self.dim

    @property
    def negatives(self) -> int:
        return self.loss.negatives if isinstance(self.loss, BPRConfig) else 0

    @property
    def _matrix(self) -> Any:
        """What the operators' bytes_moved ask of an adjacency."""
        return _Adjacency((self.nodes, self.nodes), self.entries)

    def graph(self, moved: Moved) -> Iterator[Demand]:
        """The adjacency, whose columns hold the users of every item too; and the items of every user, which batches are
        drawn from and rankings leave out."""
        yield moved.demand("graph", 8 * (self.nodes + 1) + 4 * self.entries + 4 * self.nodes, movable=True)
        draws = self.batch * (3 + 2 * self.negatives) * LINE  # a user, its row, an item; an item and the user's row
        moved.rows("interactions", draws, LINE, 4 * self.users.edges)
        if not self.on_gpu:  # batches are drawn on the CPU
            yield moved.demand("interactions", 8 * (self.nodes + 2) + 4 * self.users.edges, held=True)

    def demands(self, sizes: dict[str, int], moved: Moved) -> Iterator[Demand]:
        """Tensors of so many bytes, and what a batch takes."""
        for name, size in sizes.items():
            yield moved.demand(name, size, movable=name in ("embedding", "master", *STATE) and not self.on_gpu)
        places = (2 + self.negatives) * self.batch * (8 + 4 + 2 * FLOAT)  # numbers, order, scores and weights
        if isinstance(self.loss, SoftmaxConfig):
            # Of the items that take part, rows of length 1 and gradients; of those that they are compared with, as
            # many, padded ones, these as the products take them, and parts of the gradient; a panel of scores.
            items = self.batch_rows()[0] - self.users.nodes / self.steps_per_epoch
            places += int((2 * items + 5 * (self.loss.negatives or items)) * self.final_dim * FLOAT) + CPU_PANEL
        nodes = self.batch_rows()[0] if "batch_rows" in sizes else self.nodes
        yield moved.demand("batch", places + 24 * int(nodes + 1) * isinstance(self.loss, BPRConfig))
        if self.on_gpu:
            return
        if self.negatives and self.trainer.sampling == "interactions":
            yield moved.demand("order", order_bytes(self.users.edges) * self.users.edges)
        yield moved.demand(RANKING, self._ranking())

    def _ranking(self) -> int:
        """Of the evaluation in the end, and most of it now and then."""
        held_out, model = self.held_out, self.model
        biased = bool(model.popularity)  # type: ignore[union-attr]  # as above
        width, copied = self.final_dim + biased, biased or model.similarity == "cosine"  # type: ignore[union-attr]
        block = min(users_at_a_time(held_out.k, on_gpu=False), self.users.nodes)
        # Vectors of users, their lists, and what they have seen; items that are packed.
        ranked = block * ((1 + copied) * width * FLOAT + held_out.k * (4 + FLOAT))
        ranked += int(SELECTED * self.users.share(block) * self.users.edges)
        ranked += min(packed_items(width), self.items.nodes) * width * FLOAT
        # The test part by user, and the validation part, which its rankings leave out; each is grouped by item first.
        grouped = 4 * max(held_out.valid, held_out.test) + 8 * (self.items.nodes + 2)
        # Pointers of both parts, and which users the test part has, found by way of two arrays more.
        users = 8 * (self.users.nodes + 1)
        parts = 4 * (held_out.valid + held_out.test) + 3 * users
        return parts + max(grouped, 2 * users, ranked) + copied * self.items.nodes * width * FLOAT

    def propagate(
        self, moved: Moved, source: str, target: str, dim: int, size: int, times: int = 1, layers: int | None = None
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
            self.gather_neighbours(moved, read, dim * size, times)
            self.read_graph(moved, times)
            moved.all(source, read=dense / 2)
            moved.all(written, write=dense / 2)
            read = written

    def _part(self, moved: Moved, size: int) -> None:
        """`lightgcn_propagate_rows`, the loss of what it gives, and back: the first layer gathers the batch's gradient,
        the others go over all nodes. Before there is a gradient, its memory has what the last layer gathers."""
        rows, entries = self.batch_rows()
        row, share = self.dim * size, entries / max(self.entries, 1)
        taken, everything = int(rows) * row, self.nodes * row
        both = (1 + self._reg) * taken  # final embeddings, and ego embeddings where the loss takes them
        if self.layers:
            if self.layers > 1:
                self.propagate(moved, "embedding", "gradient", self.dim, size, layers=self.layers - 1)
            self.gather_neighbours(moved, "gradient" if self.layers > 1 else "embedding", row, share)
            self.read_graph(moved, share)
        moved.rows("embedding", both, row, everything)
        moved.all("batch_rows", write=2 * both, read=both)
        if isinstance(self.loss, BPRConfig):
            self.triples(moved, "batch_rows", row, taken)
            self.places(moved, rows)
            if self.loss.reg:
                kept = 3 if self.loss.hardest else 2 + self.negatives
                moved.rows("batch_rows", kept * self.batch * row, row, taken)
        else:
            self._of_softmax(moved, "batch_rows", taken, row)
        if self.layers:
            self.read_graph(moved)
            moved.rows("batch_rows", entries * row, row, taken)
        for layer in range(1, max(self.layers, 1)):
            between = "work" if (self.layers - layer) % 2 else "gradient"
            moved.all(between, write=everything)
            self.gather_neighbours(moved, between, row)
            self.read_graph(moved)
        moved.all("gradient", write=everything)

    def _of_softmax(self, moved: Moved, tensor: str, numbers: int, row: int) -> None:
        """Rows and keys are divided by their lengths, and so are gradients; those of every positive are gathered."""
        moved.all(tensor, read=2 * numbers, mixed=4 * numbers)
        moved.rows(tensor, 4 * self.batch * row, row, min(numbers, self.items.nodes * row))

    def _ngcf(self, moved: Moved, size: int) -> None:
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
                self.gather_neighbours(moved, source, self.dim * size)
                self.read_graph(moved)
            moved.all(source, read=2 * numbers)
            moved.all("layers", write=dense - numbers, read=numbers)
            moved.all("final_gradient", read=numbers)
            moved.all("gradient", write=2 * numbers, mixed=2 * numbers)
            self.gather_neighbours(moved, "gradient", self.dim * size)
            self.read_graph(moved)
        moved.all("layers", read=self.layers * numbers)  # side by side
        moved.all("embedding", read=numbers)
        moved.all("final", write=(self.layers + 1) * numbers)

    def _loss(self, moved: Moved, size: int) -> None:
        wide, row = self.nodes * self.final_dim * size, self.final_dim * size
        gradient = "final_gradient" if isinstance(self.model, NGCFConfig) else "final"
        moved.all(gradient, write=wide)
        if isinstance(self.loss, SoftmaxConfig):
            self._of_softmax(moved, "final", wide, row)
            return
        assert isinstance(self.loss, BPRConfig)
        self.triples(moved, "final", row)
        self.places(moved, self.nodes)
        if self.loss.reg:
            ego = self.nodes * self.dim * size
            kept = 3 if self.loss.hardest else 2 + self.negatives
            moved.rows("embedding", kept * self.batch * self.dim * size, self.dim * size, ego)
            moved.all("embedding", read=ego)
            moved.all("ego_gradient", write=ego)

    def triples(self, moved: Moved, source: str, row_bytes: int, working_set: int | None = None) -> None:
        """Rows that `bpr_loss` gathers: for the scores, once more for the gradient, for that of users and of items.
        working_set: of all nodes by default."""
        assert isinstance(self.loss, BPRConfig)
        counted = 1 if self.loss.hardest else self.negatives
        rows = self.batch * (2 * (2 + self.negatives) + 2 * (1 + counted))
        moved.rows(source, rows * row_bytes, row_bytes, working_set or self.nodes * row_bytes)

    def places(self, moved: Moved, nodes: float) -> None:
        """The batch grouped by node, by one thread: counts, their sum, places; then chunks of equal work."""
        pointers, numbers = 8 * int(nodes + 1), (2 + self.negatives) * self.batch
        moved.add("batch", Access("write", pointers, serial=True), Access("mixed", 4 * pointers, serial=True))
        moved.add("batch", Access("gather", 3 * numbers * 8, 8, pointers, serial=True))
        moved.all("batch", mixed=3 * pointers, read=2 * pointers + 8 * numbers)

    def adam(self, moved: Moved) -> None:
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

    def read_graph(self, moved: Moved, times: float = 1) -> None:
        """Pointers, columns and scales of rows in order; the scale of a column is fetched with a line of its own."""
        scales = FLOAT * self.entries
        moved.all("graph", read=times * (_graph_bytes(self.nodes, self.entries) - scales))
        for side in (self.users, self.items):
            self._gather(moved, "graph", side, times * scales / 2, FLOAT, LINE)

    def gather_neighbours(self, moved: Moved, source: str, row_bytes: int, times: float = 1) -> None:
        """A row for every entry: users gather items, then items users; the most popular rows stay in the cache."""
        for side in (self.users, self.items):
            self._gather(moved, source, side, times * side.edges * row_bytes, row_bytes, row_bytes)

    def _gather(self, moved: Moved, source: str, side: Side, count: float, row_bytes: int, line: int) -> None:
        """Rows of users or of items, gathered as often as these have neighbours: all are found in the cache where it
        holds them, else the most popular, each in a line of its own, are."""
        together = side.nodes * row_bytes
        held = 1.0 if together <= self.cache_bytes else side.share(self.cache_bytes / max(row_bytes, line))
        moved.rows(source, held * count, row_bytes, min(self.cache_bytes, together))
        moved.rows(source, (1 - held) * count, row_bytes, max(MISSED * self.cache_bytes, together))

    def batch_rows(self) -> tuple[float, float]:
        """Different nodes of a batch to be expected, and the entries of their rows."""
        users = -np.expm1(-self.batch / max(self.users.nodes, 1)) * np.ones(len(self.users.degrees))
        drawn = self.batch * (self.items.degrees / max(self.items.edges, 1) + self.negatives / max(self.items.nodes, 1))
        if isinstance(self.loss, SoftmaxConfig):  # whole users, with negatives that they share
            users = np.full(len(self.users.degrees), 1 / self.steps_per_epoch)
            drawn = self.batch * self.items.degrees / max(self.items.edges, 1)
            if self.loss.negatives is not None:
                weights = np.maximum(self.items.degrees, 1.0) ** (self.loss.popularity or 0.0)
                drawn = drawn + self.loss.negatives * weights / max(float(weights @ self.items.counts), 1.0)
            elif not self.loss.in_batch:
                drawn = np.full(len(self.items.degrees), np.inf)
        items = -np.expm1(-drawn)
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


def _graph_bytes(nodes: int, entries: int) -> int:
    """Pointers, columns and scales of rows and columns, as a product reads them."""
    return 8 * (nodes + 1) + 8 * entries + 4 * nodes


def order_bytes(edges: int) -> int:
    """Bytes of an edge's number in a shuffled epoch."""
    return 4 if edges < 2**31 else 8


def _unknown(where: str, name: str, known: list[str]) -> ConfigError:
    return ConfigError(
        f"is {name!r}, whose traffic the planner does not know", where=where, remedy=f"Known are: {', '.join(known)}"
    )
