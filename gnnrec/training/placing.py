"""Where a training's tensors go: the plan, and the model as the plan has it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from gnnrec import device as devices
from gnnrec import losses, models
from gnnrec.config import (
    CustomModelConfig,
    GFCFConfig,
    HardwareConfig,
    LightGCNConfig,
    LossConfig,
    MemoryConfig,
    NGCFConfig,
    SoftmaxConfig,
    TrainConfig,
)
from gnnrec.data.dataset import Dataset
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.memtier import calibrate, conditions, measure_custom, planner
from gnnrec.memtier.adjacency import FileAdjacency
from gnnrec.memtier.costs import cache_held, product_flops
from gnnrec.memtier.custom import CustomTier
from gnnrec.memtier.demands import STATE, HeldOut
from gnnrec.memtier.discover import discover
from gnnrec.memtier.files import Throttle, TierFolder, remove_leftovers
from gnnrec.memtier.layout import BLOCK_BYTES, ROWS_BYTES, Layout
from gnnrec.memtier.matrices import BlockFolder, PanelMatrix
from gnnrec.memtier.placement import Arena, Placed
from gnnrec.memtier.plans import Plan
from gnnrec.memtier.ring import Ring
from gnnrec.memtier.staging import host_layout
from gnnrec.memtier.stores import FileStore, HostStore
from gnnrec.memtier.stream import Stream
from gnnrec.memtier.tiers import Tier
from gnnrec.memtier.workload import Workload
from gnnrec.storage import storage_errors
from gnnrec.training.scaling import scaled
from gnnrec.units import parse_bytes

CALIBRATION_SECONDS = 30.0  # where a run has to make up for it; `gnnrec calibrate` takes its time


@dataclass(frozen=True)
class Form:
    """How a model is streamed.

    Args:
        folder: of its files; None has it in DRAM beside a GPU.
        panel: columns of a panel.
        ring: buffers and threads.
        graph_in_file: whether the columns of the graph lie in a file too.
    """

    folder: Path | None
    panel: int
    ring: Ring
    graph_in_file: bool = False


@dataclass
class Places:
    """Where a training's tensors lie, and what holds those that are not in ordinary memory.

    Args:
        plan: None where nothing was planned: all in DRAM, or on a GPU.
        tiers: that the plan knows, by name, with their rates.
        home: the name of the one that computes.
        run: whom files belong to.
    """

    plan: Plan | None = None
    tiers: Mapping[str, Tier] = field(default_factory=dict)
    home: str = ""
    run: str = ""
    files: TierFolder | None = None  # of what is streamed
    custom: CustomTier | None = None  # instead of it, of what is not mapped
    placed: dict[str, Placed] = field(default_factory=dict)  # what lies on a tier as it is
    _arenas: dict[str, Arena] = field(default_factory=dict)
    _open: ExitStack = field(default_factory=ExitStack)

    @property
    def elsewhere(self) -> bool:
        """Whether tensors are to lie on other tiers, for kernels to work on there."""
        return self.plan is not None and self.plan.mode == "direct"

    def tier_of(self, name: str) -> Tier:
        """Where the plan has a tensor."""
        assert self.plan is not None
        return self.tiers[self.plan.place(name).tier]

    def allocate(self, name: str, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Zeros of this shape where the plan has the tensor; `graph.indices` is a part of `graph`.

        Raises:
            GnnrecError: no room on the tier, or the system forbids what it takes.
        """
        tier = self.tier_of(name.partition(".")[0])
        if tier.name == self.home:
            return like.new_zeros(like.shape, dtype=dtype)
        if tier.name not in self._arenas:
            self._arenas[tier.name] = self._open.enter_context(Arena(tier, run=self.run))
        placed = self.placed[name] = self._arenas[tier.name].allocate(name, like.shape, dtype)
        return placed.tensor

    def stream(self, shape: Sequence[int]) -> Stream | None:
        """Adam's moments of a matrix [rows, dim] in files, where the plan streams these alone."""
        if self.plan is None or self.plan.mode != "stream" or self.plan.ring is None:
            return None
        rows, dim = shape
        layout = Layout.of(rows, dim, dim, self.blocks.access.alignment)
        return Stream([PanelMatrix(self.blocks, name, layout) for name in STATE], self.plan.ring)

    @property
    def blocks(self) -> BlockFolder:
        """Where matrices lie that are streamed."""
        found = self.custom or self.files
        assert found is not None
        return found

    def open_files(self, folder: Path, throttle: Throttle | None) -> TierFolder:
        """The folder for what is streamed."""
        self.files = self._open.enter_context(TierFolder(folder, run=self.run, throttle=throttle))
        return self.files

    def open_custom(self, memory: MemoryConfig) -> CustomTier | None:
        """The tier of a user's own package, where one is named."""
        if memory.custom.path is not None and self.custom is None:
            self.custom = self._open.enter_context(CustomTier(memory.custom, run=self.run))
        return self.custom

    def close(self) -> None:
        """Give up everything that was laid elsewhere; no tensor of it may be used any more."""
        self._open.close()


