"""Accuracy, time and memory over the number of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from output import table

from gnnrec.report.cells import Table
from gnnrec.report.svg import Figure, figure, legend, line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LAYERS, METRICS = "model.layers", ("recall@20", "ndcg@20")


def results(jobs: pd.DataFrame, study: dict[str, Any]) -> tuple[list[Table], list[Figure]]:
    """A row a model and depth, means over as many seeds as there are; accuracy and seconds over depth."""
    rows, published = [], study["published"]
    for (data, model, layers), runs in jobs.groupby(["data", "sweep", LAYERS], sort=False):
        known = published[model].get(layers) if data == "gowalla" else None
        row = {"data": data, "model": model, "layers": layers, "seeds": len(runs)}
        for number, name in enumerate(METRICS):
            row |= {name: runs[f"test_{name}"].mean(), f"{name}, published": known and known[number]}
        rows.append(row | {"training": runs["train_seconds"].mean(), "peak memory": int(runs["peak_rss_bytes"].max())})
    units = {"training": "seconds", "peak memory": "bytes"}
    shown = table("layers", "Test part by layers", rows, units, f"Published by {published['source']}.")
    titles = {"recall@20": "Test recall@20", "training": "Seconds of training"}
    return [shown], [_drawn(rows, name, title) for name, title in titles.items()]


def _drawn(rows: list[dict[str, Any]], name: str, title: str) -> Figure:
    def draw(axes: Axes) -> None:
        for number, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
            mine = [row for row in rows if row["model"] == model]
            axes.plot([row["layers"] for row in mine], [row[name] for row in mine], **line(number, f" {model}"))
        axes.set_xlabel("layers")
        axes.set_xticks(sorted({row["layers"] for row in rows}))
        legend(axes)

    return figure(name.partition("@")[0], f"{title} by layers", draw, transparent=False)
