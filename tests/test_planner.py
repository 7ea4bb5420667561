"""Costs of tiers, what a training step moves, and the planner: equal to brute force, within every limit."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from math import inf

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from gnnrec import extensions
from gnnrec.cli.plan import plan as app
from gnnrec.config import (
    BPRConfig,
    LightGCNConfig,
    NGCFConfig,
    OptimizerConfig,
    PlanConfig,
    SoftmaxConfig,
    TrainerConfig,
)
from gnnrec.config.memory import CustomTierConfig, MemoryConfig, SimulateConfig
from gnnrec.config.recipes import CONF
from gnnrec.errors import ConfigError
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.memtier import choices, forms
from gnnrec.memtier.choices import simulated
from gnnrec.memtier.costs import Access, UnknownRateError, amplification, bandwidth, cache_held, seconds, transfers
from gnnrec.memtier.demands import HeldOut, Side
from gnnrec.memtier.layout import Layout
from gnnrec.memtier.overlap import hidden_share, streamed_seconds
from gnnrec.memtier.planner import PlanError, plan
from gnnrec.memtier.ring import FEWEST
from gnnrec.memtier.search import place
from gnnrec.memtier.staging import host_layout
from gnnrec.memtier.tiers import Rate, Tier
from gnnrec.memtier.workload import Workload
from gnnrec.ops._operator import Case
from gnnrec.ops.adam.reference import bytes_moved as adam_bytes
from gnnrec.ops.lightgcn_propagate.reference import bytes_moved as propagate_bytes
from gnnrec.ops.ngcf_layer.reference import bytes_moved as ngcf_bytes

MIB = 1 << 20
HELD_OUT, VALIDATED = HeldOut(0, 1000, 20), HeldOut(1000, 1000, 20)


def tier(name: str, speed: float, free: int | None = 1 << 40, kind: str = "dram", **options) -> Tier:
    """A tier whose patterns are as fast, but for gathers of 64 bytes, which get half of it."""
    rates = [Rate(pattern, speed, threads=2) for pattern in ("read", "write", "mixed")]
    rates += [Rate("gather", speed / (1 if row > 64 else 2), row, 2) for row in (64, 256)]
    given = {"granularity": 64, "rates": tuple(rates), "provenance": "measured"} | options
    return Tier(name, kind, free, free, **given)


DRAM, NODE = tier("dram", 30), tier("node1", 10, kind="numa")
DISK = tier("/disk", 2, kind="file", granularity=4096, direct=False, persistent=True, where="/disk", latency_ns=80_000)


DISK = replace(DISK, rates=tuple(rate for rate in DISK.rates if rate.pattern != "gather"))


GPU = tier("gpu0", 2000, kind="gpu", granularity=32)
GPU = replace(GPU, rates=(*GPU.rates, Rate("to_gpu", 50), Rate("from_gpu", 40)))


def sides(nodes: int, edges: int) -> tuple[Side, Side]:
    """Users and items with skewed degrees, about so many edges."""
    users = Side.of(np.full(nodes // 2, max(edges // (nodes // 2), 1)))
    degrees = np.full(nodes - nodes // 2, users.edges // (nodes - nodes // 2))
    degrees[0] += users.edges - degrees.sum()
    return users, Side.of(degrees)


def workload(nodes: int = 200_000, edges: int = 2_000_000, **options) -> Workload:
    users, items = sides(nodes, edges)
    given = {
        "model": LightGCNConfig(dim=64, layers=3),
        "loss": BPRConfig(),
        "optimizer": OptimizerConfig(),
        "trainer": TrainerConfig(epochs=1, batch_size=2048),
        "held_out": HELD_OUT,
        "threads": 2,
        "cache_bytes": 32 * MIB,
    }
    return Workload(users, items, **(given | options))


# Costs


def test_a_rate_that_was_measured_comes_back():
    rates = [Rate("gather", speed, row, 2) for row, speed in ((64, 9.7), (128, 18.8), (256, 33.7))]
    optane = replace(NODE, granularity=256, rates=tuple(rates))
    for rate in rates:
        access = Access("gather", 1e9, rate.row_bytes)
        assert bandwidth(optane, access, 2).gb_per_s == pytest.approx(rate.gb_per_s)
        assert seconds(optane, access, 2) == pytest.approx(1 / rate.gb_per_s)


def test_rows_narrower_than_a_line_cost_the_line():
    optane = replace(NODE, granularity=256, rates=(Rate("gather", 32, 256),))
    assert bandwidth(optane, Access("gather", 1, 64), 1).gb_per_s == pytest.approx(8)
    assert bandwidth(optane, Access("gather", 1, 384), 1).gb_per_s == pytest.approx(24)
    assert amplification(64, 256) == 4
    assert amplification(0, 4096) == 1


@given(st.integers(1, 4096), st.integers(0, 1 << 40))
def test_between_rates_lies_what_is_between_them(row_bytes, working_set):
    rates = [Rate("gather", 40 / k, row, 1, size) for k, size in enumerate((MIB, 32 * MIB, 0), 1) for row in (64, 1024)]
    lines = bandwidth(replace(DRAM, rates=tuple(rates)), Access("gather", 1, row_bytes, working_set), 1).gb_per_s
    lines *= amplification(row_bytes, 64)
    assert 40 / 3 - 1e-9 <= lines <= 40 + 1e-9
    if working_set == 0 or working_set >= 128 * MIB:
        assert lines == pytest.approx(40 / 3)  # far more than the caches hold
    elif working_set <= MIB:
        assert lines == pytest.approx(40)


def test_the_nearest_number_of_threads_counts():
    rates = tuple(Rate("read", speed, threads=threads) for threads, speed in ((1, 5.0), (4, 12.0), (16, 30.0)))
    found = [
        bandwidth(replace(DRAM, rates=rates), Access("read", 1), threads).gb_per_s for threads in (1, 2, 3, 12, 99)
    ]
    assert found == pytest.approx([5, 5, 12, 30, 30])
    serial = Access("read", 1, serial=True)
    assert bandwidth(replace(DRAM, rates=rates), serial, 16).gb_per_s == pytest.approx(5)


def test_what_follows_from_other_rates_says_so():
    ways = Rate("read", 6), Rate("write", 3, source="sheet")
    mixed = bandwidth(replace(DISK, rates=ways), Access("mixed", 1), 1)
    assert (mixed.gb_per_s, mixed.basis) == (pytest.approx(4), "measured, from read and write")
    assert mixed.sources == ("sheet",)
    paged = bandwidth(replace(DISK, rates=ways), Access("gather", 1, 256), 2)
    assert paged.gb_per_s == pytest.approx(2 * 4096 / 80_000 / 16)
    declared = bandwidth(replace(NODE, rates=ways, provenance="declared"), Access("gather", 1, 256), 2)
    assert (declared.gb_per_s, declared.basis) == (pytest.approx(6), "declared, as sequential: an upper bound")


@pytest.mark.parametrize(("of", "command"), [(NODE, "gnnrec calibrate"), (DISK, r"gnnrec calibrate folders=\[/disk\]")])
def test_an_unknown_rate_asks_for_calibration(of, command):
    unknown = replace(of, rates=(), latency_ns=None)
    with pytest.raises(UnknownRateError, match=f"{of.name}: has no rate of gather. Run {command} first"):
        seconds(unknown, Access("gather", 1, 64), 1)
    assert seconds(unknown, Access("gather", 0, 64), 1) == 0


# Workloads


@pytest.fixture(scope="module")
def graph() -> BipartiteGraph:
    generator = np.random.default_rng(0)
    return BipartiteGraph.from_edges(
        generator.integers(0, 300, 4000), generator.integers(0, 200, 4000) ** 2 // 200, 300, 200
    )


def moved(of: Workload) -> float:
    return sum(access.bytes for demand in of.resident() for access in demand.accesses)


def settings_of(of: Workload) -> dict:
    names = ("loss", "optimizer", "trainer", "held_out", "threads", "cache_bytes", "flops", "on_gpu")
    return {name: getattr(of, name) for name in names}


def test_layers_move_what_their_operators_say(graph):
    def of(kind, layers):
        return Workload.of(graph, model=kind(dim=48, layers=layers), **settings_of(workload(flops=1e11)))

    nodes, matrix = graph.num_nodes, graph.norm_adjacency()

    def propagated(layers):
        return propagate_bytes(Case("", {"x": (nodes, 48)}, {"matrix": matrix, "num_layers": layers}), 4)

    more = moved(of(LightGCNConfig, 4)) - moved(of(LightGCNConfig, 2))
    assert more == pytest.approx(2 * (propagated(4) - propagated(2)))
    tensors = {"x": (nodes, 48), "w1": (48, 48), "w2": (48, 48)}
    layer = ngcf_bytes(Case("", tensors, {"matrix": matrix}), 4)
    ngcf = moved(of(NGCFConfig, 3)) - moved(of(NGCFConfig, 2))
    assert ngcf > 3 * layer  # forward, once more in the backward pass, and back to the neighbours


def test_the_optimizer_moves_what_its_operator_says():
    of = workload()
    numbers = of.nodes * of.dim * 4
    state = {d.name: sum(a.bytes for a in d.accesses) for d in of.resident() if d.name.startswith("exp_avg")}
    rest = numbers + 2 * numbers  # the gradient is read, the parameter read and written
    assert sum(state.values()) + rest == adam_bytes(Case("", {"parameter": (of.nodes, of.dim)}, {}), 4)


def test_sides_know_what_the_most_popular_take():
    side = Side.of(np.array([1, 5, 1, 3, 0]))
    assert (side.nodes, side.edges) == (5, 10)
    assert [side.share(count) for count in (0, 1, 1.5, 2, 3, 5, 99)] == pytest.approx([0, 0.5, 0.65, 0.8, 0.9, 1, 1])


def test_popular_rows_are_found_in_the_cache():
    of = workload(nodes=2_000_000, edges=4_000_000)
    gathers = [a for d in of.resident() if d.name == "work" for a in d.accesses if a.pattern == "gather"]
    within = sum(a.bytes for a in gathers if a.working_set <= of.cache_bytes)
    assert 0 < within < sum(a.bytes for a in gathers)
    everything = workload(cache_bytes=1 << 40)
    gathers = [a for d in everything.resident() for a in d.accesses if a.pattern == "gather"]
    assert max(a.working_set for a in gathers) <= max(d.bytes for d in everything.resident())


def test_panels_read_the_graph_again_and_hold_less():
    of = workload()
    wide, narrow = forms.streamed(of, 64), forms.streamed(of, 16)
    assert (wide.panels, narrow.panels) == (1, 4)
    assert narrow.panel_bytes * 4 == wide.panel_bytes == 3 * of.nodes * 64 * 4
    by_name = [{d.name: d for d in streamed.demands} for streamed in (wide, narrow)]
    assert by_name[1]["panels"].bytes * 4 == by_name[0]["panels"].bytes == 3 * of.nodes * 64 * 4
    graphs = [sum(a.bytes for a in names["graph"].accesses) for names in by_name]
    assert graphs[1] == pytest.approx(4 * graphs[0])
    assert sum(a.bytes for d in narrow.files for a in d.accesses) == 6 * of.nodes * 64 * 4
    assert workload(model=LightGCNConfig(dim=40)).panel_widths == [48, 16]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_ngcf_in_files_holds_a_panel_and_moves_what_its_passes_do(layers):
    of = workload(model=NGCFConfig(dim=64, layers=layers), flops=1e11, held_out=VALIDATED)
    numbers = of.nodes * 64 * 4
    for panel in (16, 64):
        form = forms.streamed(of, panel)
        held, filed = ({demand.name: demand for demand in side} for side in (form.demands, form.files))
        assert held["panels"].bytes == of.nodes * panel * 4
        assert held["norms"].bytes == (layers - 1) * of.nodes * 4
        assert sum(a.bytes for d in form.files for a in d.accesses) == (14 * layers - 7) * numbers
        assert sum(a.bytes for one in form.passes for a in one.transfer) == (14 * layers - 7) * numbers
        assert sum(a.bytes for a in form.update) == (14 * layers - 7) * numbers
        in_passes = sum(a.bytes for one in form.passes for a in one.compute)
        sampled = sum(a.bytes for a in held["interactions"].accesses)
        everything = sum(a.bytes for d in form.demands for a in d.accesses) + sum(a.bytes for a in form.update)
        assert in_passes + sampled == pytest.approx(everything)
        times = {"embedding": 1, "exp_avg": 1, "exp_avg_sq": 1, "final": layers + 1, "best": 1}
        times |= {"aggregates": max(layers - 1, 1)}
        times |= {"layers": layers - 1, "gradient": 1} if layers > 1 else {}
        assert {name: d.bytes / numbers for name, d in filed.items()} == times
        # The last layer is made for the batch alone.
        assert sum(one.flops for one in form.passes) < 12 * 64**2 * of.nodes * layers


def test_ngcf_fits_where_its_state_is_many_times_the_limit():
    of = workload(600_000, 4_000_000, model=NGCFConfig(dim=64, layers=3), flops=1e11)
    resident, limit = sum(demand.bytes for demand in of.resident()), 400 << 20
    assert resident > 6 * limit
    found = plan(of, [DRAM, DISK], MemoryConfig("auto", limit=f"{limit}"))
    assert found.mode == "stream"
    assert found.tier_bytes()["dram"] <= limit
    assert found.place("layers").tier == found.place("embedding").tier == "/disk"
    # No shorter than what takes longest, no longer than one after the other.
    assert max(found.resources.values()) * 0.999 < found.step_seconds <= sum(found.resources.values())
    more = plan(of, [DRAM, DISK], MemoryConfig("stream", panel=found.panel))
    assert more.buffer_bytes > found.buffer_bytes
    assert more.step_seconds < found.step_seconds
    with pytest.raises(PlanError, match="no placement fits: dram needs"):
        plan(of, [DRAM, DISK], MemoryConfig("auto", limit="50MiB"))


@pytest.mark.parametrize(
    "options",
    [
        {"trainer": TrainerConfig(epochs=1, batch_size=64, storage="bfloat16")},
        {"optimizer": OptimizerConfig(state_dtype="bfloat16")},
        {"on_gpu": True, "optimizer": OptimizerConfig(state_dtype="bfloat16")},
        {"on_gpu": True, "optimizer": OptimizerConfig(clip=1.0)},
        {"on_gpu": True, "model": LightGCNConfig(dim=40)},
    ],
)
def test_what_cannot_be_streamed(options):
    of = workload(**options)
    tiers = [DRAM, DISK] if not of.on_gpu else [GPU, DRAM, DISK]
    with pytest.raises(ConfigError, match="memory=stream: streams float32 "):
        plan(of, tiers, MemoryConfig("stream"))
    found = plan(of, tiers, MemoryConfig("auto"))
    assert found.mode == "dram"
    assert len({placement.tier for placement in found.placements}) == 1


def test_a_gpu_is_streamed_to_once_its_memory_does_not_do():
    of = workload(on_gpu=True, held_out=VALIDATED)
    whole = sum(demand.bytes for demand in of.resident())
    assert plan(of, [GPU, DRAM, DISK], MemoryConfig("auto")).mode == "dram"
    for memory, free in (
        (MemoryConfig("auto", limit=str(whole // 2)), 1 << 40),
        (MemoryConfig("stream"), 1 << 40),
        (MemoryConfig("auto"), whole // 2),
    ):
        found = plan(of, [replace(GPU, free=free), DRAM, DISK], memory)
        assert found.mode == "stream"
        assert found.tier_bytes()["gpu0"] <= min(free, memory.limit_bytes or free)
        elsewhere = {placement.name for placement in found.placements if placement.tier == "dram"}
        assert elsewhere == {"embedding", "exp_avg", "exp_avg_sq", "final", "best"}
        numbers = of.nodes * of.dim * 4
        # The link takes both ways at a time; it reads at 50 GB/s and writes at 40.
        assert found.resources["dram (stream)"] == pytest.approx(3 * numbers / 40e9)
        assert {(speed.tier, speed.pattern) for speed in found.speeds} >= {("gpu0", "to_gpu"), ("gpu0", "from_gpu")}
        assert {speed.tier for speed in found.speeds} == {"gpu0"}
        layout = host_layout(of.nodes, of.dim, found.panel)
        assert found.buffer_bytes % (3 * layout.block_bytes) == 0
        assert found.buffer_bytes >= FEWEST * 3 * layout.block_bytes
    files = plan(of, [GPU, DRAM, DISK], MemoryConfig("stream", folder="/disk"))
    assert files.place("embedding").tier == "/disk"
    assert files.resources["/disk (stream)"] == pytest.approx(6 * numbers / 2e9)  # the link is far from busy
    unmeasured = plan(of, [GPU, replace(DRAM, rates=())], MemoryConfig("stream"))
    assert unmeasured.step_seconds > 0


def test_what_a_gpu_cannot_do():
    of = workload(on_gpu=True)
    with pytest.raises(ConfigError, match="memory=direct: has tensors where a GPU's kernels do not reach them"):
        plan(of, [GPU, DRAM, DISK], MemoryConfig("direct"))
    with pytest.raises(ConfigError, match=r"memory\.simulate: has no effect on DRAM"):
        plan(of, [GPU, DRAM], MemoryConfig("stream", simulate=SimulateConfig(1.0, 1.0)))
    with pytest.raises(PlanError, match=r"no placement fits: gpu0 needs .* and has 20.00 MiB.*memory.limit="):
        plan(of, [GPU, DRAM], MemoryConfig("stream", limit="20MiB"))
    with pytest.raises(PlanError, match=r"dram needs .* and has 1.00 MiB"):
        plan(of, [GPU, replace(DRAM, free=MIB)], MemoryConfig("stream"))
    with pytest.raises(UnknownRateError, match="gpu0: has no rate of"):
        plan(of, [replace(GPU, rates=()), DRAM], MemoryConfig("stream"))


@pytest.mark.parametrize(
    "options",
    [
        {"model": NGCFConfig(dim=40)},
        {"model": NGCFConfig(), "loss": SoftmaxConfig()},
        {"model": LightGCNConfig(init="spectral")},
        {"model": LightGCNConfig(dim=40)},
        {"loss": SoftmaxConfig()},
        {"optimizer": OptimizerConfig(clip=1.0)},
    ],
)
def test_where_there_are_no_panels_the_state_is_streamed(options):
    of = workload(flops=1e11, **options)
    found = plan(of, [DRAM, DISK], MemoryConfig("stream"))
    streamed = {placement.name for placement in found.placements if placement.mode == "stream"}
    assert (found.mode, streamed) == ("stream", {"exp_avg", "exp_avg_sq"})
    assert found.resources["/disk (stream)"] == pytest.approx(4 * of.nodes * of.dim * 4 / 2e9)
    with pytest.raises(ConfigError, match=r"memory.panel: has no effect with model="):
        plan(of, [DRAM, DISK], MemoryConfig("stream", panel=16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": OptimizerConfig("lamb")}, "optimizer: is 'lamb', whose traffic the planner does not know"),
        ({"model": LightGCNConfig(layer_weights="learned")}, "model.layer_weights: is 'learned'"),
    ],
)
def test_what_is_not_known(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        workload(**options)


def test_dense_products_need_a_speed():
    of = workload(model=NGCFConfig(layers=2))
    with pytest.raises(ConfigError, match="dense products, whose speed on that hardware is not known"):
        plan(of, [DRAM], MemoryConfig())
    found = plan(replace(of, flops=1e9), [DRAM], MemoryConfig())
    assert found.resources["dense products"] == pytest.approx(12 * of.nodes * 64**2 * 2 / 1e9)
    assert found.binding == "dense products"


# The search


def brute_force(sizes, costs, room) -> float:
    best = inf
    for tiers in itertools.product(*costs):
        used = dict.fromkeys(room, 0)
        for size, name in zip(sizes, tiers):
            used[name] += size
        if all(used[name] <= room[name] for name in room):
            best = min(best, sum(cost[name] for cost, name in zip(costs, tiers)))
    return best


def test_placements_equal_brute_force():
    generator = np.random.default_rng(0)
    feasible = 0
    for _ in range(3000):
        tensors, names = int(generator.integers(1, 7)), ["abc"[k] for k in range(generator.integers(1, 4))]
        sizes = generator.integers(0, 20, tensors).tolist()
        room = {name: float(generator.choice([generator.integers(0, 50), inf], p=[0.8, 0.2])) for name in names}
        costs = []
        for _ in range(tensors):
            some = generator.permutation(names)[: generator.integers(1, len(names) + 1)]
            costs.append({str(name): float(generator.choice([0, generator.random()])) for name in some})
        found, expected = place(sizes, costs, room), brute_force(sizes, costs, room)
        if found is None:
            assert expected == inf
            continue
        feasible += 1
        tiers, total = found
        assert total == pytest.approx(expected)
        assert sum(cost[name] for cost, name in zip(costs, tiers)) == pytest.approx(expected)
    assert 1000 < feasible < 3000


def test_twenty_tensors_and_five_tiers():
    generator = np.random.default_rng(1)
    for _ in range(5):
        sizes = generator.integers(1, 1 << 33, 20).tolist()
        speeds = dict(zip("abcde", (1, 2, 3, 5, 8)))
        costs = [{name: size * speed * generator.uniform(0.5, 2) for name, speed in speeds.items()} for size in sizes]
        room = dict.fromkeys("abcde", sum(sizes) // 4)
        found = place(sizes, costs, room)
        assert found is not None
        used = {name: sum(size for size, chosen in zip(sizes, found[0]) if chosen == name) for name in room}
        assert all(used[name] <= room[name] for name in room)
        # No exchange of two tensors, and no move of one, is better.
        for i, j in itertools.combinations_with_replacement(range(20), 2):
            for a, b in itertools.product("abcde", repeat=2):
                tiers = list(found[0])
                tiers[i], tiers[j] = a, b
                load = {name: sum(size for size, chosen in zip(sizes, tiers) if chosen == name) for name in room}
                if all(load[name] <= room[name] for name in room):
                    assert sum(cost[name] for cost, name in zip(costs, tiers)) >= found[1] * (1 - 1e-9)


def every_resident(of: Workload, tiers: list[Tier], limit: float) -> float:
    """The shortest step of all placements, in the plainest way."""
    demands = of.resident()
    options = [[t for t in tiers if t.direct or t == tiers[0]] if d.movable else tiers[:1] for d in demands]
    costs = [
        {t.name: sum(seconds(t, a, of.threads) for a in d.accesses) for t in some} for d, some in zip(demands, options)
    ]
    held = sum(d.bytes for d in demands if d.held)
    room = {t.name: min(limit, t.free + held) if t == tiers[0] else t.free for t in tiers}
    return brute_force([d.bytes for d in demands], costs, room) + of.sampling_seconds


def every_streamed(of: Workload, tiers: list[Tier], limit: float, graph: bool = False) -> float:
    """The shortest step of all forms with files, with the graph or without it, of all sizes of the ring."""
    best = inf
    home, files = tiers[0], [t for t in tiers if t.kind == "file"]
    every = [forms.streamed(of, width) for width in of.panel_widths]
    every = [forms.with_graph_in_file(of, form) for form in every] if graph else [*every, forms.state(of)]
    for form, on in itertools.product(every, files):
        layout = Layout.of(of.nodes, form.panel * form.panels, form.panel, on.granularity)
        streamed = [d for d in form.files if d.name not in ("best", "final", "graph")]
        held = sum(d.bytes for d in form.demands if d.held)
        ranking = sum(d.bytes for d in form.demands if d.name == "ranking")  # it takes the place of the ring
        buffers = sum(d.name not in ("final", "graph") for d in form.files) * layout.block_bytes
        room = min(limit, home.free + held) - sum(d.bytes for d in form.demands) + ranking - buffers
        if ranking > room:
            continue
        if sum(d.bytes for d in form.files) > on.free:
            continue
        compute = sum(seconds(home, a, of.threads) for d in form.demands for a in d.accesses) + of.sampling_seconds
        passing = sum(a.bytes for d in form.files for a in d.accesses)
        compute += sum(passing / (rate.gb_per_s * 1e9) for rate in on.rates if rate.pattern == "toll")
        update = sum(seconds(home, a, of.threads) for a in form.update)
        beside = sum(seconds(home, a, of.threads) for a in form.beside)
        transfer = sum(a.bytes for d in streamed for a in d.accesses) / (transfers(on).gb_per_s * 1e9)
        # Of the graph, a layer's bytes for every panel; one layer of all goes on beside the optimizer.
        layer = graph * form.panels * of.entries * 4 / (transfers(on).read_gb_per_s * 1e9)
        reads = (max(2 * of.layers - 1, 0) * layer, min(of.layers, 1) * layer)
        blocks = layout.panels * layout.blocks
        for count in range(min(FEWEST, blocks), blocks + 1):
            ring = count * len(streamed) * layout.block_bytes
            if ring <= room:
                hidden = hidden_share(ring, form.panel_bytes, 2, 2)
                best = min(best, streamed_seconds(compute - beside, update + beside, transfer, hidden, reads))
    return best


def test_transfers_are_as_the_device_likes():
    def of(**rates: dict[int, float]) -> Tier:
        found = tuple(Rate(way, rate, threads=n) for way, some in rates.items() for n, rate in some.items())
        return Tier("/slow", "file", None, None, 4096, rates=found, provenance="measured")

    # As many as it takes and no more: this device, as Optane, is slower with many writers.
    found = transfers(of(read={1: 2.0, 2: 3.9, 4: 4.0, 8: 4.0}, write={1: 2.0, 2: 1.5, 4: 1.0}))
    assert (found.readers, found.writers, found.phased) == (2, 1, False)
    assert found.gb_per_s == pytest.approx(2 / (1 / 3.9 + 1 / 2.0))  # nobody measured both ways at once
    slow = transfers(of(read={1: 4.0}, write={1: 4.0}, mixed={2: 2.0}))
    assert slow.phased
    assert slow.gb_per_s == pytest.approx(4.0)
    fast = transfers(of(read={1: 4.0}, write={1: 4.0}, mixed={2: 6.0}))
    assert not fast.phased
    assert fast.gb_per_s == pytest.approx(6.0)
    with pytest.raises(UnknownRateError, match="has no rate"):
        transfers(of())


@pytest.mark.parametrize("model", [LightGCNConfig(dim=64, layers=2), NGCFConfig(dim=64, layers=2)])
def test_kernels_lose_what_transfers_beside_them_cost(model):
    of, memory = workload(model=model, flops=1e11), MemoryConfig("stream", panel=16)
    free, dear = (
        plan(of, [DRAM, replace(DISK, rates=(*DISK.rates, *toll))], memory) for toll in ((), (Rate("toll", 1.0),))
    )
    moved = sum(place.moved for place in dear.placements if place.tier == "/disk")
    assert dear.resources["processors, for transfers"] == pytest.approx(moved / 1e9)
    assert "processors, for transfers" not in free.resources
    assert free.step_seconds < dear.step_seconds <= free.step_seconds + moved / 1e9 * (1 + 1e-9)


def test_plans_equal_brute_force():
    generator = np.random.default_rng(2)
    modes = []
    for _ in range(300):
        of = workload(
            int(generator.integers(20_000, 200_000)),
            int(generator.integers(200_000, 2_000_000)),
            model=LightGCNConfig(dim=int(generator.choice([16, 32, 64])), layers=int(generator.integers(0, 4))),
            trainer=TrainerConfig(epochs=1, batch_size=int(generator.choice([64, 2048]))),
            held_out=VALIDATED if generator.integers(2) else HELD_OUT,
        )
        total = sum(demand.bytes for demand in of.resident())
        free = [int(total * generator.uniform(0.1, 1.3)) for _ in range(3)]
        tiers = [tier("dram", 30, free[0]), tier("node1", generator.uniform(1, 30), free[1] // 4, kind="numa")]
        toll = [Rate("toll", generator.uniform(1, 20))] if generator.integers(2) else []
        tiers.append(replace(DISK, free=free[2], rates=(*tier("", generator.uniform(0.5, 9)).rates, *toll)))
        limit = inf if generator.random() < 0.5 else int(total * generator.uniform(0.2, 1))
        memory = MemoryConfig("auto", limit=None if limit == inf else str(limit))
        resident = every_resident(of, tiers, limit)
        expected = min(resident, every_streamed(of, tiers, limit))
        last = expected == inf  # only then the graph is read from files
        if last:
            expected = every_streamed(of, tiers, limit, graph=True)
        if expected == inf:
            with pytest.raises(PlanError):
                plan(of, tiers, memory)
            continue
        found = plan(of, tiers, memory)
        modes.append("graph" if last else found.mode)
        assert (found.place("graph").mode == "stream") == last
        assert found.step_seconds == pytest.approx(resident if found.mode == "dram" else expected)
        used = found.tier_bytes()
        assert used["dram"] <= limit
        for one in tiers[1:]:
            assert used.get(one.name, 0) <= one.free
    assert set(modes) == {"dram", "direct", "stream", "graph"}


def test_the_graph_is_read_from_a_file_once_nothing_else_fits():
    of = workload(200_000, 16_000_000)
    held = plan(of, [DRAM, DISK], MemoryConfig("stream", panel=16))
    assert held.place("graph").mode == "direct"
    least = sum(d.bytes for d in forms.streamed(of, 16).demands)
    found = plan(of, [DRAM, DISK], MemoryConfig("auto", limit=str(least)))
    graph = found.place("graph")
    assert (found.mode, graph.tier, graph.mode, graph.bytes) == ("stream", "/disk", "stream", 4 * of.entries)
    # Every layer reads all columns for every panel, forward and backward.
    assert graph.moved == 2 * 3 * (64 // found.panel) * 4 * of.entries
    assert graph.seconds == pytest.approx(graph.moved / 2e9)
    assert found.tier_bytes()["dram"] <= least
    fast = replace(DISK, rates=(*DISK.rates, Rate("read", 4, threads=4), Rate("read", 16, threads=16)))
    pinned = MemoryConfig("stream", panel=16, pin={"graph": "/disk"})
    buffers = [plan(of, [DRAM, on], pinned).place("graph_buffers").bytes for on in (DISK, fast)]
    assert buffers[1] * (max(FEWEST, 2 + 2) + 5) == buffers[0] * (2 + 16 + 5)  # one for every reader, and two
    numbers = of.nodes * 64 * 4
    assert found.resources["/disk (stream)"] == pytest.approx((graph.moved + 6 * numbers) / 2e9)
    assert max(found.resources.values()) * 0.999 < found.step_seconds <= sum(found.resources.values())
    assert next(row for row in found.rows() if row["tensor"] == "graph")["mode"] == "stream"
    # Wide panels read it less often.
    wide, narrow = (plan(of, [DRAM, DISK], MemoryConfig("stream", panel=p, pin={"graph": "/disk"})) for p in (64, 16))
    assert wide.place("graph").moved * 4 == narrow.place("graph").moved
    assert wide.step_seconds < narrow.step_seconds
    assert wide.place("pointers").bytes == 12 * of.nodes + 8
    assert plan(of, [DRAM, DISK], MemoryConfig("auto", pin={"graph": "/disk", "exp_avg": "/disk"})).step_seconds > 0
    factors = replace(of, model=LightGCNConfig(dim=64, layers=0))
    assert plan(factors, [DRAM, DISK], MemoryConfig("stream", pin={"graph": "/disk"})).place("graph").moved == 0


def test_rates_are_asked_for_where_tensors_may_lie_alone():
    """Another folder's are not missed; what can never fit is said before anything is to be calibrated."""
    of, unknown = workload(200_000, 16_000_000), replace(DISK, name="/other", rates=())
    pins = {name: DISK.name for name in ("embedding", "exp_avg", "exp_avg_sq")}
    assert plan(of, [DRAM, DISK, unknown], MemoryConfig("stream", pin=pins)).mode == "stream"
    with pytest.raises(PlanError, match="too little"):
        plan(of, [DRAM, unknown], MemoryConfig("stream", limit="1MiB"))
    with pytest.raises(UnknownRateError, match=r"gnnrec calibrate"):
        plan(of, [DRAM, unknown], MemoryConfig("stream"))


