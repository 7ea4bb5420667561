"""The operator benchmark in its quick form, and that it prints no ratio for what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

PROFILING = Path(__file__).parent.parent / "profiling"
pytestmark = pytest.mark.filterwarnings("ignore:Sparse")  # torch on its own sparse tensors
PEER_PACKAGES = {"DGL": "dgl", "PyG": "torch_geometric", "faiss": "faiss"}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The quick form of the whole benchmark: its output, its JSON and its folder."""
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, str(PROFILING / "bench_ops.py"), "--quick", "--threads", "1", "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return SimpleNamespace(
        output=done.stdout, report=json.loads((folder / "bench_ops.json").read_text()), folder=folder
    )


@pytest.fixture
def bench(monkeypatch):
    """The benchmark's modules and a tiny graph; scripts import each other from their own folder."""
    monkeypatch.syspath_prepend(str(PROFILING))
    import contender
    import operations
    import runner
    import workload

    graph = workload.load("none", 16, 1, quick=True)
    return SimpleNamespace(contender=contender, operations=operations, runner=runner, graph=graph)


def rows(report):
    return [(result, row) for result in report["results"] for row in result["rows"]]


def test_every_operation_is_there_and_nothing_fails_its_check(quick, bench):
    found = [(result["operation"], result["mode"]) for result in quick.report["results"]]
    assert found == [(each.name, mode) for each in bench.operations.OPERATIONS for mode in each.modes]
    assert [(row["name"], row["note"]) for _, row in rows(quick.report) if row["status"] == "failed its check"] == []


def test_ours_leads_every_table_and_what_exists_is_measured(quick):
    assert all(result["rows"][0]["name"] == "ours" for result in quick.report["results"])
    measured = {result["operation"] for result in quick.report["results"] if result["rows"][0]["status"] == "ok"}
    assert {"spmm", "lightgcn_propagate", "topk_scores"} <= measured


def test_peers_are_measured_or_named_as_missing(quick):
    for _, row in rows(quick.report):
        package = PEER_PACKAGES.get(row["name"].split()[0])
        if package is not None:
            installed = find_spec(package) is not None
            assert row["status"] == ("ok" if installed else "missing"), row
            assert installed or f"{package} cannot be imported" in row["note"]
        elif row["name"].startswith(("torch", "scipy")):
            assert row["status"] == "ok", row
        assert (row["status"] == "missing") == bool(row["note"])
    assert find_spec("torch_geometric") is not None


def test_numbers_of_a_row_fit_together(quick):
    for result, row in rows(quick.report):
        if row["status"] != "ok":
            assert row["median"] is row["ratio"] is row["peak_bytes"] is None
            continue
        assert len(row["seconds"]) >= 3
        assert 0 < row["low"] <= row["median"] <= row["high"]
        assert row["error"] < 1e-2
        ours = result["rows"][0]
        if row is not ours and ours["status"] == "ok":
            assert row["ratio"] == pytest.approx(row["median"] / ours["median"])
        else:
            assert row["ratio"] is None
        if row["peak_bytes"] is not None:
            assert row["peak_bytes"] >= 0


def test_targets_stand_beside_what_was_measured(quick):
    verdicts = [verdict for result in quick.report["results"] for verdict in result["verdicts"]]
    assert len(verdicts) >= 20
    for verdict in verdicts:
        assert verdict["target"] in " ".join(quick.output.split())
        assert verdict["reached"] == (None if verdict["measured"] is None else verdict["measured"] >= verdict["least"])


def test_what_the_numbers_depend_on_is_said(quick):
    report = quick.report
    assert set(report["bandwidth"]) == {"from a buffer of the operand's size", "from one of 4 last-level caches"}
    assert all(rate > 1e8 for rate in report["bandwidth"].values())
    assert report["machine"]["omp_wait_policy"]
    assert report["versions"]["torch"] == torch.__version__
    assert report["data"]["directed_edges"] == 10_000
    assert len(report["load_before"]) == len(report["load_after"]) == 3
    assert "load before" in quick.output
    assert "load after" in quick.output


