"""The benchmark of training steps in its quick form, and that a loop whose step is wrong is not timed."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
PROFILING = ROOT / "profiling"
pytestmark = pytest.mark.filterwarnings("ignore:Sparse")  # torch on its own sparse tensors
PEER_PACKAGES = {"DGL": "dgl", "PyG": "torch_geometric", "RecBole": "recbole"}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The quick form of all contests: its output and its JSON."""
    file = tmp_path_factory.mktemp("bench") / "made" / "training.json"
    command = [sys.executable, str(PROFILING / "bench_training.py"), "--quick", "--threads", "1", "--out", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=file.parent.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return SimpleNamespace(output=" ".join(done.stdout.split()), report=json.loads(file.read_text()))


@pytest.fixture
def bench(monkeypatch):
    """The benchmark's modules, and LightGCN's contest on a tiny graph; scripts import each other from their folders."""
    monkeypatch.syspath_prepend(str(PROFILING))
    import bench_training
    import training_loops
    import workload

    graph = workload.load("none", 64, 1, quick=True)  # the width whose kernels are compiled already
    contest = replace(bench_training.CONTESTS[0], loops={})
    return SimpleNamespace(
        training=bench_training, loops=training_loops, contest=contest, setting=contest.setting(graph, quick=True)
    )


def test_every_loop_is_right_or_missing(quick):
    found = [result["operation"] for result in quick.report["results"]]
    assert found == [f"LightGCN, batch {n}" for n in (2048, 65536)] + ["LightGCN, large_batch", "NGCF, batch 1024"]
    for result in quick.report["results"]:
        assert result["mode"] == "training step"
        assert result["rows"][0]["name"] == "ours"
        for row in result["rows"]:
            package = PEER_PACKAGES.get(row["name"].replace(",", "").split()[0])
            installed = package is None or find_spec(package) is not None
            assert row["status"] == ("ok" if installed else "missing"), row
            assert installed or f"{package} cannot be imported" in row["note"]
    assert find_spec("torch_geometric") is not None


def test_ratios_are_medians_of_rounds(quick):
    for result in quick.report["results"]:
        ours, *others = (row for row in result["rows"] if row["status"] == "ok")
        for row in (ours, *others):
            assert len(row["seconds"]) == 3
            assert 0 < row["low"] <= row["median"] <= row["high"]
        for row in others:
            rounds = [theirs / own for theirs, own in zip(row["seconds"], ours["seconds"])]
            assert row["ratio"] == pytest.approx(statistics.median(rounds))


def test_targets_and_conditions_stand_beside_what_was_measured(quick):
    targets = [verdict["target"] for result in quick.report["results"] for verdict in result["verdicts"]]
    asked = [f"time: {each} x ours" for each in ("public PyTorch >= 15", "PyG LightGCN, CSR >= 9", "RecBole >= 12")]
    assert targets == [*asked, *asked, "time: ours <= 2 x its propagation"]
    assert all(target in quick.output for target in targets)
    report = quick.report
    assert report["options"]["batches"] in quick.output
    assert report["data"]["directed_edges"] == 10_000
    assert len(report["load_before"]) == len(report["load_after"]) == 3
    assert "steps a second: ours" in quick.output


def spoiled(bench, change):
    """The rows of ours and of the public loop, whose loss is changed."""

    def build(s):
        loop = bench.loops.public_pytorch(s)
        return change(loop)

    rows, ready = bench.training.check(replace(bench.contest, loops={"spoiled": build}), bench.setting)
    assert set(ready) == {"ours"}
    return rows


def test_a_loop_with_another_loss_fails(bench):
    rows = spoiled(bench, lambda loop: replace(loop, step=lambda: loop.step() * 1.001))
    assert [row.status for row in rows] == ["ok", "failed its check"]
    assert "out is off by" in rows[1].note


def test_a_loop_with_another_step_fails(bench):
    """Another learning rate than the one it says."""
    rows = spoiled(bench, lambda loop: replace(loop, lr=1.1 * loop.lr))
    assert [row.status for row in rows] == ["ok", "failed its check"]
    assert "x after the step is off by" in rows[1].note


def test_a_loop_with_another_gradient_fails(bench):
    def change(loop):
        def step():
            loss = loop.step()
            loop.parameters["x"][1].grad[0] = 1.0
            return loss

        return replace(loop, step=step)

    rows = spoiled(bench, change)
    assert [row.status for row in rows] == ["ok", "failed its check"]


def test_rounds_begin_with_another_loop_each(bench):
    import measure

    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    measure.interleave(calls, 10.0, 3, lambda call, last: call() or 0.0, rotated=True)
    assert "".join(order) == "abcbcacab"
