"""Accuracy beside what is attainable, time and memory over the size of the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from output import table

from gnnrec.report.cells import Table
from gnnrec.report.svg import Figure, figure, legend, line, logarithmic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS = ("recall@20", "ndcg@20")
NOTE = "Means over seeds. What is attainable is known of generated data: no model can rank better."


def results(jobs: pd.DataFrame, study: dict[str, Any]) -> tuple[list[Table], list[Figure]]:
    """A row a size and recipe; the share of the attainable recall, and seconds, over users."""
    rows = []
    for (_, recipe), runs in jobs.groupby(["sweep", "experiment"], sort=False):
        summaries = [json.loads(Path(folder, "summary.json").read_bytes()) for folder in runs["folder"]]
        data = summaries[0]["data"]
        row = {name: data[name] for name in ("users", "items", "train")} | {"recipe": recipe, "seeds": len(runs)}
        for name in METRICS:
            best = sum(summary["data"]["attainable"][name] for summary in summaries) / len(summaries)
            found = runs[f"test_{name}"].mean()
            row |= {name: found, f"{name}, attainable": best, f"{name}, share": found / best}
        row |= {"steps": summaries[0]["steps"], "training": runs["train_seconds"].mean()}
        rows.append(row | {"peak memory": int(runs["peak_rss_bytes"].max())})
    units = {"training": "seconds", "peak memory": "bytes"}
    drawn = {f"{METRICS[0]}, share": "Share of the attainable recall@20", "training": "Seconds of training"}
    return [table("sizes", "Test part by size", rows, units, NOTE)], [_drawn(rows, *which) for which in drawn.items()]


def _drawn(rows: list[dict[str, Any]], name: str, title: str) -> Figure:
    def draw(axes: Axes) -> None:
        for number, recipe in enumerate(dict.fromkeys(row["recipe"] for row in rows)):
            mine = [row for row in rows if row["recipe"] == recipe]
            axes.plot([row["users"] for row in mine], [row[name] for row in mine], **line(number, f" {recipe}"))
        axes.set_xlabel("users")
        logarithmic(axes, *("x", "y") if name == "training" else ("x",))
        if name != "training":
            axes.set_ylim(0, 1.05)
        legend(axes)

    return figure(name.partition(",")[0], f"{title} by users", draw, transparent=False)
