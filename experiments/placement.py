"""Seconds a step and peak memory by where embeddings and moments lie, planned beside measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from output import table

from gnnrec.report.cells import STAMP, Cell, Table
from gnnrec.report.svg import SERIES, Figure, figure, legend
from gnnrec.training import checkpoint
from gnnrec.training.rundir import read_config

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TIMES = ("step, predicted", "step", "transfers of it", "waited for")


def results(jobs: pd.DataFrame, study: dict[str, Any]) -> tuple[list[Table], list[Figure]]:
    """A row a placement; seconds a step."""
    runs = [(Path(folder), json.loads(Path(folder, "summary.json").read_bytes())) for folder in jobs["folder"]]
    rows = [_row(folder, summary, runs[0][0]) for folder, summary in runs]
    note = "State is embeddings and moments; the same: whether those kept at the end are the first row's to the bit."
    units = (
        dict.fromkeys(("device reads", "writes"), "GB/s")
        | dict.fromkeys(("state", "peak memory"), "bytes")
        | dict.fromkeys(TIMES, "seconds")
    )
    return [table("steps", "Steps", rows, units, note)], [_drawn(rows)]


def _row(folder: Path, summary: dict[str, Any], first: Path) -> dict[str, Any]:
    memory, account = read_config(folder).memory, summary.get("memory", {})
    slower, simulated = memory.slower, "simulated" in account
    step = (summary["train_seconds"] - summary["compile_seconds"]) / summary["steps"]
    tensors = {tensor["tensor"]: tensor["bytes"] for tensor in account.get("tensors", ())}
    state = [tensors[name] for name in ("embedding", "exp_avg", "exp_avg_sq") if name in tensors]
    row = {"memory": memory.name, "panel": account.get("panel_columns"), "device reads": slower and slower[0]}
    row |= {"writes": slower and slower[1], "state": sum(state) or None}
    names = ("predicted_seconds", "", "transfer_seconds", "waiting_seconds")
    for column, name in zip(TIMES, names):
        row[column] = Cell(account.get(f"{name}_per_step") if name else step, "seconds", simulated)
    same = _checksums(folder) == _checksums(first)
    row |= {"peak memory": summary["peak_rss_bytes"], "recall@20": summary["metrics"]["test"]["recall@20"]}
    return row | {"the same": "yes" if same else "no"}


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 by file of tensors in a run's last checkpoint."""
    last = checkpoint.latest(folder / "checkpoints")
    assert last is not None
    files = json.loads((last / "manifest.json").read_bytes())["files"]
    return {name: known["sha256"] for name, known in files.items() if name.endswith(".safetensors")}


def _drawn(rows: list[dict[str, Any]]) -> Figure:
    def draw(axes: Axes) -> None:
        labels = [_label(row) for row in rows]
        for offset, name, label in ((-0.2, "step, predicted", "predicted"), (0.2, "step", "measured")):
            places = [number + offset for number in range(len(rows))]
            lengths = [1e3 * (row[name].value or 0) for row in rows]
            axes.barh(places, lengths, 0.38, color=SERIES[offset > 0], label=label)
        axes.set_yticks(range(len(rows)), labels)
        axes.invert_yaxis()
        axes.set(xlabel="ms of a step", ylabel="placement, columns of a panel")
        legend(axes, columns=1)

    return figure("seconds", "A step by placement", draw, 1.4 + 0.32 * len(rows), transparent=False)


def _label(row: dict[str, Any]) -> str:
    label = f"{row['memory']} {row['panel'] or ''}".strip()
    return f"{label}, {row['device reads']} GB/s {STAMP}" if row["device reads"] else label