def test_ngcf_reads_its_graph_from_a_file_in_every_pass_that_gathers():
    of = workload(200_000, 8_000_000, model=NGCFConfig(dim=64, layers=3), flops=1e11)
    for panel in (16, 64):
        without, form = forms.streamed(of, panel), forms.with_graph_in_file(of, forms.streamed(of, panel))
        every = 2 * 3 * form.panels * 4 * of.entries
        moved = [sum(a.bytes for one in each.passes for a in one.transfer) for each in (without, form)]
        assert moved[1] - moved[0] == every == sum(form.graph_reads)
        computed = [sum(a.bytes for one in each.passes for a in one.compute) for each in (without, form)]
        assert computed[1] - computed[0] == pytest.approx(20 * form.panels * of.batch_rows()[1])  # rows of the batch
        found = plan(of, [DRAM, DISK], MemoryConfig("stream", panel=panel, pin={"graph": "/disk"}))
        assert found.place("graph").moved == every
        kept = plan(of, [DRAM, DISK], MemoryConfig("stream", panel=panel))
        assert kept.step_seconds <= found.step_seconds
        assert found.tier_bytes()["dram"] - found.buffer_bytes < kept.tier_bytes()["dram"] - kept.buffer_bytes


@pytest.mark.parametrize("pin", [{"graph": "/disk", "embedding": "dram"}, {"graph": "dram", "exp_avg": "dram"}])
def test_pins_of_a_graph_that_agree_with_no_form(pin):
    with pytest.raises(ConfigError, match=r"memory=stream: streams into /disk, against memory\.pin\.graph=.*Pin"):
        plan(workload(), [DRAM, DISK], MemoryConfig("stream", pin=pin))


