"""The GPU's benchmark on interpreted kernels, with a torch.cuda that is made up here: what it runs, not how fast."""

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gnnrec import device as devices

PROFILING = Path(__file__).parents[2] / "profiling"
MIB, L2 = 2**20, 4096
pytestmark = pytest.mark.filterwarnings("ignore:Sparse")  # torch on its own sparse tensors


class Event:
    """What has happened by now."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


class Memory:
    """3 MiB are allocated, and 8 at the most."""

    peak = None

    def allocated(self, device):
        return 3 * MIB

    def reset(self, device):
        self.peak = 8 * MIB

    def max_allocated(self, device):
        return self.peak


@pytest.fixture
def bench(monkeypatch):
    """The benchmark on a tiny graph, where GPUs are CPUs."""
    monkeypatch.syspath_prepend(str(PROFILING))
    import bench_ops
    import measure
    import measure_gpu
    import workload

    memory, waits = Memory(), []
    properties = {"name": "made up", "major": 9, "minor": 0, "multi_processor_count": 2, "total_memory": 2**30}
    stand_ins = {
        "Event": Event,
        "synchronize": lambda device=None: None,
        "_sleep": waits.append,
        "memory_allocated": memory.allocated,
        "reset_peak_memory_stats": memory.reset,
        "max_memory_allocated": memory.max_allocated,
        "get_device_properties": lambda device: SimpleNamespace(**properties, L2_cache_size=L2),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(devices, "resolve", lambda name: torch.device("cpu"))
    monkeypatch.setattr(workload, "QUICK", (30, 40, 150))
    monkeypatch.setattr(torch, "set_num_interop_threads", lambda threads: None)  # once a process
    monkeypatch.setattr(measure, "LEAST", 1)  # interpreted calls take a second
    for name, smaller in (("COPIED", 1 << 16), ("ENTRIES", 256)):
        monkeypatch.setattr(measure_gpu, name, smaller)
    return SimpleNamespace(main=bench_ops.main, waits=waits)


@pytest.fixture
def run(bench, tmp_path, capsys):
    """The report of the benchmark of some operators, with what it printed."""

    def run(*operators):
        given = ["--device", "cuda", "--quick", "--dim", "16", "--threads", "1", "--out", str(tmp_path)]
        code = bench.main([*given, "--op", *operators])
        return code, json.loads((tmp_path / "bench_ops.json").read_text()), capsys.readouterr().out

    def table():
        import gpu_table

        gpu_table.main([str(tmp_path / "bench_ops.json")])
        return capsys.readouterr().out

    bench.table = table
    return run


def test_spmm_beside_its_peers_and_its_targets(run, bench):
    code, report, printed = run("spmm")
    assert code == 0
    results = {(result["operation"], result["mode"]): result for result in report["results"]}
    usual, large = results["spmm", "forward"], results["spmm, large graph", "forward"]
    assert usual["sets"] == -(-3 * L2 // usual["set_bytes"]) > 1
    assert usual["exceeds_cache"] is (usual["set_bytes"] > L2)
    assert {"ours", "torch CSR", "torch CSR, int32", "PyG EdgeIndex"} <= {row["name"] for row in usual["rows"]}
    assert not {"scipy CSR", "C++ limit"} & {row["name"] for row in usual["rows"]}
    for result in report["results"]:
        assert [row["status"] for row in result["rows"] if row["status"] not in ("ok", "missing")] == []
        assert {row["peak_bytes"] for row in result["rows"] if row["status"] == "ok"} == {5 * MIB}
    ours = usual["rows"][0]
    assert ours["copy_share"] > 0
    assert ours["gather_share"] > 0
    (verdict,) = large["verdicts"]
    assert verdict["measured"] == large["rows"][0]["copy_share"]
    assert verdict["target"] == "at least 70% of the copy bandwidth"
    (verdict,) = usual["verdicts"]
    ratios = {row["name"]: row["ratio"] for row in usual["rows"]}
    assert verdict["measured"] == min(ratios["torch CSR"], ratios["torch CSR, int32"])
    assert all(wait > 0 for wait in bench.waits)
    assert "made up, compute capability 9.0" in printed
    table = bench.table()
    assert "| spmm, forward | time: torch CSR >= 2 x ours | 0.0 x: missed |" in table
    assert "| gat_conv, forward + backward | time: best peer >= 2.7 x ours | not measured |" in table
    assert "| spmm, large graph, forward + backward | " in table
    assert "5 MiB | torch CSR, int32 0." in table
    assert "made up, CUDA " in table


def test_tuning_keeps_what_it_finds(bench, tmp_path, monkeypatch):
    import tune
    import workload

    from gnnrec.ops import tuner, tuning

    tiny = workload.load("none", 16, 1, quick=True)
    monkeypatch.setattr(workload, "load", lambda *given, **fields: tiny)
    monkeypatch.setattr(workload, "LARGE", workload.QUICK)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fastest = tuning.CANDIDATES["spmm"][3]
    clock = lambda call: 1.0 - 0.5 * (tuning._forced["spmm"] == fastest)  # noqa: E731
    monkeypatch.setattr(tuner, "_cuda_clock", lambda device: clock)
    given = ["--operators", "spmm", "--dim", "16", "--out", str(tmp_path / "tune.json")]
    assert tune.main([*given, "--compile"]) == 0
    assert not tuning.user_file().exists()
    assert tune.main(given) == 0
    found = json.loads((tmp_path / "tune.json").read_text())
    assert [each["graph"] for each in found] == ["synthetic, tiny", "synthetic, large"]
    kept = json.loads(tuning.user_file().read_text())["shapes"]
    assert set(kept) == {key for each in found for key in each["keys"]}
    assert all(shape == dict(fastest) for shape in kept.values())


def test_training_steps(run, monkeypatch):
    import operations_gpu

    table = {each.name: each for each in operations_gpu.OPERATIONS}
    monkeypatch.setattr("bench_ops.GPU_OPERATIONS", (table["LightGCN"], table["NGCF, large graph"]))
    code, report, _ = run("lightgcn_propagate", "ngcf_layer")
    assert code == 0
    steps = {each["operation"]: each for each in report["results"]}
    assert [(each["mode"], each["sets"]) for each in report["results"]] == [(operations_gpu.STEP, 1)] * 2
    for result in steps.values():
        for row in result["rows"]:
            captured = row["name"] == "ours, captured"
            assert row["status"] == ("missing" if captured else "ok"), row
            assert row["note"] == ("a CUDA graph needs a GPU" if captured else "")
    eager, captured = steps["LightGCN"]["verdicts"]
    assert (eager["measured"], captured["measured"]) == (steps["LightGCN"]["rows"][0]["median"], None)
    assert eager["reached"] is (eager["measured"] < 2e-3)


def test_what_a_library_raises_is_named_and_the_others_go_on(run, monkeypatch, bench):
    import operations_gpu

    from gnnrec import ops

    def no_memory(w, t):
        raise torch.OutOfMemoryError("Tried to allocate 48.00 GiB")

    operation = next(each for each in operations_gpu.OPERATIONS if each.name == "spmm, large graph")
    broken = replace(operation, peers=(operations_gpu.Peer("greedy", no_memory),))
    monkeypatch.setattr("bench_ops.GPU_OPERATIONS", (broken,))
    code, report, _ = run("spmm")
    assert code == 0
    row = report["results"][0]["rows"][1]
    assert (row["status"], row["note"]) == ("failed", "OutOfMemoryError: Tried to allocate 48.00 GiB")
    assert row["median"] is row["ratio"] is None
    monkeypatch.setattr(ops, "spmm", no_memory)
    monkeypatch.setattr("bench_ops.GpuClock.gather_bandwidth", lambda *given: 1e9)
    code, report, _ = run("spmm")
    assert (code, report["results"][0]["rows"][0]["status"]) == (1, "failed")
