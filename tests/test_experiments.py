"""The studies run from the command line on a small data set, and say what they found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from made_up_tiers import disk, dram

from gnnrec.training import placing

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
SMALL = [
    "data.synthetic.num_users=60",
    "data.synthetic.num_items=50",
    "data.synthetic.num_interactions=600",
    "data.synthetic.communities=2",
    "model.dim=8",
]


def test_batch_sizes_of_a_small_data_set(tmp_path):
    command = [sys.executable, EXPERIMENTS / "batch_size.py", "--data=synthetic", "--out", tmp_path, "--epochs=2"]
    command += ["--batches", "64", str(2**30), "--set", *SMALL]
    for _ in range(2):  # the second time it only shows
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "softmax" in done.stdout
    result = json.loads((tmp_path / "batch_size.json").read_bytes())
    found = [(run["loss"], run["rule"]) for run in result["runs"]]
    assert found == [(loss, rule) for loss in ("bpr", "softmax") for rule in ("none", "none", "sqrt", "linear")]
    whole = [run for run in result["runs"] if run["batch"] > 64]
    assert all(run["steps"] == 2 and len(run["epochs"]) == 2 for run in whole)
    assert (tmp_path / "batch_size.png").stat().st_size > 1000


def test_other_runs_stay(tmp_path, monkeypatch):
    """Each is held to the published figures of its model, from where no later evaluation misses them."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import study
    import time_to_accuracy

    recalls = {"large_batch_bpr": [0.18, 0.19, 0.18, 0.19], "large_batch_ngcf": [0.1, 0.16, 0.16, 0.16]}

    def curve(overrides, data, every):
        recall = recalls[overrides[0].partition("=")[2]]
        records = [
            {"epoch": n * every, "train_seconds": 10.0 * n, "metrics": {"recall@20": r, "ndcg@20": r}}
            for n, r in enumerate(recall, 1)
        ]
        result = {"overrides": list(overrides), "epochs": records, "steps": 8}
        return result | {"start_seconds": 1.0, "compile_seconds": 3.0}

    monkeypatch.setattr(study, "curve", curve)
    monkeypatch.setattr(time_to_accuracy.dataset, "load", lambda config: None)
    for recipe, seeds in (("large_batch_bpr", "0"), ("large_batch_ngcf", "0"), ("large_batch_bpr", "1")) * 2:
        given = ["--recipes", recipe, "--seeds", seeds, "--every", "5", "--out", str(tmp_path)]
        assert time_to_accuracy.main(given) == 0
    runs = json.loads((tmp_path / "time_to_accuracy.json").read_bytes())["runs"]
    held = {"epoch": 20, "seconds": 41.0, "without_compilation": 38.0}
    assert [(run["recipe"], run["seed"], run["held"]) for run in runs] == [
        ("large_batch_bpr", 0, held),
        ("large_batch_ngcf", 0, {"epoch": 10, "seconds": 21.0, "without_compilation": 18.0}),
        ("large_batch_bpr", 1, held),
    ]
    assert {run["every"] for run in runs} == {5}
    assert (tmp_path / "time_to_accuracy.png").stat().st_size > 1000


def test_scale_measures_what_it_planned(tmp_path, monkeypatch, data_root):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import scale

    monkeypatch.setattr(placing, "discover", lambda folders: [dram(), *map(disk, folders)])
    monkeypatch.setattr(placing.calibrate, "calibrated", list)
    users, items, interactions = scale.GOWALLA
    shape = {"users": users, "items": items, "interactions": interactions, "dim": 16, "batch": 512}
    rows = []
    for memory in ("dram", "direct", "stream"):
        case = {"series": "limits", "size": 1, **shape, "memory": memory, "limit_bytes": None}
        rows.append(case | json.loads(json.dumps(scale.measured(case, tmp_path, 1))))
    assert [row["plan"]["mode"] for row in rows] == ["dram", "direct", "stream"]
    assert all(row["seconds_per_step"] > 0 and len(row["steps_seconds"]) == 1 for row in rows)
    assert rows[2]["transfer_seconds_per_step"] > 0
    assert sorted(path.name for path in (tmp_path).iterdir()) == [".gnnrec-tier.lock"]
    scale.show([*rows, rows[0] | {"failed": "exit code 2"}])