def test_the_state_leaves_first_and_what_is_gathered_stays():
    of = workload(nodes=1_000_000, edges=20_000_000)
    whole = sum(demand.bytes for demand in of.resident())
    numbers = of.nodes * of.dim * 4
    moved_out = []
    for out in (1, 2, 3):
        found = plan(of, [DRAM, NODE], MemoryConfig("auto", limit=str(whole - out * numbers + MIB)))
        moved_out.append({placement.name for placement in found.placements if placement.tier == "node1"})
    assert moved_out[0] < moved_out[1] == {"exp_avg", "exp_avg_sq"}
    assert moved_out[2] == {"exp_avg", "exp_avg_sq", "embedding"}  # before the graph, which is small and read often


def test_rankings_take_the_place_of_the_buffers_and_count_beyond_them():
    of = workload(held_out=HeldOut(10_000_000, 10_000_000, 20))
    form = forms.with_graph_in_file(of, forms.streamed(of, 16))
    sizes = {demand.name: demand.bytes for demand in form.demands}
    assert sizes["ranking"] > 4 * 20_000_000
    buffers = 4 * Layout.of(of.nodes, 64, 16, 4096).block_bytes  # of embedding, moments, and the best one
    always = sum(sizes.values()) - sizes["ranking"] + buffers
    found = plan(of, [DRAM, DISK], MemoryConfig("stream", limit=str(always + sizes["ranking"])))
    assert found.place("ranking").bytes + found.buffer_bytes == sizes["ranking"]
    assert found.place("file_buffers").bytes == buffers
    with pytest.raises(PlanError, match=r"dram needs .* 1 bytes? too little"):
        plan(of, [DRAM, DISK], MemoryConfig("stream", limit=str(always + sizes["ranking"] - 1)))


