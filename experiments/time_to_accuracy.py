"""Seconds of training until the published accuracy is held, for recipes and seeds.

    python experiments/reproduce.py time_to_accuracy              # GNNREC_DATA names the data sets' folder
    python experiments/reproduce.py time_to_accuracy recipes=fastest seeds=0 every=2 out=folder

The test part is evaluated now and then, which is neither counted nor used: every recipe ends at its last epoch. Runs
that time_to_accuracy.json holds already are not made again, and those of other recipes and seeds stay in it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import curves
import output

from gnnrec.data import dataset
from gnnrec.errors import ConfigError
from gnnrec.report.cells import Table
from gnnrec.report.svg import INK, Figure, figure, legend, line, logarithmic
from gnnrec.storage import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIGHTGCN = {"recall@20": 0.1830, "ndcg@20": 0.1554}  # on Gowalla (He et al. 2020, table 4)
NGCF = {"recall@20": 0.1570, "ndcg@20": 0.1327}  # the same table


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", required=True, help="of conf/experiment")
    parser.add_argument("--seeds", nargs="+", type=output.positive(int, zero=True), required=True)
    parser.add_argument(
        "--data", required=True, help="gowalla, whose figures are the target; others show that it works"
    )
    parser.add_argument(
        "--every", type=output.positive(int), help="epochs between two evaluations; by default a twelfth of all"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more overrides")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    base = [f"data={options.data}", *options.set]
    data = dataset.load(curves.composed([*base, "data.valid_ratio=0"]).data)
    file = output.folder(options.out) / "time_to_accuracy.json"
    of = (output.earlier(file, "runs") or {}).get("data", options.data)
    if of != options.data:
        remedy = f"Choose another out for data={options.data}"
        raise ConfigError(f"holds runs of data={of}", where=str(file), remedy=remedy)
    for recipe in options.recipes:
        target = NGCF if recipe.endswith("ngcf") else LIGHTGCN
        for seed in options.seeds:
            overrides = [f"experiment={recipe}", *base, f"seed={seed}"]
            every = options.every or evaluated(overrides)
            described = {"recipe": recipe, "seed": seed, "every": every, "target": target}
            if any((described | {"overrides": overrides}).items() <= run.items() for run in runs_in(file)):
                continue
            run = curves.curve(overrides, data, every)
            described["conditions"] = output.conditions_here()
            result = with_run(file, options.data, described | run | {"held": held(run, target)})
            atomic_write(file, json.dumps(result, indent=1).encode())
            last = run["epochs"][-1]
            print(f"{recipe}, seed {seed}: {last['metrics']} after {last['train_seconds']:.1f} s", flush=True)
    result = {"data": options.data, "runs": runs_in(file)}
    notes = [output.SHORT] if options.data == "synthetic" else []
    notes += ["What is held are Gowalla's figures, on other data."] if options.data != "gowalla" else []
    output.write(options.out, "time_to_accuracy", tables(result), figures(result), notes=notes)
    return 0


def evaluated(overrides: Sequence[str]) -> int:
    """Epochs between two of some twelve evaluations."""
    trainer = curves.composed(overrides).trainer
    assert trainer is not None
    return max(1, (trainer.epochs or 1) // 12)


def runs_in(file: Path) -> list[dict[str, Any]]:
    """The runs that the file holds."""
    runs: list[dict[str, Any]] = (output.earlier(file, "runs") or {"runs": []})["runs"]
    return runs


def with_run(file: Path, data: str, run: dict[str, Any]) -> dict[str, Any]:
    """What the file holds with this run, in place of an older one of the same overrides."""
    return {"data": data, "runs": [other for other in runs_in(file) if other["overrides"] != run["overrides"]] + [run]}


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


def tables(result: dict[str, Any]) -> list[Table]:
    """A row a recipe, means over seeds; the conditions of all runs."""
    rows = []
    everything = result["runs"]
    for recipe in dict.fromkeys(named(run, everything) for run in everything):
        runs = [run for run in everything if named(run, everything) == recipe]
        last = [run["epochs"][-1] for run in runs]
        row: dict[str, Any] = {"recipe": recipe, "seeds": len(runs)}
        row |= {name: mean(record["metrics"][name] for record in last) for name in LIGHTGCN}
        row |= {"steps": runs[0]["steps"]}
        row["training"] = mean(run["start_seconds"] + record["train_seconds"] for run, record in zip(runs, last))
        reached = [run["held"] for run in runs if run["held"]]
        row |= {"held by": f"{len(reached)} of {len(runs)} seeds"}
        if len(reached) == len(runs):
            row |= {"until held": mean(held["seconds"] for held in reached)}
            row |= {"without compilation": mean(held["without_compilation"] for held in reached)}
        rows.append(row)
    units = dict.fromkeys(("training", "until held", "without compilation"), "seconds")
    data = " ".join([result["data"], *shared(everything)])
    title = f"{data}: means over seeds; held: both figures published for Gowalla"
    conditions = output.condition_table(run["conditions"] for run in result["runs"])
    return [output.table("recipes", title, rows, units), conditions]


def changed(run: dict[str, Any]) -> list[str]:
    """What was changed of its recipe."""
    known = f"experiment={run['recipe']}", f"seed={run['seed']}"
    return [each for each in run["overrides"] if each not in known and not each.startswith("data=")]


def shared(runs: Sequence[dict[str, Any]]) -> list[str]:
    """What was changed of all."""
    return [each for each in changed(runs[0]) if all(each in changed(run) for run in runs)]


def named(run: dict[str, Any], runs: Sequence[dict[str, Any]]) -> str:
    """The recipe, and what was changed of it but not of all."""
    return " ".join([run["recipe"], *(each for each in changed(run) if each not in shared(runs))])


def figures(result: dict[str, Any]) -> list[Figure]:
    """Accuracy over seconds, a line a run, a look a recipe."""
    runs = result["runs"]
    recipes = list(dict.fromkeys(named(run, runs) for run in runs))

    def drawn(name: str) -> Figure:
        def draw(axes: Axes) -> None:
            for run in runs:
                seconds = [run["start_seconds"] + record["train_seconds"] for record in run["epochs"]]
                first = next(other for other in runs if named(other, runs) == named(run, runs))
                label = f" {named(run, runs)}" if run is first else "_"
                values = [record["metrics"][name] for record in run["epochs"]]
                axes.plot(seconds, values, **line(recipes.index(named(run, runs)), label))
            for published, model, dashes in ((LIGHTGCN, "LightGCN", "--"), (NGCF, "NGCF", ":")):
                axes.axhline(published[name], color=INK, alpha=0.5, linestyle=dashes, label=f"{model} as published")
            axes.set_xlabel("seconds of training")
            logarithmic(axes, "x")
            legend(axes, columns=1)

        return figure(name.partition("@")[0], f"Test {name} by seconds", draw, 4.2, transparent=False)

    return [drawn(name) for name in LIGHTGCN]


if __name__ == "__main__":
    sys.exit(main())
