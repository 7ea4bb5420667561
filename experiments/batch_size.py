"""What larger batches cost and gain: batch x learning-rate rule x loss, all with the same number of epochs.

    python experiments/batch_size.py                     # GNNREC_DATA names the data sets' folder
    python experiments/batch_size.py --batches 2048 131072 --epochs 3 --out folder

The smallest batch has the recipe's learning rate, which the rules scale for the others. Rows that batch_size.json holds
already are not measured again. Leaves batch_size.json and .png, prints a table; the test part chooses nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import study
from rich.console import Console
from rich.table import Table

from gnnrec.data import dataset
from gnnrec.storage import atomic_write
from gnnrec.training.trainer import DivergedError

LOSSES = {
    "bpr": ["experiment=published_lightgcn"],
    "softmax": ["experiment=large_batch", "optimizer.lr=0.012"],  # large_batch's own, by the square root
}
RULES = ("none", "sqrt", "linear")
DIVERGED = "diverged"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", nargs="+", type=int, default=[2048, 16384, 131072, 2**30], help="2^30 is all")
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--data", default="gowalla")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more overrides")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    base = [f"data={options.data}", *options.set]
    data = dataset.load(study.composed([*base, "data.valid_ratio=0"]).data)
    file = options.out / "batch_size.json"
    asked = {"data": options.data, "epochs": options.epochs, "set": options.set, "base_batch": min(options.batches)}
    result: dict[str, Any] = json.loads(file.read_bytes()) if file.exists() else {}
    if any(result.get(name) != value for name, value in asked.items()):
        result = asked | {"conditions": study.conditions(), "runs": []}
    options.out.mkdir(parents=True, exist_ok=True)
    for loss, batch, rule in grid(options.losses, options.batches, len(data.train)):
        names = {"loss": loss, "batch": batch, "rule": rule}
        if any(names.items() <= run.items() for run in result["runs"]):
            continue
        settings = [f"trainer.batch_size={batch}", f"trainer.epochs={options.epochs}", f"trainer.lr_scaling={rule}"]
        if rule != "none":
            settings.append(f"trainer.lr_base_batch={min(options.batches)}")
        try:
            run = study.curve([*LOSSES[loss], *base, *settings], data)
        except DivergedError as error:
            run = {"epochs": [], DIVERGED: str(error)}
        result["runs"].append(names | run)
        atomic_write(file, json.dumps(result, indent=1).encode())
    draw(result, options.out / "batch_size.png")
    show(result)
    return 0


def grid(losses: Sequence[str], batches: Sequence[int], interactions: int) -> Iterator[tuple[str, int, str]]:
    """Losses x batches x rules; for the smallest batch the rules are one."""
    for loss in losses:
        for batch in batches:
            for rule in RULES if batch > min(batches) else RULES[:1]:
                yield loss, min(batch, interactions), rule


def show(result: dict[str, Any]) -> None:
    """A line a run."""
    table = Table(title=f"{result['data']}, {result['epochs']} epochs each")
    columns = ["loss", "batch", "rule", "steps", "s", "ms a step", "recall@20", "ndcg@20"]
    for name in columns:
        table.add_column(name, justify="left" if name in ("loss", "rule") else "right")
    for run in result["runs"]:
        names = [run["loss"], f"{run['batch']:,}", run["rule"]]
        if DIVERGED in run:
            table.add_row(*names, DIVERGED)
            continue
        last = run["epochs"][-1]
        seconds = last["train_seconds"] - run["compile_seconds"]
        metrics = [f"{last['metrics'][name]:.4f}" for name in columns[-2:]]
        table.add_row(*names, str(run["steps"]), f"{seconds:.1f}", f"{1e3 * seconds / run['steps']:.0f}", *metrics)
    Console(width=120).print(table)


def draw(result: dict[str, Any], file: Path) -> None:
    """Accuracy and seconds over the batch, a line a loss and rule."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    runs = [run for run in result["runs"] if DIVERGED not in run]
    for number, loss in enumerate(dict.fromkeys(run["loss"] for run in runs)):
        for style, rule in zip(("-", "--", ":"), RULES):
            mine = [run for run in runs if run["loss"] == loss and run["rule"] in (rule, RULES[0])]
            mine = [run for run in mine if run["rule"] == rule or run["batch"] == min(r["batch"] for r in runs)]
            batches, last = [run["batch"] for run in mine], [run["epochs"][-1] for run in mine]
            line = {"color": f"C{number}", "linestyle": style, "marker": ".", "label": f"{loss}, {rule}"}
            axes[0].plot(batches, [record["metrics"]["recall@20"] for record in last], **line)
            axes[1].plot(batches, [record["train_seconds"] for record in last], **line)
    for axis, label in zip(axes, ("recall@20", "seconds of training")):
        axis.set(xlabel="interactions in a batch", ylabel=label, xscale="log")
    axes[1].set(yscale="log")
    axes[0].legend(fontsize="small")
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