def test_the_table_and_the_plot_are_written(quick):
    assert "lightgcn_propagate" in (quick.folder / "bench_ops.txt").read_text()
    if find_spec("matplotlib") is None:
        assert "no plot: No module named 'matplotlib'" in quick.output
    else:
        assert (quick.folder / "bench_ops.png").read_bytes().startswith(b"\x89PNG")


def test_a_gpu_that_is_not_there_is_one_line_and_exit_code_2():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for script in ("bench_ops.py --device cuda", "tune.py"):
        done = subprocess.run(f"{sys.executable} {PROFILING}/{script}", shell=True, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("device=cuda: torch sees no GPU. Use device=cpu")


def test_a_gpu_session_needs_no_hydra_and_its_table_says_what_was_not_measured(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    block = "import sys\nfor name in ('hydra', 'omegaconf'):\n    sys.modules[name] = None\n"
    (tmp_path / "sitecustomize.py").write_text(block)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHON": sys.executable}
    session = [str(PROFILING / "gpu_session.sh"), str(tmp_path / "out")]
    done = subprocess.run(session, capture_output=True, text=True, env=environment)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    code = "import bench_ops, gpu_table, tune; sys.exit(bench_ops.main(['--device', 'cuda']))"
    command = [sys.executable, "-c", block + f"sys.path.insert(0, {str(PROFILING)!r})\n" + code]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    command = [sys.executable, str(PROFILING / "gpu_table.py"), str(tmp_path / "none.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| LightGCN, training step | time of ours, captured < 2 ms | not measured |" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ") and "to reach" not in line]
    assert all("not measured" in row for row in rows if "time of others" not in row)


def test_an_unknown_operator_is_refused():
    command = [sys.executable, str(PROFILING / "bench_ops.py"), "--op", "spm"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NUMBA_NUM_THREADS": "1"})
    assert done.returncode == 2
    assert "invalid choice: 'spm'" in done.stderr


def without_an_edge(w):
    """The product with the normalised adjacency, one of its 10,000 entries lost."""
    values = w.values.clone()
    values[values.argmin()] = 0  # the least there is
    matrix = torch.sparse_coo_tensor(torch.stack([w.rows, w.cols]), values, w.adjacency.shape)
    return lambda x: matrix @ x


def operation(bench, name):
    return next(each for each in bench.operations.OPERATIONS if each.name == name)


def run(bench, chosen, mode="forward"):
    result = bench.runner.run(chosen, mode, bench.graph, 0.0, 3)
    return {row.name: row for row in result.rows}, result.verdicts


def spmm_with(bench, build):
    """spmm beside torch's CSR, and a third contender."""
    Peer, Target = bench.operations.Peer, bench.operations.Target
    kept = tuple(peer for peer in operation(bench, "spmm").peers if peer.name == "torch CSR")
    targets = {"forward": (Target("wrong", 2.0), Target("torch CSR", 3.0))}
    return replace(operation(bench, "spmm"), peers=(*kept, Peer("wrong", build)), targets=targets)


def test_a_wrong_peer_gets_no_ratio(bench):
    def wrong(w, t):
        return bench.contender.Step(lambda: without_an_edge(w)(t["x"]), t)

    found, verdicts = run(bench, spmm_with(bench, wrong))
    assert found["wrong"].status == "failed its check"
    assert "out is off by" in found["wrong"].note
    assert found["wrong"].seconds == []
    assert found["wrong"].ratio is found["wrong"].bytes_ratio is None
    assert found["torch CSR"].ratio > 0
    assert [verdict.reached is None for verdict in verdicts] == [True, False]


def test_a_wrong_gradient_is_found(bench):
    def wrong(w, t):
        x = t["x"]
        product = without_an_edge(w)(x)
        right = torch.sparse_coo_tensor(torch.stack([w.rows, w.cols]), w.values, w.adjacency.shape) @ x.detach()
        return bench.contender.Step(lambda: product + (right - product.detach()), t)

    found, _ = run(bench, spmm_with(bench, wrong))
    assert found["wrong"].status == "ok"
    found, _ = run(bench, spmm_with(bench, wrong), mode="forward + backward")
    assert found["wrong"].status == "failed its check"
    assert "gradient of x is off by" in found["wrong"].note


@pytest.mark.parametrize(
    "spoil", [lambda y: y[:-1], lambda y: y * torch.nan, lambda y: y.double() * 1.001], ids=["shape", "nan", "scaled"]
)
def test_wrong_results_of_ours_leave_no_ratio_at_all(bench, spoil):
    def wrong(w, t):
        return bench.contender.Step(lambda: spoil(bench.operations.ops.spmm(w.adjacency, t["x"])), t)

    found, verdicts = run(bench, replace(spmm_with(bench, wrong), ours=wrong))
    assert found["ours"].status == "failed its check"
    assert all(row.ratio is None for row in found.values())
    assert found["torch CSR"].median > 0
    assert all(verdict.measured is verdict.reached is None for verdict in verdicts)


@pytest.mark.parametrize("kind", ["masked", "twice", "second best"])
def test_a_wrong_list_of_items_is_found(bench, kind):
    seen = bench.graph.graph.user_item()

    def wrong(w, t):
        chosen = bench.operations.ops.topk_scores(t["users"], t["items"], k=21, seen=seen)[0]
        user = int(seen.indptr.diff().argmax())
        items = chosen[:, :20].clone()
        first = seen.indices[seen.indptr[user]]
        items[user, 19] = {"masked": first, "twice": items[user, 0], "second best": chosen[user, 20]}[kind]
        return bench.contender.Step(lambda: items)

    found, _ = run(bench, replace(operation(bench, "topk_scores"), ours=wrong, peers=()))
    assert found["ours"].status == "failed its check"


def test_what_cannot_be_imported_is_named(bench):
    def absent(w, t):
        return bench.contender.require("no_such_library.part")

    found, _ = run(bench, spmm_with(bench, absent))
    assert found["wrong"].status == "missing"
    assert found["wrong"].note == "no_such_library cannot be imported: No module named 'no_such_library'"


def test_a_target_below_one_bounds_ours_from_above(bench):
    Row, Target = bench.runner.Row, bench.operations.Target
    rows = [Row("ours", "ok", median=1.1), Row("limit", "ok", median=1.0), Row("half", "ok", median=0.5, same=False)]
    bench.runner.compare(rows)
    targets = Target("limit", 1 / 1.15), Target("limit", 1 / 1.05), Target(bench.operations.BEST, 0.9)
    assert [verdict.reached for verdict in bench.runner.verdicts(targets, rows)] == [True, False, True]
    assert str(targets[0]) == "time: ours <= 1.15 x limit"


def test_bytes_are_the_operators_own_count(bench):
    spmm = operation(bench, "spmm")
    matrix, dim = bench.graph.adjacency, bench.graph.dim
    moved = spmm.bytes_moved(bench.graph, spmm.inputs(bench.graph))
    assert moved > matrix.nnz * dim * 4
    assert operation(bench, "NGCF step, bias once").bytes_moved(bench.graph, {}) is None


def test_peak_memory_counts_what_a_call_holds_at_once(bench):
    import measure

    def call():
        scratch = torch.ones(40 << 18)  # 40 MiB, then 8 more
        return scratch, torch.ones(8 << 18)

    call()  # memory that is free in the heap is not free of charge
    found = measure.peak_bytes(call)
    if found is None:
        pytest.skip("this system does not let a process reset the peak of its resident memory")
    assert 47 << 20 <= found <= 52 << 20


def test_calls_take_turns_and_slow_ones_sit_out(bench):
    import measure

    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = measure.interleave(calls, 10.0, 4)
    assert {name: len(each) for name, each in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    assert "".join(order) == "abc" + 3 * "aabbcc"  # short calls follow one that is not timed
    assert {len(each) for each in measure.interleave(calls, 0.0, 9).values()} == {measure.LEAST}
