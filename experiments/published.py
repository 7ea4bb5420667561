"""Accuracy of models by data set, mean and deviation over seeds, beside the published figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd
from output import table

from gnnrec.report.cells import Table
from gnnrec.report.svg import INK, SERIES, Figure, figure, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS = ("recall@20", "ndcg@20")


def results(jobs: pd.DataFrame, study: dict[str, Any]) -> tuple[list[Table], list[Figure]]:
    """A row a data set and model; recall@20 by data set."""
    rows = list(_rows(jobs, study["published"]))
    note = "Means over seeds; the deviation is the standard deviation of a sample. Seconds are of training alone."
    shown = table("accuracy", "Test part", rows, {"training": "seconds", "peak memory": "bytes"}, note)
    names = dict.fromkeys(row["data"] for row in rows)
    return [shown], [_drawn(name, [row for row in rows if row["data"] == name]) for name in names]


def _rows(jobs: pd.DataFrame, published: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for (data, model), runs in jobs.groupby(["data", "sweep"], sort=False):
        known = published[model]
        row = {"data": data, "model": model, "seeds": len(runs)}
        for number, name in enumerate(METRICS):
            values, figures = runs[f"test_{name}"].astype(float), known.get(data)
            row[name] = values.mean()
            row[f"{name}, deviation"] = values.std() if len(runs) > 1 else None
            row[f"{name}, published"] = figures[number] if figures else None
            row[f"{name}, difference"] = values.mean() - figures[number] if figures else None
        row["training"] = float(runs["train_seconds"].mean())
        row["peak memory"] = int(runs["peak_rss_bytes"].max())
        yield row | {"published by": known["source"] if data in known else None}


def _drawn(data: str, rows: list[dict[str, Any]]) -> Figure:
    name = METRICS[0]

    def draw(axes: Axes) -> None:
        models, values = [row["model"] for row in rows], [row[name] for row in rows]
        deviations = [row[f"{name}, deviation"] or 0 for row in rows]
        axes.barh(models, values, 0.6, color=SERIES[0], xerr=deviations, ecolor=INK, label="mean")
        known = [(row[f"{name}, published"], row["model"]) for row in rows if row[f"{name}, published"]]
        if known:
            axes.plot(*zip(*known, strict=True), "|", color=INK, markersize=16, markeredgewidth=2, label="published")
        axes.invert_yaxis()
        axes.set_xlabel(name)
        legend(axes)

    return figure(data, f"Test {name} on {data}", draw, 1.3 + 0.32 * len(rows), transparent=False)