def test_a_plan_adds_up():
    of = workload()
    found = plan(of, [DRAM, DISK], MemoryConfig("stream"))
    content = json.loads(json.dumps(found.to_dict()))
    assert (content["mode"], content["panel_columns"]) == ("stream", found.panel)
    assert found.place("exp_avg").mode == "stream"
    assert found.place("exp_avg").tier == "/disk"
    assert found.place("buffers").bytes == found.buffer_bytes
    assert found.resources["/disk (stream)"] == pytest.approx(6 * of.nodes * 64 * 4 / 2e9)
    assert found.step_seconds >= max(found.resources.values())
    assert found.step_seconds <= sum(found.resources.values())
    assert found.epoch_seconds == found.step_seconds * of.steps_per_epoch
    assert found.binding == max(found.resources, key=found.resources.get)
    assert sum(found.tier_bytes().values()) == sum(placement.bytes for placement in found.placements)
    assert {row["tensor"] for row in found.rows()} == {placement.name for placement in found.placements}


@settings(max_examples=200)
@given(st.integers(1, 1000), st.floats(0.1, 10), st.floats(0.1, 10), st.floats(0, 5), st.floats(0, 5), st.floats(0, 5))
def test_a_larger_ring_hides_no_less(ring, read, write, compute, update, transfer):
    shares = [hidden_share(size, 1000, read, write) for size in (ring, ring + 1, 1000)]
    assert 0 <= shares[0] <= shares[1] + 1e-12
    assert shares[2] == 1
    steps = [streamed_seconds(compute, update, transfer, share) for share in shares]
    assert steps[0] >= steps[1] - 1e-9
    assert steps[2] == pytest.approx(max(compute + update, transfer))
    assert streamed_seconds(compute, update, transfer, 0) == pytest.approx(compute + max(update, transfer))