def planned(config: TrainConfig, graph: BipartiteGraph, *, held_out: HeldOut, folder: Path) -> Places:
    """The plan for a training that may use other memory than DRAM, which measures what was never measured.

    Args:
        config: of the training.
        graph: the training graph.
        held_out: what is ranked.
        folder: for files, where memory.folder is not set; a GPU is then streamed to from DRAM.

    Raises:
        PlanError: nothing fits.
        ConfigError: what `planner.plan` refuses.
        StorageError: the folder cannot be made.
    """
    memory = config.memory
    if memory.name == "dram":
        return Places()
    on_gpu, memory = devices.resolve(config.device).type != "cpu", normalised(memory)
    beside = on_gpu and memory.folder is None and memory.custom.path is None
    files = None if beside else tier_folder(config, folder)
    if memory.name != "direct" and files is not None:
        memory = replace(memory, folder=str(files))
    named = [*filter(None, [files]), *(Path(name) for name in memory.pins.values() if "/" in name)]
    for name in named:
        with storage_errors(name):
            name.mkdir(parents=True, exist_ok=True)
        remove_leftovers(name)  # of a killed run, before free space is looked at
    tiers = calibrate.calibrated(discover(named))
    with ExitStack() as failed:
        places = Places(run=str(folder.parent))
        failed.callback(places.close)
        own = places.open_custom(memory)
        # Beside an own tier, files are not streamed.
        wanted = {*([] if own else map(str, named)), *memory.pins.values()}
        tiers = _measured(tiers, wanted, "gpu" if on_gpu else "dram")
        if own is not None:
            tiers.append(measure_custom.measured(own, partial(print, flush=True)))
        found = planner.plan(workload(config, graph, tiers, held_out=held_out), tiers, memory)
        places.plan, places.tiers = found, {tier.name: tier for tier in tiers}
        places.home = found.place("batch").tier
        failed.pop_all()
    if found.mode != "stream":
        places.close()  # an own tier is not used
    if found.mode == "dram" and files is not None:
        with suppress(OSError):  # not empty, or somebody's
            files.rmdir()
    return places


def _measured(tiers: Sequence[Tier], wanted: set[str], kind: str) -> list[Tier]:
    """The tiers, those measured now that are of this kind or wanted by name and never were."""
    unknown = [
        tier
        for tier in tiers
        if tier.provenance != "measured"
        and not tier.unavailable
        and (tier.kind == kind or {tier.name, tier.where} & wanted)
    ]
    if not unknown:
        return list(tiers)
    names = " and ".join(tier.name for tier in unknown)
    print(f"measuring {names} for the plan, once on this machine: {CALIBRATION_SECONDS:.0f} s", flush=True)
    measured = calibrate.measure(unknown, seconds=CALIBRATION_SECONDS)
    calibrate.keep(measured)
    for tier in measured:  # also what could not be measured in the time there was
        print(f"{tier.name}: {tier.facts[calibrate.FACT]}", flush=True)
    now = {tier.name: tier for tier in measured}
    return [now.get(tier.name, tier) for tier in tiers]


def held_out(config: TrainConfig, data: Dataset) -> HeldOut:
    """What is ranked of these data."""
    return HeldOut(0 if data.valid is None else len(data.valid), len(data.test), max(config.evaluation.k))


def normalised(memory: MemoryConfig) -> MemoryConfig:
    """Folders as `discover` names them: from the root on, without a slash at the end."""

    def named(name: str) -> str:
        return os.path.abspath(name) if "/" in name else name

    pins = {tensor: named(tier) for tensor, tier in memory.pins.items()}
    return replace(memory, folder=None if memory.folder is None else os.path.abspath(memory.folder), pin=dict(pins))


def workload(
    config: TrainConfig,
    graph: BipartiteGraph,
    tiers: Sequence[Tier],
    *,
    held_out: HeldOut,
    hardware: HardwareConfig | None = None,
    declared_gpu: bool = False,
) -> Workload:
    """What a step of this training moves, on the processors that are here or declared.

    Args:
        config: of the training.
        graph: the training graph.
        tiers: that it may use.
        held_out: what is ranked.
        hardware: that is asked about; None for this machine.
        declared_gpu: whether it has a GPU.
    """
    assert config.loss is not None
    assert config.trainer is not None
    assert config.optimizer is not None
    compute = None if hardware is None else hardware.compute
    trainer, loss = scaled(config.trainer, config.loss, graph)
    on_gpu = config.device != "cpu" and (declared_gpu or devices.resolve(config.device).type != "cpu")
    products = isinstance(config.model, NGCFConfig) or isinstance(loss, SoftmaxConfig)
    here = compute is None and not on_gpu
    return Workload.of(
        graph,
        model=config.model,
        loss=loss,
        optimizer=config.optimizer,
        trainer=trainer,
        held_out=held_out,
        threads=config.threads or (torch.get_num_threads() if compute is None else compute.threads),
        cache_bytes=cache_held(tiers, conditions.last_level_cache()[0])
        if compute is None
        else parse_bytes("hardware.compute.cache", compute.cache),
        flops=product_flops(precision(loss)) if products and here else None,
        on_gpu=on_gpu,
    )


