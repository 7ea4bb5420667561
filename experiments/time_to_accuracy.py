"""Seconds of training until the published accuracy is held, for recipes and seeds.

    python experiments/time_to_accuracy.py                                  # GNNREC_DATA names the data sets' folder
    python experiments/time_to_accuracy.py --recipes large_batch_bpr --every 25    # epochs between two evaluations
    python experiments/time_to_accuracy.py --recipes fastest --seeds 0 --out folder

The test part is evaluated now and then, which is neither counted nor used: every recipe ends at its last epoch. Leaves
time_to_accuracy.json and .png, in which runs of other recipes and seeds stay, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
import study
from rich.console import Console
from rich.table import Table

from gnnrec.data import dataset
from gnnrec.storage import atomic_write

LIGHTGCN = {"recall@20": 0.1830, "ndcg@20": 0.1554}  # on Gowalla (He et al. 2020, table 4)
NGCF = {"recall@20": 0.1570, "ndcg@20": 0.1327}  # the same table


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["large_batch", "fastest"], help="of conf/experiment")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data", default="gowalla", choices=["gowalla"], help="whose published figures are the target")
    parser.add_argument("--every", type=int, default=1, help="epochs between two evaluations")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more overrides")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    base = [f"data={options.data}", *options.set]
    data = dataset.load(study.composed([*base, "data.valid_ratio=0"]).data)
    file = options.out / "time_to_accuracy.json"
    options.out.mkdir(parents=True, exist_ok=True)
    for recipe in options.recipes:
        target = NGCF if recipe.endswith("ngcf") else LIGHTGCN
        for seed in options.seeds:
            run = study.curve([f"experiment={recipe}", *base, f"seed={seed}"], data, options.every)
            described = {"recipe": recipe, "seed": seed, "every": options.every, "target": target}
            described["conditions"] = study.conditions()
            result = with_run(file, options.data, described | run | {"held": held(run, target)})
            atomic_write(file, json.dumps(result, indent=1).encode())
            last = run["epochs"][-1]
            print(f"{recipe}, seed {seed}: {last['metrics']} after {last['train_seconds']:.1f} s", flush=True)
    draw(result, file.with_suffix(".png"))
    show(result)
    return 0


def with_run(file: Path, data: str, run: dict[str, Any]) -> dict[str, Any]:
    """What the file holds with this run, in place of an older one of the same overrides."""
    known = json.loads(file.read_text())["runs"] if file.exists() else []
    return {"data": data, "runs": [other for other in known if other["overrides"] != run["overrides"]] + [run]}


def held(run: dict[str, Any], target: dict[str, float]) -> dict[str, float] | None:
    """When both targets are reached and never missed again: epoch, and seconds with and without compilation."""
    found = None
    for record in reversed(run["epochs"]):
        if any(record["metrics"][name] < least for name, least in target.items()):
            break
        found = record
    if found is None:
        return None
    seconds = run["start_seconds"] + found["train_seconds"]
    return {"epoch": found["epoch"], "seconds": seconds, "without_compilation": seconds - run["compile_seconds"]}


def show(result: dict[str, Any]) -> None:
    """A line a recipe: means over seeds."""
    table = Table(title=f"{result['data']}: means over seeds; held: both published figures")
    columns = ["recipe", "seeds", "recall@20", "ndcg@20", "steps", "s in all", "s until held", "without compilation"]
    for name in columns:
        table.add_column(name)
    for recipe in dict.fromkeys(map(named, result["runs"])):
        runs = [run for run in result["runs"] if named(run) == recipe]
        last = [run["epochs"][-1] for run in runs]
        metrics = [f"{mean(record['metrics'][name] for record in last):.4f}" for name in ("recall@20", "ndcg@20")]
        whole = mean(run["start_seconds"] + record["train_seconds"] for run, record in zip(runs, last))
        reached = [run["held"] for run in runs if run["held"]]
        times = [f"{mean(h[name] for h in reached):.1f}" for name in ("seconds", "without_compilation") if reached]
        if len(reached) < len(runs):
            times = [f"{len(reached)} of {len(runs)} seeds", *times[1:]]
        table.add_row(recipe, str(len(runs)), *metrics, str(runs[0]["steps"]), f"{whole:.1f}", *times)
    Console(width=120).print(table)


def named(run: dict[str, Any]) -> str:
    """The recipe, and what was changed of it."""
    known = f"experiment={run['recipe']}", f"seed={run['seed']}"
    changed = [each for each in run["overrides"] if each not in known and not each.startswith("data=")]
    return " ".join([run["recipe"], *changed])


def draw(result: dict[str, Any], file: Path) -> None:
    """Accuracy over seconds, a line a run."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    recipes = list(dict.fromkeys(map(named, result["runs"])))
    for axis, name in zip(axes, LIGHTGCN):
        for run in result["runs"]:
            seconds = [run["start_seconds"] + record["train_seconds"] for record in run["epochs"]]
            first = next(other for other in result["runs"] if named(other) == named(run))
            label = named(run) if run is first else None
            values = [record["metrics"][name] for record in run["epochs"]]
            axis.plot(seconds, values, color=f"C{recipes.index(named(run))}", label=label, marker=".")
        for published, model, style in ((LIGHTGCN, "LightGCN", "--"), (NGCF, "NGCF", ":")):
            axis.axhline(published[name], color="gray", linestyle=style, label=f"{model} as published")
        axis.set(xlabel="seconds of training", ylabel=name)
    axes[0].legend()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