def test_a_cache_holds_what_rows_are_gathered_from_fast():
    sets = {2 * MIB: 90.0, 8 * MIB: 60.0, 32 * MIB: 15.0, 0: 10.0}
    rates = [Rate("gather", rate, 64, 2, held) for held, rate in sets.items()]
    rates += [Rate("gather", 100.0, 256, 2, 32 * MIB), Rate("gather", 40.0, 64, 1, 32 * MIB)]
    assert cache_held([DISK, replace(DRAM, rates=tuple(rates))], 64 * MIB) == 8 * MIB
    assert cache_held([replace(DRAM, rates=tuple(rates))], 4 * MIB) == 4 * MIB
    assert cache_held([DISK], 64 * MIB) == 64 * MIB  # nothing was measured


# What the configuration demands


def test_modes():
    of = workload()
    assert plan(of, [DRAM, NODE, DISK], MemoryConfig("auto")).mode == "dram"
    direct = plan(of, [DRAM, NODE, DISK], MemoryConfig("direct"))
    assert direct.mode == "direct"
    assert {placement.tier for placement in direct.placements if placement.name in choices.DIRECT} == {"node1"}
    in_cache = plan(of, [DRAM, NODE, DISK], MemoryConfig("direct", folder="/disk"))
    assert in_cache.place("embedding").tier == "/disk"
    assert in_cache.step_seconds == pytest.approx(plan(of, [DRAM, DISK], MemoryConfig("auto")).step_seconds)
    full = replace(DRAM, free=sum(demand.bytes for demand in of.resident() if not demand.movable))
    on_disk = plan(of, [full, NODE, DISK], MemoryConfig("direct", folder="/disk"))
    assert on_disk.step_seconds > 10 * direct.step_seconds  # gathers that the page cache has no room for
    narrow = plan(of, [DRAM, NODE, DISK], MemoryConfig("stream", panel=16, buffer="64MiB"))
    assert (narrow.mode, narrow.panel) == ("stream", 16)
    assert 48 * MIB <= narrow.buffer_bytes <= 64 * MIB


