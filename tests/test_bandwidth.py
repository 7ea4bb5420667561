"""The bandwidth matrix: what is measured, in which order it is left out, and that every number has its unit."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gnnrec.errors import ConfigError, GnnrecError
from gnnrec.memtier import conditions, kernels, measure_file, measure_gpu, measure_memory
from gnnrec.memtier.files import aligned
from gnnrec.memtier.stopwatch import Measured, Stopwatch
from gnnrec.memtier.tiers import Rate, Tier
from gnnrec.ops._numba import num_threads

PROFILING = Path(__file__).parent.parent / "profiling"
MIB = 1 << 20
TINY = (
    *("ops=[read,mix_2_1]", "patterns=[sequential,random]", "sizes=[64]", "threads=[1]", "run_seconds=0.005"),
    *("working_sets=[16KiB,64MiB]", "loaded_ops=[mix_2_1]", "delays=[0,20000]"),
)


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The script's modules; they import each other from their own folder."""
    sys.path.insert(0, str(PROFILING))
    try:
        import bandwidth
        import bandwidth_figures
        import bandwidth_files
        import bandwidth_gpu
        import bandwidth_latency
        import bandwidth_matrix
        import bandwidth_memory
        import bandwidth_nodes
        import bandwidth_records
        import bandwidth_report
        import bandwidth_settings
        import bandwidth_tables
        import bandwidth_tiers
    finally:
        sys.path.remove(str(PROFILING))
    return SimpleNamespace(
        main=bandwidth.main,
        figures=bandwidth_figures,
        files=bandwidth_files,
        gpu=bandwidth_gpu,
        latency=bandwidth_latency,
        matrix=bandwidth_matrix,
        memory=bandwidth_memory,
        nodes=bandwidth_nodes,
        records=bandwidth_records,
        report=bandwidth_report,
        settings=bandwidth_settings.settings,
        tables=bandwidth_tables.tables,
        tiers=bandwidth_tiers,
    )


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """A machine with caches of 1 MiB, and files of 16 MiB: the figures mean little, the way to them is the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conditions, "last_level_cache", lambda root=None: (MIB, "made up"))
        patch.setattr(measure_memory, "_MOVED", 8 * MIB)
        patch.setattr(measure_memory, "_STEPS", 20_000)
        patch.setattr(measure_file, "_LEAST", 16 * MIB)
        patch.setattr(measure_file, "_WANTED", 16 * MIB)
        patch.setattr(measure_file, "_WRITE_BACK", 1)
        patch.setattr(measure_file, "_RUN_SECONDS", 0.002)
        yield


@pytest.fixture(scope="module")
def measured(bench: Any, small: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """DRAM and a slowed-down file, measured; the folder with what was written."""
    folder = tmp_path_factory.mktemp("bandwidth")
    (folder / "disk").mkdir()
    slow = "simulate.read_gb_per_s=0.5", "simulate.write_gb_per_s=0.5", f"folders=[{folder / 'disk'}]"
    files = "tiers=[dram,file]", "file_sizes=[4KiB]", "file_threads=[1]"
    code = bench.main([*TINY, *slow, *files, f"out={folder / 'out.json'}", f"tables={folder / 'tables'}"])
    assert code == 0
    content = json.loads((folder / "out.json").read_text())
    return SimpleNamespace(content=content, folder=folder, tables=folder / "tables")


def of(content: Any, **wanted: Any) -> Any:
    """The only bandwidth with these values."""
    (row,) = (row for row in content["bandwidth"] if wanted.items() <= row.items())
    return row


# Settings


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("budgets=3", r"budgets: unknown key. Did you mean budget"),
        ("budget=0", r"budget: is 0"),
        ("budget=much", r"budget: is 'much'. It must be a number"),
        ("ops=[raed]", r"ops: is 'raed'. Did you mean read"),
        ("ops=[]", r"ops: is empty"),
        ("patterns=[zigzag]", r"patterns: is 'zigzag'"),
        ("loaded_ops=[write]", r"loaded_ops: is 'write'"),
        ("tiers=[drum]", r"tiers: is 'drum'. Did you mean dram"),
        ("sizes=[100]", r"sizes: is 100. A row is whole cache lines"),
        ("sizes=[1088]", r"sizes: is 1088"),
        ("sizes=[large]", r"sizes: is 'large'"),
        ("threads=[0]", r"threads: is 0"),
        ("file_sizes=[512]", r"file_sizes: is 512. Give multiples of 4096"),
        ("file_threads=[9]", r"file_threads: is 9"),
        ("working_sets=[100]", r"working_sets: is 100"),
        ("delays=[-1]", r"delays: is -1"),
        ("preset=ful", r"preset: is 'ful'. Did you mean full"),
        ("simulate.read_gb_per_s=1", r"write_gb_per_s: is not set"),
        ("sizes=[64", r"cannot be read"),
    ],
)
def test_a_wrong_setting_is_named(bench: Any, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        bench.settings([override])


def test_what_slows_nothing_down_is_refused(bench: Any) -> None:
    slow = "simulate.read_gb_per_s=1", "simulate.write_gb_per_s=1"
    with pytest.raises(ConfigError, match="simulate: has no effect"):
        bench.settings(["tiers=[dram]", *slow])


def test_a_preset_changes_what_the_command_line_does_not(bench: Any) -> None:
    usual, full, mine = bench.settings(), bench.settings(["preset=full"]), bench.settings(["preset=full", "budget=9"])
    assert (usual.budget, mine.budget) == (120, 9)
    assert full.budget > usual.budget
    assert full.run_seconds == mine.run_seconds > usual.run_seconds
    assert usual.row_bytes == [64, 128, 256, 512, 1024, 2048, 4096]


def test_mistakes_end_with_exit_code_2(bench: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert bench.main(["budget=0"]) == 2
    assert bench.main(["tiers=[dram]", f"out={tmp_path}"]) == 2  # a folder
    assert bench.main(["tiers=[devdax]", f"out={tmp_path / 'out.json'}"]) == 2
    assert bench.main(["--help"]) == 0
    said = capsys.readouterr()
    assert "budget: is 0" in said.err
    assert "no tier was measured: there is none of kind devdax" in said.err
    assert "run_seconds" in said.out


# Which cells are measured


def all_cells(bench: Any) -> list[Any]:
    places = [("node0", "near", [1, 2, 4]), ("node1", "far", [1, 2, 4])]
    return bench.matrix.cells(["read", "write"], ["sequential", "random", "strided"], [64, 256, 4096], places)


def test_the_matrix_holds_every_combination_once(bench: Any) -> None:
    cells = all_cells(bench)
    assert len(cells) == len(set(cells)) == 2 * 3 * 3 * 3 * 2


def test_a_smaller_budget_measures_the_first_of_the_same_cells(bench: Any) -> None:
    cells = all_cells(bench)
    order = bench.matrix.by_importance(cells)
    assert sorted(map(repr, order)) == sorted(map(repr, cells))
    assert [bench.matrix.thinned(cells, seconds, 0.5) for seconds in (10, 20)] == [order[:20], order[:40]]
    assert bench.matrix.thinned(cells, 1e9, 0.5) == order
    assert bench.matrix.thinned(cells, 0, 0.5) == order[:2]


def test_every_axis_is_seen_before_any_plane(bench: Any) -> None:
    first = bench.matrix.by_importance(all_cells(bench))
    crossing = [(c.op, c.pattern, c.access_bytes, c.threads, c.distance) for c in first[:2]]
    assert crossing == [("read", pattern, 256, 4, "near") for pattern in ("sequential", "random")]
    # In one respect: 2 x (1 op, 2 sizes, 2 threads, 1 node) and the strided one.
    axes = first[: 2 + 2 * 6 + 1]
    assert {c.op for c in axes} == {"read", "write"}
    assert {c.access_bytes for c in axes} == {64, 256, 4096}
    assert {c.threads for c in axes} == {1, 2, 4}
    assert {c.pattern for c in axes} == {"sequential", "random", "strided"}
    assert {c.distance for c in axes} == {"near", "far"}


# Nodes


def node_tree(root: Path, cpus: dict[int, str], rows: dict[int, str]) -> Path:
    for node, listed in cpus.items():
        folder = root / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{listed}\n")
        (folder / "distance").write_text(f"{rows[node]}\n")
    (root / "sys/devices/system/node/online").write_text(f"0-{max(cpus)}\n")
    return root


def test_near_and_far_follow_the_firmware(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 4, 5})
    root = node_tree(tmp_path, {0: "0-3", 1: "4-7", 2: ""}, {0: "10 21 17", 1: "21 10 28", 2: "17 28 10"})
    groups = bench.nodes.processors(root)
    assert [(group.node, group.cpus) for group in groups] == [("node0", (0, 1)), ("node1", (4, 5))]

    def far(where: str) -> list[str]:
        return bench.nodes.distances(Tier("t", "dram", 1, 1, 64, where=where), groups, root)

    assert far("node0") == ["near", "far"]
    assert far("node1") == ["far", "near"]
    assert far("node2") == ["near", "far"]  # CXL behind the first socket
    assert far("") == ["unknown", "unknown"]
    assert bench.nodes.distances(Tier("t", "dram", 1, 1, 64), groups[:1], root) == ["only node"]


def test_threads_are_kept_on_processors_for_a_while(bench: Any) -> None:
    before = os.sched_getaffinity(0)
    with bench.nodes.pinned([min(before)]):
        assert {frozenset(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")} == {
            frozenset({min(before)})
        }
    assert os.sched_getaffinity(0) == before


def test_siblings_of_the_chasing_core_make_no_traffic(bench: Any, tmp_path: Path) -> None:
    folder = tmp_path / "sys/devices/system/cpu/cpu0/topology"
    folder.mkdir(parents=True)
    (folder / "thread_siblings_list").write_text("0,4\n")
    assert bench.nodes.others_than(0, [0, 1, 4, 5], tmp_path) == [1, 5]


# What is moved


@pytest.mark.parametrize("size", [64, 1024, 4096])
@pytest.mark.parametrize("pattern", ["sequential", "random", "strided"])
def test_no_row_is_taken_twice(bench: Any, pattern: str, size: int) -> None:
    indices = bench.memory.pieces(pattern, size, 8 * MIB, 2 * MIB)
    piece = min(size, 1024)
    assert len(np.unique(indices)) == len(indices) == 2 * MIB // piece
    assert 0 <= indices.min() <= indices.max() < 8 * MIB // piece
    steps = np.diff(indices[:: size // piece].astype(np.int64)) * piece
    if pattern != "random":
        assert (steps == (size if pattern == "sequential" else 4 * size)).mean() > 0.99
    else:
        assert indices.max() > 0.9 * 8 * MIB / piece  # over the whole buffer
        assert np.abs(steps).mean() > MIB
    pieces = indices.reshape(-1, size // piece)
    assert (pieces == pieces[:, :1] + np.arange(size // piece)).all()  # of a row follow each other


@pytest.mark.parametrize(("op", "parts"), [("read", 1), ("write", 1), ("write_nt", 1), ("mix_2_1", 3)])
def test_what_is_moved_is_checked(bench: Any, op: str, parts: int) -> None:
    x, out = aligned(2 * MIB, huge=False).reshape(2, -1)
    kernels.fill(x.view(np.uint32), np.uint32(1))
    mover = bench.memory.Mover(x, out, op, 64, bench.memory.pieces("random", 64, MIB, MIB // 2))
    mover.check()
    assert mover.move(100) == 100 * parts * 64
    mover.check_last()
    if op == "read":
        mover._sums *= 1.1
    else:
        out[:] = 0
    with pytest.raises(GnnrecError, match=f"{op} of 64-byte rows: other numbers were"):
        mover.check_last()


def test_a_gpus_copies_are_checked_and_have_their_place(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.gpu.check(torch.device("cpu"))
    cells = [bench.gpu.cell_of(Rate(pattern, 1.0)) for pattern in ("to_gpu", "from_gpu", "gather", "scatter")]
    found = [(cell.op, cell.pattern) for cell in cells]
    assert found == [
        *(("host_to_device", "sequential"), ("device_to_host", "sequential")),
        *(("read", "random"), ("copy", "random")),
    ]
    monkeypatch.setattr(torch.Tensor, "index_copy_", lambda self, *rest: self.zero_())
    with pytest.raises(GnnrecError, match="other numbers come back"):
        bench.gpu.check(torch.device("cpu"))


def test_a_gpus_figures_become_rows(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_the_cpu(tier: Tier, watch: Stopwatch) -> Measured:
        rates, _ = watch.rates(measure_gpu.figures(torch.device("cpu"), MIB))
        return Measured(tuple(rates), None, ("buffers of 1 MiB",))

    monkeypatch.setattr(measure_gpu, "measure", on_the_cpu)
    monkeypatch.setattr(bench.gpu, "check", lambda device: None)
    wanted, groups, kept = bench.settings(["tiers=[gpu]"]), bench.nodes.processors(), []
    content = bench.records.begin(wanted, groups)
    gpus = [Tier("gpu0", "gpu", 1 << 30, 1 << 30, 32), Tier("gpu1", "gpu", None, None, 32, unavailable="no driver")]
    bench.tiers.measure(gpus, wanted, groups, content, lambda words: None, lambda: kept.append(1))
    assert kept == [1]
    assert content["left_out"] == ["gpu1: unavailable: no driver"]
    assert {"host_to_device", "device_to_host", "read", "write", "copy"} == {row["op"] for row in content["bandwidth"]}
    assert list(bench.records.without_unit(content)) == []
    names = [table.name for table in bench.tables(content)]
    assert names == ["conditions", "gpu-host-to-device", "gpu-device-to-host", "gpu-local-gpu0"]


def test_a_file_that_comes_back_changed_is_found(
    bench: Any, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = Tier("disk", "file", 1 << 40, 1 << 39, 4096, where=str(tmp_path), direct=False)
    real = measure_file.os.preadv
    with measure_file.opened(tier, 60) as (blocks, _):
        blocks.check(1)

        def spoiled(descriptor: int, buffers: Any, offset: int) -> int:
            moved = real(descriptor, buffers, offset)
            buffers[0][5] ^= 1
            return moved

        monkeypatch.setattr(measure_file.os, "preadv", spoiled)
        with pytest.raises(GnnrecError, match=r"1 of 8388608 bytes at byte .* come back wrong"):
            blocks.check(1)
    assert list(tmp_path.iterdir()) == []


# A real measurement


def test_every_field_has_a_unit(bench: Any, measured: Any) -> None:
    content = measured.content
    assert list(bench.records.without_unit(content)) == []
    assert list(bench.records.without_unit({"bandwidth": [{"watts": 1}]})) == ["watts"]
    assert set(content["fields"]) == set(bench.records.FIELDS)
    assert all(each["unit"] and each["meaning"] for each in content["fields"].values())


def test_conditions_and_what_is_missing_are_told(measured: Any) -> None:
    content = measured.content
    assert (content["format"], content["version"]) == ("gnnrec-bandwidth", 1)
    assert content["machine"]["last_level_cache_bytes"] > 0
    assert content["machine"]["nodes"]
    assert content["date"].startswith("20")
    dram = next(row for row in content["measured"] if row["kind"] == "dram")
    assert "two buffers of 32.00 MiB" in dram["notes"][0]
    assert dram["cells_count"] == dram["measured_cells_count"] or any("dram" in words for words in content["left_out"])


def test_single_lines_at_random_are_slower_than_in_order(bench: Any) -> None:
    """The best of many short runs in turn: other programs may have the processor meanwhile."""
    x, out = aligned(256 * MIB).reshape(2, -1)
    kernels.fill(x.view(np.uint32), np.uint32(1))
    movers = {
        pattern: bench.memory.Mover(x, out, "read", 64, bench.memory.pieces(pattern, 64, len(x), len(x)))
        for pattern in ("sequential", "random")
    }
    seconds: dict[str, list[float]] = {pattern: [] for pattern in movers}
    with num_threads(1):
        for _ in range(15):
            for pattern, mover in movers.items():
                start = time.perf_counter()
                mover.move(2 * MIB // 64)
                seconds[pattern].append(time.perf_counter() - start)
    assert min(seconds["random"]) > min(seconds["sequential"])


def test_bandwidths_have_their_spread(measured: Any) -> None:
    for row in measured.content["bandwidth"]:
        assert 0 < row["gb_per_s"] < 1e3
        assert row["measurements_count"] == 5
        assert row["spread_ratio"] >= 0
    assert of(measured.content, kind="dram", op="mix_2_1", pattern="random")["mix"] == "2:1"


def test_latency_grows_with_the_working_set(measured: Any) -> None:
    rows = [row for row in measured.content["idle_latency"] if row["kind"] == "dram"]
    assert [row["working_set_bytes"] for row in rows] == [16 << 10, 64 * MIB]
    assert 0.3 < rows[0]["latency_ns"] < rows[1]["latency_ns"]


def test_loads_are_timed_beside_traffic(bench: Any, measured: Any) -> None:
    rows = measured.content["loaded_latency"]
    cpus = bench.nodes.processors()[0].cpus
    if not bench.nodes.others_than(cpus[0], cpus):
        assert rows == []
        assert any("one core" in words for words in measured.content["left_out"])
        return
    assert [(row["op"], row["delay_ns"]) for row in rows] == [("mix_2_1", 0), ("mix_2_1", 20000)]
    assert rows[0]["gb_per_s"] > rows[1]["gb_per_s"] > 0
    assert all(row["latency_ns"] > 0 and row["threads_count"] >= 1 for row in rows)


def test_a_slowed_down_device_is_stamped_and_slow(measured: Any) -> None:
    rows = [row for row in measured.content["bandwidth"] if row["kind"] == "file"]
    assert {(row["op"], row["pattern"]) for row in rows} >= {("read", "sequential"), ("read", "random")}
    assert {row["provenance"] for row in rows} == {"SIMULATED"}
    assert all(row["gb_per_s"] < 0.55 for row in rows)
    assert {row["provenance"] for row in measured.content["bandwidth"] if row["kind"] == "dram"} == {"measured"}
    assert "SIMULATED" in (measured.tables / "bandwidth.md").read_text()
    assert list((measured.folder / "disk").iterdir()) == []


def test_two_runs_have_the_same_keys(bench: Any, small: None, measured: Any, tmp_path: Path) -> None:
    assert bench.main([*TINY, "tiers=[dram]", "loaded_ops=[]", f"out={tmp_path / 'again.json'}"]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again.keys() == measured.content.keys()
    for rows in ("bandwidth", "idle_latency", "measured"):
        assert {frozenset(row) for row in again[rows]} == {frozenset(row) for row in measured.content[rows]}


def test_the_processors_of_each_node_take_their_turn(
    bench: Any, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    groups = [bench.nodes.Processors(f"node{number}", (cpus[-number],)) for number in (0, 1)]
    monkeypatch.setattr(bench.main.__globals__["bandwidth_tiers"], "distances", lambda *rest: ["far", "near"])
    monkeypatch.setitem(bench.main.__globals__, "processors", lambda: groups)
    assert bench.main([*TINY, "tiers=[dram]", "ops=[read]", f"out={tmp_path / 'out.json'}"]) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    for pattern in ("sequential", "random"):
        assert of(content, cpu_node="node0", pattern=pattern)["distance"] == "far"
        assert of(content, cpu_node="node1", pattern=pattern)["distance"] == "near"
    latencies = [(row["cpu_node"], row["working_set_bytes"]) for row in content["idle_latency"]]
    assert latencies == [("node0", 64 * MIB), ("node1", 16 << 10), ("node1", 64 * MIB)]
    assert content["loaded_latency"] == []
    assert any("node1 has one core" in words for words in content["left_out"])
    assert os.sched_getaffinity(0) == set(cpus)


# Tables and figures


def test_tables_are_written_with_their_units(measured: Any) -> None:
    with (measured.tables / "size-random-dram-node0.csv").open() as file:
        header, row = csv.reader(file)
    assert header == ["access (bytes)", "read (GB/s)", "mix_2_1 (GB/s)"]
    assert row[0] == "64"
    assert float(row[1]) == of(measured.content, kind="dram", op="read", pattern="random")["gb_per_s"]
    text = (measured.tables / "bandwidth.md").read_text()
    for words in ("Idle latency between nodes", "Bandwidth by read:write mix", "2:1 reads-writes", "by access size"):
        assert words in text


def test_figures_are_documents_of_their_own(measured: Any) -> None:
    figures = sorted(measured.tables.glob("*.svg"))
    assert any(file.name == "access-size-dram.svg" for file in figures)
    for file in figures:
        assert ET.fromstring(file.read_text()).tag.endswith("svg")


def test_tables_of_a_file_are_shown_again(bench: Any, measured: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.report.main([str(measured.folder / "out.json")]) == 0
    assert "Idle latency by working set" in capsys.readouterr().out
    assert bench.report.main([str(measured.folder)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is of another kind"):
        bench.records.checked({"format": "other"}, "file")


def test_two_sockets_and_a_gpu_make_matrices(bench: Any, measured: Any) -> None:
    content = json.loads(json.dumps(measured.content))
    content["bandwidth"], content["idle_latency"] = [], []
    usual = {"kind": "dram", "provenance": "measured", "op": "read", "mix": "1:0", "pattern": "sequential"}
    usual |= {"access_bytes": 256, "threads_count": 2, "spread_ratio": 0.0, "measurements_count": 5}
    for cpu, memory, speed in ((0, 0, 100.0), (0, 1, 40.0), (1, 0, 41.0), (1, 1, 101.0)):
        place = {"tier": f"dram{memory}", "cpu_node": f"node{cpu}", "distance": "near" if cpu == memory else "far"}
        content["bandwidth"].append(usual | place | {"gb_per_s": speed})
        latency = {"working_set_bytes": 1 << 28, "latency_ns": 1e4 / speed}
        content["idle_latency"].append(usual | place | latency)
    gpu = {"tier": "gpu0", "kind": "gpu", "cpu_node": "", "distance": "", "access_bytes": 0}
    content["bandwidth"] += [
        usual | gpu | {"op": op, "gb_per_s": speed} for op, speed in (("host_to_device", 55.5), ("read", 3000.0))
    ]
    tables = {table.name: table for table in bench.tables(content)}
    texts = {name: [[cell.text for cell in row] for row in (t.header, *t.rows)] for name, t in tables.items()}
    assert texts["node-bandwidth"] == [
        ["processors of", "dram0", "dram1"],
        ["node0", "100.00 GB/s", "40.00 GB/s"],
        ["node1", "41.00 GB/s", "101.00 GB/s"],
    ]
    assert texts["idle-latency"][1] == ["node0", "100.0 ns", "250.0 ns"]
    assert texts["gpu-host-to-device"] == [["CPU", "gpu0"], ["0", "55.50 GB/s"]]
    assert "3,000.00 GB/s" in texts["gpu-local-gpu0"][1]
    assert "access-size-dram0" in bench.figures.figures(content)
