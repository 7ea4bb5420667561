"""What larger batches cost and gain: batch x learning-rate rule x loss, all with the same number of epochs.

    python experiments/reproduce.py batch_size                       # GNNREC_DATA names the data sets' folder
    python experiments/reproduce.py batch_size batches=[2048,131072] epochs=3 out=folder

The smallest batch has the recipe's learning rate, which the rules scale for the others. Rows that batch_size.json holds
already are not measured again. The test part chooses nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import curves
import output

from gnnrec.data import dataset
from gnnrec.errors import ConfigError
from gnnrec.report.cells import Table
from gnnrec.report.svg import Figure, figure, legend, line, logarithmic
from gnnrec.storage import atomic_write
from gnnrec.training.trainer import DivergedError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSSES = {
    "bpr": ["experiment=published_lightgcn"],
    # large_batch's own learning rate, by the square root; over all items, since negatives are shared by a batch.
    "softmax": ["experiment=large_batch", "optimizer.lr=0.012", "loss.negatives=null", "loss.popularity=null"],
}
RULES = ("none", "sqrt", "linear")
DIVERGED = "diverged"
METRICS = ("recall@20", "ndcg@20")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--batches", nargs="+", type=output.positive(int), required=True, help="of interactions, at most all"
    )
    parser.add_argument("--losses", nargs="+", required=True, choices=list(LOSSES))
    parser.add_argument("--epochs", type=output.positive(int), required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more overrides")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    base = [f"data={options.data}", *options.set]
    data = dataset.load(curves.composed([*base, "data.valid_ratio=0"]).data)
    file = output.folder(options.out) / "batch_size.json"
    asked = {"data": options.data, "epochs": options.epochs, "set": options.set, "base_batch": min(options.batches)}
    result = output.earlier(file, "runs") or asked | {"conditions": output.conditions_here(), "runs": []}
    for name, value in asked.items():
        if result.get(name) != value:
            found = f"holds runs with {name} {result.get(name)}, not {value}"
            raise ConfigError(found, where=str(file), remedy="Give the same options to go on, or choose another out")
    for loss, batch, rule in grid(options.losses, options.batches, len(data.train)):
        names = {"loss": loss, "batch": batch, "rule": rule}
        if any(names.items() <= run.items() for run in result["runs"]):
            continue
        settings = [f"trainer.batch_size={batch}", f"trainer.epochs={options.epochs}", f"trainer.lr_scaling={rule}"]
        if rule != "none":
            settings.append(f"trainer.lr_base_batch={min(options.batches)}")
        try:
            run = curves.curve([*LOSSES[loss], *base, *settings], data)
        except DivergedError as error:
            run = {"epochs": [], DIVERGED: str(error)}
        result["runs"].append(names | run)
        atomic_write(file, json.dumps(result, indent=1).encode())
    notes = [output.SHORT] if options.data == "synthetic" else []
    output.write(options.out, "batch_size", tables(result), figures(result), notes=notes)
    return 0


def grid(losses: Sequence[str], batches: Sequence[int], interactions: int) -> Iterator[tuple[str, int, str]]:
    """Losses x batches x rules; for the smallest batch the rules are one."""
    for loss in losses:
        for batch in batches:
            for rule in RULES if batch > min(batches) else RULES[:1]:
                yield loss, min(batch, interactions), rule


def tables(result: dict[str, Any]) -> list[Table]:
    """A row a run, and the conditions of all."""
    rows = []
    for run in result["runs"]:
        row = {name: run[name] for name in ("loss", "batch", "rule")}
        if DIVERGED in run:
            rows.append(row | {"note": DIVERGED})
            continue
        last = run["epochs"][-1]
        seconds = training(run)
        row |= {"steps": run["steps"], "training": seconds, "a step": seconds / run["steps"]}
        rows.append(row | {name: last["metrics"][name] for name in METRICS})
    units = dict.fromkeys(("training", "a step"), "seconds")
    title = f"{result['data']}, {result['epochs']} epochs each, without compilation"
    return [output.table("runs", title, rows, units), output.condition_table([result["conditions"]])]


def training(run: dict[str, Any]) -> float:
    """Seconds, without compilation."""
    seconds: float = run["epochs"][-1]["train_seconds"] - run["compile_seconds"]
    return seconds


def figures(result: dict[str, Any]) -> list[Figure]:
    """Accuracy and seconds over the batch, a line a loss and rule."""
    runs = [run for run in result["runs"] if DIVERGED not in run]
    lines = {}
    for loss in dict.fromkeys(run["loss"] for run in runs):
        own = [run for run in runs if run["loss"] == loss]
        least = min(run["batch"] for run in own)
        for rule in RULES:
            lines[f"{loss}, {rule}"] = [run for run in own if run["rule"] == rule or run["batch"] == least]

    def drawn(name: str, title: str, value: Callable[[dict[str, Any]], float], *logs: str) -> Figure:
        def draw(axes: Axes) -> None:
            for number, (label, mine) in enumerate(lines.items()):
                axes.plot([run["batch"] for run in mine], list(map(value, mine)), **line(number, f" {label}"))
            axes.set_xlabel("interactions in a batch")
            logarithmic(axes, *logs)
            legend(axes)

        return figure(name, title, draw, 3.6, transparent=False)

    return [
        drawn("recall", "Test recall@20 by batch", lambda run: run["epochs"][-1]["metrics"]["recall@20"], "x"),
        drawn("seconds", "Seconds of training by batch", training, "x", "y"),
    ]


if __name__ == "__main__":
    sys.exit(main())