def test_pins():
    of = workload()
    found = plan(
        of, [DRAM, NODE, DISK], MemoryConfig("auto", pin={"embedding": "dram", "exp_avg": "/disk", "graph": "node1"})
    )
    elsewhere = {placement.name: placement.tier for placement in found.placements if placement.tier != "dram"}
    assert elsewhere == {"exp_avg": "/disk", "graph": "node1"}


@pytest.mark.parametrize(
    ("pin", "message"),
    [
        ({"exp_av": "node1"}, "memory.pin.exp_av: there is no such tensor. Did you mean exp_avg"),
        (
            {"exp_avg": "node2"},
            "memory.pin.exp_avg: is 'node2', which is no tier that can be used here. Did you mean node1",
        ),
        ({"exp_avg": "pmem0"}, "which is no tier that can be used here (not mounted with dax)"),
        ({"work": "node1"}, "memory.pin.work: is 'node1', but this tensor is always in dram"),
    ],
)
def test_pins_that_cannot_be(pin, message):
    broken = tier("pmem0", 1, kind="pmem", unavailable="not mounted with dax")
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan(workload(), [DRAM, NODE, broken], MemoryConfig("auto", pin=pin))


@pytest.mark.parametrize(
    ("tiers", "memory", "message"),
    [
        ([DISK], MemoryConfig(), "there is no usable tier of kind dram"),
        ([DRAM], MemoryConfig("stream"), "there is no tier beside the one that computes"),
        ([DRAM, DISK], MemoryConfig("stream", panel=48), "memory.panel: is 48. It must be one of 64, 32, 16"),
    ],
)
def test_what_cannot_be_planned(tiers, memory, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan(workload(), tiers, memory)


def test_no_plan_names_the_shortfall_and_remedies_that_work():
    of = workload()
    with pytest.raises(PlanError, match=r"no placement fits: dram needs .* and has 110.00 MiB, .* too little") as error:
        plan(of, [DRAM, DISK], MemoryConfig("auto", limit="110MiB"))
    remedies = str(error.value).partition("In this order: ")[2].split(", or ")
    assert [remedy.partition("=")[0] for remedy in remedies[:2]] == ["memory.limit", "model.dim"]
    limit, dim = (remedy.partition("=")[2] for remedy in remedies[:2])
    assert plan(of, [DRAM, DISK], MemoryConfig("auto", limit=limit)).mode == "stream"
    assert plan(of.with_dim(int(dim)), [DRAM, DISK], MemoryConfig("auto", limit="110MiB")).step_seconds > 0


def test_remedies_before_a_smaller_model():
    of = workload()
    small = replace(DRAM, free=140 * MIB)
    with pytest.raises(PlanError, match=r"memory=dram: .*In this order: memory=auto, or memory=stream, or model.dim="):
        plan(of, [small, DISK], MemoryConfig("dram"))
    with pytest.raises(PlanError, match=r"/disk needs .* and has 1.00 MiB"):
        plan(of, [small, replace(DISK, free=MIB)], MemoryConfig("stream"))
    uncalibrated = replace(DISK, rates=())
    with pytest.raises(PlanError, match=r"In this order: gnnrec calibrate folders=\[/disk\], or"):
        plan(of, [small, uncalibrated], MemoryConfig("auto"))
    with pytest.raises(UnknownRateError, match=r"/disk: has no rate of read"):
        plan(of, [small, uncalibrated], MemoryConfig("stream"))
    with pytest.raises(PlanError, match=r"leave out memory.buffer"):
        plan(of, [small, DISK], MemoryConfig("stream", buffer="1GiB", panel=16))


def offered(of: Workload, tiers: list[Tier], memory: MemoryConfig) -> list[str]:
    """The remedies, but for more room."""
    with pytest.raises(PlanError) as error:
        plan(of, tiers, memory)
    found = str(error.value).partition("In this order: ")[2].split(", or ")
    return [remedy for remedy in found if " more in " not in remedy]


def test_remedies_beside_an_own_tier_work(monkeypatch):
    path = "my_package.tiers:Striped"
    monkeypatch.setattr(extensions, "_allowed", {"my_package"})
    own, memory = tier(path, 2, 10 * MIB, kind="custom"), MemoryConfig("stream", folder="/disk")
    memory = replace(memory, custom=CustomTierConfig(path))
    node, large = replace(NODE, free=4 << 30), workload(1_000_000)
    # memory=direct, which would fit, does not go with it.
    dram = replace(DRAM, free=1100 * MIB)
    assert offered(large, [dram, node, DISK, own], memory) == ["leave out memory.custom", "memory=auto"]
    # Nobody has measured the folder: it would be, were there no other tier; but not for what is mapped.
    unknown = replace(DISK, rates=())
    assert offered(large, [dram, unknown, own], memory) == ["leave out memory.custom"]
    alone = replace(memory, name="auto", limit="200MiB")
    assert not [remedy for remedy in offered(large, [dram, unknown, own], alone) if "calibrate" in remedy]
    assert "gnnrec calibrate" in offered(large, [dram, replace(node, rates=()), unknown, own], alone)
    # Nor does memory=direct go with a simulated device.
    slow = MemoryConfig("stream", simulate=SimulateConfig(1.0, 1.0))
    assert "memory=direct" in offered(
        large, [dram, node, replace(DISK, free=MIB)], replace(slow, simulate=SimulateConfig())
    )
    assert "memory=direct" not in offered(large, [dram, node, replace(DISK, free=MIB)], slow)


def test_a_tier_may_be_too_fast_to_be_timed():
    path = "my_package.tiers:Striped"
    own = tier(path, 1e308, kind="custom", direct=False)
    memory = MemoryConfig("stream", folder="/disk", custom=CustomTierConfig(path))
    assert plan(workload(), [DRAM, DISK, own], memory).place("embedding").tier == path


def test_what_is_held_already_counts_against_the_limit_alone():
    of = workload()
    demands = of.resident()
    held = sum(demand.bytes for demand in demands if demand.held)
    beside = sum(demand.bytes for demand in demands) - held
    assert held > 0
    assert plan(of, [replace(DRAM, free=beside)], MemoryConfig()).mode == "dram"
    with pytest.raises(PlanError):
        plan(of, [replace(DRAM, free=beside - 1)], MemoryConfig())
    with pytest.raises(PlanError):
        plan(of, [DRAM, DISK], MemoryConfig("direct", limit=str(beside // 8)))


def test_a_simulated_device_is_stamped_and_no_faster_than_the_real_one():
    slow = simulated(DISK, 0.5, 100)
    assert slow.provenance == "simulated"
    assert [(rate.pattern, rate.gb_per_s) for rate in slow.rates] == [("read", 0.5), ("write", 2)]
    found = plan(workload(), [DRAM, DISK], MemoryConfig("stream", simulate=SimulateConfig(0.5, 0.5)))
    assert {speed.basis for speed in found.speeds if speed.tier == "/disk"} == {"simulated, from read and write"}


# The command


def composed(*overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values = OmegaConf.to_container(compose("plan", overrides=list(overrides)), resolve=True)
    assert isinstance(values, dict)
    return values


SMALL = [f"data.synthetic.num_{name}" for name in ("users=300", "items=200", "interactions=3000")]
PRESETS = sorted(file.stem for file in (CONF / "hardware").glob("*.yaml"))


@pytest.mark.parametrize("mode", ["auto", "stream"])
@pytest.mark.parametrize("hardware", ["a100", "h100", "h200"])
def test_what_if_there_were_a_gpu(hardware, mode, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    app(composed(f"hardware={hardware}", f"memory={mode}", "loss=bpr", "out=plan.json", *SMALL), tmp_path, "")
    assert "declared" in capsys.readouterr().out
    content = json.loads((tmp_path / "plan.json").read_text())
    assert (content["hardware"], content["mode"]) == (hardware, "dram" if mode == "auto" else "stream")
    assert all(rate["sources"] for rate in content["rates"])


@pytest.mark.parametrize("hardware", [name for name in PRESETS if name.startswith(("optane", "cxl"))])
def test_what_if(hardware, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    app(
        composed(f"hardware={hardware}", "out=plan.json", *SMALL),
        tmp_path,
        "",
    )
    shown = capsys.readouterr().out
    for words in ("declared", "predicted step:", "predicted epoch:", "binding resource:", "GB per step", "share"):
        assert words in shown
    content = json.loads((tmp_path / "plan.json").read_text())
    assert (content["hardware"], content["mode"]) == (hardware, "dram")
    assert all(rate["sources"] for rate in content["rates"])


def test_without_calibration_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownRateError, match=r"has no rate of .*Run gnnrec calibrate first"):
        app(composed("device=cpu", *SMALL), tmp_path, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["out=plan.txt"], "out: is 'plan.txt'. Give a name that ends in .json"),
        (["model=gfcf", "memory=dram", "~loss", "~optimizer", "~trainer"], "model=gfcf: is computed in closed form"),
        (["memory.panel=20"], "memory.panel: is 20"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        PlanConfig.from_dict(composed(*options))
