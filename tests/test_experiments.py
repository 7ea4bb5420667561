"""The studies run from the command line on a small data set, and say what they found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