def tier_folder(config: TrainConfig, folder: Path) -> Path:
    """Where files lie: memory.folder, or else `folder`."""
    return Path(os.path.abspath(config.memory.folder or folder))


def build(
    config: TrainConfig,
    graph: BipartiteGraph,
    places: Places,
    device: torch.device,
    folder: Path,
    *,
    restored: bool = False,
    columns: slice | None = None,
) -> tuple[models.Model | models.Streamed, BipartiteGraph]:
    """The model where the plan has it, and the graph, which may have moved too.

    Args:
        config: of the training.
        graph: the training graph.
        places: with the plan.
        device: where a model without a plan goes.
        folder: for files, where memory.folder is not set.
        restored: whether a checkpoint will replace what embeddings in files start from, which then is not drawn.
        columns: of a LightGCN, those that this process has.

    Raises:
        GnnrecError: no room, or the system forbids what it takes.
    """
    plan = places.plan
    if plan is not None and plan.mode == "stream" and plan.place("embedding").mode == "stream":
        assert plan.panel is not None
        assert plan.ring is not None
        where = None if in_dram(plan.place("embedding").tier) else folder
        form = Form(where, plan.panel, plan.ring, graph_in_file=plan.place("graph").mode == "stream")
        moved = streamed(config, graph, places, device, form, drawn=not restored)
        return moved, moved.graph
    if places.elsewhere and places.tier_of("graph").name != places.home:
        graph = graph.moved(lambda name, x: places.allocate(f"graph.{name}", x, x.dtype).copy_(x))
    model = models.build(config.model, graph, config.seed, columns)
    if places.elsewhere:
        assert not isinstance(model, models.GFCF)
        assert config.trainer is not None
        if config.trainer.storage == "bfloat16":
            model.to(torch.bfloat16)
        made = model.embedding.data
        model.embedding.data = places.allocate("embedding", made, made.dtype).copy_(made)
    else:
        place(model, device)
    if plan is not None and plan.mode == "stream" and places.open_custom(config.memory) is None:
        places.open_files(tier_folder(config, folder), _throttle(config))
    return model, graph


def streamed(
    config: TrainConfig,
    graph: BipartiteGraph,
    places: Places,
    device: torch.device,
    form: Form,
    *,
    drawn: bool,
) -> models.Streamed:
    """A model whose embeddings lie outside of where it computes, drawn from the seed or left to what a checkpoint
    holds."""
    assert not isinstance(config.model, GFCFConfig | CustomModelConfig)
    rows, dim = graph.num_nodes, config.model.dim
    seed, panel = config.seed if drawn else None, form.panel
    if form.folder is None:
        assert isinstance(config.model, LightGCNConfig)
        beside = HostStore(device, form.ring.buffer_bytes)
        return models.StreamedLightGCN(graph, config.model, beside, host_layout(rows, dim, panel), seed)
    files = places.open_files(tier_folder(config, form.folder), _throttle(config))
    store = FileStore(files, form.ring, device, places.open_custom(config.memory))
    adjacency = None
    block_bytes = ROWS_BYTES * panel // dim if isinstance(config.model, NGCFConfig) else BLOCK_BYTES
    layout = Layout.of(rows, dim, panel, store.blocks.access.alignment, block_bytes)
    if form.graph_in_file:
        adjacency = FileAdjacency(files, graph, form.ring, store.times)
        graph = adjacency.graph
    if isinstance(config.model, NGCFConfig):
        made = graph, config.model, store, layout, config.seed
        return models.StreamedNGCF(*made, drawn=drawn, adjacency=adjacency)
    assert isinstance(config.model, LightGCNConfig)
    return models.StreamedLightGCN(graph, config.model, store, layout, seed, adjacency)


def in_dram(tier: str) -> bool:
    """Whether the tier of this name is DRAM, as `tiers.Tier` has it."""
    return tier.startswith("dram")


def _throttle(config: TrainConfig) -> Throttle | None:
    """What makes a simulated device, where one is asked for."""
    slower = config.memory.slower
    return None if slower is None else Throttle(*slower)


def place(model: torch.nn.Module, device: torch.device) -> None:
    """Move a model's parameters, or raise a DeviceMemoryError."""
    with devices.memory_errors("the model", lower="model.dim"):
        model.to(device)


def precision(loss: LossConfig) -> torch.dtype:
    """Of dense products, as the loss resolves it."""
    name = loss.precision if isinstance(loss, SoftmaxConfig) else "float32"
    return losses.best_precision(torch.device("cpu")) if name == "auto" else losses.PRECISIONS[name]
