"""The whole graph beside sampled parts of it: DGL's training is the same one, and rows follow from what was counted."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXPERIMENTS)
    spec = importlib.util.spec_from_file_location("sampling_study", EXPERIMENTS / "sampling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif("GNNREC_DATA" not in os.environ, reason="GNNREC_DATA names no folder with ml-100k")
@pytest.mark.parametrize(
    "settings",
    [
        {"fanout": -1, "ranks": 1, "parts": 4},  # is compared with a propagation over the whole graph
        {"fanout": 0, "optimizer": "dense"},  # is, too
        {"fanout": 0, "ranks": 2, "optimizer": "dense"},
        {"fanout": 10, "ranks": 2, "loaders": 1},
        {"fanout": 10, "ranks": 2, "optimizer": "dense"},
    ],
)
def test_dgl_trains_on_sampled_parts(settings: dict[str, Any]) -> None:
    pytest.importorskip("dgl")
    case = {"data": "ml-100k", "dim": 16, "layers": 2, "batch": 4096, "seconds": 0.1} | settings
    command = [sys.executable, EXPERIMENTS / "sampled_dgl.py", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["pairs"], found["directed_edges"]) == (80000, 160000)
    assert found["steps"] >= 3
    assert found["step_seconds"] > 0
    assert 0 < found["step_edges"] <= 2 * 2 * 160000
    assert found["step_inputs"] <= 2 * 2625
    assert (found["step_remote_inputs"] > 0) == ("parts" in settings)


@pytest.mark.skipif("GNNREC_DATA" not in os.environ, reason="GNNREC_DATA names no folder with ml-100k")
def test_the_short_form(tmp_path: Path) -> None:
    pytest.importorskip("dgl")
    command = [sys.executable, EXPERIMENTS / "reproduce.py", "sampling", "short=true"]
    said = [subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300) for _ in range(2)]
    assert [done.returncode for done in said] == [0, 0], said[0].stderr
    assert ["measuring" in done.stderr for done in said] == [True, False]
    folder = tmp_path / "outputs" / "studies" / "sampling-short"
    table = (folder / "sampling.md").read_text()
    assert "an epoch takes" in table
    assert table.count("| MODELLED ") == 2 * 2
    assert table.count("| whole graph in DGL |") == 2
    entries = json.loads((folder / "sampling.json").read_bytes())["cases"]
    assert all(entry["conditions"]["machine"]["cpu"] for entry in entries)
    other = {name: value | {"cores": 77} for name, value in entries[0]["conditions"].items() if name == "machine"}
    entries[0]["conditions"] |= other
    (folder / "sampling.json").write_text(json.dumps({"cases": entries}))
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    assert f"| cores | 77, {entries[1]['conditions']['machine']['cores']} |" in (folder / "sampling.md").read_text()
    assert (folder / "sampling-depth.svg").exists()


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_rows_follow_from_what_was_counted(study: Any, kind: str) -> None:
    best = {1: 100, 2: 400}  # batches, by processes
    plan = study.Plan("made-up", 16, (1, 3), (100, 400), (0,), (1, 2), (4,), 1.0)

    def measure(**case: Any) -> dict[str, Any]:
        if "fanout" not in case:
            steps = -(-1000 // case["batch"])  # the last one has what is left
            return {"step_seconds": 0.1 * case["layers"] / case["ranks"], "pairs": 1000, "steps": steps}
        shape = {"pairs": 1000, "nodes": 70, "directed_edges": 2000}
        if case["fanout"] == 0:
            return shape | {"step_edges": 2000 * case["layers"] * case["ranks"], "step_seconds": 0.4}
        fast = case["batch"] == best[case["ranks"]] and case["optimizer"] == kind
        counted = {"step_edges": 50 * case["layers"], "step_inputs": 30, "step_remote_inputs": 20}
        return shape | counted | {"step_seconds": 0.2 if fast else 5.0}

    network = study.Network(8e-3, 0.5)  # 1 MB/s
    rows = list(study.results(plan, network, measure))
    whole = [row for row in rows if row["way"] == study.WHOLE]
    assert [(row["layers"], row["workers"], row["batch"]) for row in whole] == [
        (1, 1, 400), (1, 2, 400), (3, 1, 400), (3, 2, 400), (3, 1, 100), (3, 4, 400),
    ]  # fmt: skip
    assert [row["redundancy"] for row in whole] == [3, 3, 3, 3, 10, 3]  # steps of an epoch
    assert whole[2]["epoch_seconds"] == pytest.approx(3 * 0.3)  # all that were counted, the short one too
    sent = 2 * 3 / 4 * 4 * 1000 / 3  # an all-reduce of a number a pair over four workers
    assert whole[-1]["sent"] == pytest.approx(sent)
    assert whole[-1]["epoch_seconds"] == pytest.approx(3 * (0.3 + sent / 1e6 + 6 * 0.5))
    theirs = [row for row in rows if row["way"] == study.WHOLE_DGL]
    assert [row["redundancy"] for row in theirs] == [2.5, 5, 2.5, 5]  # every process has the graph
    mine = [row for row in rows if row["way"] == "10 neighbours"]
    assert [row["batch"] for row in mine] == [100, 400, 100, 400, 400]  # the fastest for so many processes
    assert mine[3]["redundancy"] == pytest.approx(150 * 2.5 / 2000 / 3)
    assert mine[-1]["redundancy"] == pytest.approx(4 * 150 * 2.5 / 2000 / 3)  # what all four compute
    alone = 5.0  # seconds of a step, in one process with the settings of two
    network = 2 * 3 / 4 * 4 * 70 * 16 / 1e6 + 6 * 0.5 if kind == "dense" else 2 * 20 * 16 * 4 / 1e6 + 2 * 0.5
    assert mine[-1]["epoch_seconds"] == pytest.approx(2.5 * (alone + network))
    table = study.shown(rows)
    assert [cells[5].modelled for cells in table.rows].count(True) == 3
    assert all(cells[5].modelled == (cells[2].value > 2) for cells in table.rows)
    said = list(study.said(plan, rows))
    assert "an epoch takes 6.7, 2.2 times" in said[0]
    assert "an epoch takes 3.3, 1.1 times" in said[1]
    assert "</svg>" in study.drawn(rows).drawn
