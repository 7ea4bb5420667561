"""What a step costs as graphs grow past the memory: planned beside measured, in DRAM, mapped from files and streamed.

    python experiments/reproduce.py scale series=limits  # a quarter of the state fits: streaming beside DRAM
    python experiments/reproduce.py scale series=optane  # up to 15.2 M users x 43.5 M items, 45 GB of state in files
    python experiments/reproduce.py scale series=limits sizes=4 folder=/mnt/nvme out=folder

Graphs are fractal expansions of Gowalla (GNNREC_DATA names the data sets' folder), LightGCN with BPR and Adam on top.
Every measurement is a process of its own, so that its peak memory is known; rows that scale.json holds already are not
measured again. `gnnrec calibrate` comes first.

Largest graph: Hu et al. 2022, "Analysis and Optimization of GNN-Based Recommender Systems on Persistent Memory".
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import curves
import output
import torch

from gnnrec.config import MemoryConfig, TrainConfig
from gnnrec.data import dataset, fractal
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.memtier.account import account
from gnnrec.memtier.demands import HeldOut
from gnnrec.report.cells import Table
from gnnrec.report.svg import Figure, figure, legend, line, logarithmic
from gnnrec.storage import atomic_write
from gnnrec.training import placing, runlog
from gnnrec.training.trainer import Trainer
from gnnrec.units import in_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GOWALLA = 29_858, 40_981, 810_128  # users, items, training interactions
LARGEST = 15_200_000, 43_500_000, 228_600_000
SIZES = {"limits": [4, 16, 48], "optane": [64, 16, 4, 1]}  # times Gowalla; a share of the largest
TINY = 60, 50, 600  # of a made-up log
STATE = 3 * 4  # bytes a number of the embedding: itself and two moments
NOTHING = HeldOut(valid=0, test=0, k=1)  # is ranked


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", nargs="+", choices=list(SIZES), required=True)
    parser.add_argument(
        "--sizes", nargs="+", type=output.positive(int), help="times Gowalla, or the largest divided by it"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "gnnrec-scale", help="of the files"
    )
    parser.add_argument("--steps", type=output.positive(int), default=5)
    parser.add_argument("--quick", action="store_true", help="tiny graphs: whether it works")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # a case, in a process of its own
    options = parser.parse_args(arguments)
    if options.one is not None:
        print(json.dumps(measured(options.one, options.folder, options.steps)))
        return 0
    file = output.folder(options.out) / "scale.json"
    result = output.earlier(file, "rows") or {"rows": []}
    result["conditions"] = output.conditions_here()
    for case in (case for series in options.series for case in cases(series, options)):
        result["rows"] = [row for row in result["rows"] if "failed" not in row]
        if any(case.items() <= row.items() for row in result["rows"]):
            continue
        print(f"measuring {case}", flush=True)
        result["rows"].append(case | in_process(case, options))
        atomic_write(file, (json.dumps(result, indent=1) + "\n").encode())
    notes = [output.SHORT] if options.quick else []
    output.write(options.out, "scale", tables(result), figures(result), notes=notes)
    return int(any("failed" in row for row in result["rows"]))


def cases(series: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is measured, each as keys and values that name it."""
    for size in options.sizes or SIZES[series]:
        if options.quick:
            users, items, interactions = (count * size for count in TINY)
            shape = {"users": users, "items": items, "interactions": interactions, "dim": 32, "batch": 256}
            for memory in ("dram", "direct", "stream"):
                yield {"series": series, "size": size, **shape, "memory": memory, "limit_bytes": None, "base": "tiny"}
        elif series == "limits":
            users, items, interactions = (count * size for count in GOWALLA)
            shape = {"users": users, "items": items, "interactions": interactions, "dim": 256, "batch": 8192}
            limit = (users + items) * shape["dim"] * STATE // 4
            for memory, most in (("dram", None), ("direct", None), ("stream", limit)):
                yield {"series": series, "size": size, **shape, "memory": memory, "limit_bytes": most}
        else:
            users, items, interactions = (count // size for count in LARGEST)
            shape = {"users": users, "items": items, "interactions": interactions, "dim": 64, "batch": 131072}
            yield {"series": series, "size": size, **shape, "memory": "stream", "limit_bytes": 17 << 30}


def in_process(case: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """A measurement in a fresh process; one that fails says why."""
    command = [
        sys.executable,
        __file__,
        "--series",
        case["series"],
        "--one",
        json.dumps(case),
        "--folder",
        str(options.folder),
    ]
    done = subprocess.run([*command, "--steps", str(options.steps)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"failed": f"exit code {done.returncode}"}
    text = done.stdout.splitlines()[-1].replace(str(options.folder.absolute()), "files")  # whatever it is called
    found: dict[str, Any] = json.loads(text)
    return found


def measured(case: dict[str, Any], folder: Path, steps: int) -> dict[str, Any]:
    """Graph, plan, a few steps; seconds of each step but the first, which finds caches and files as they were left."""
    graph, graph_seconds = expansion(case)
    config = settings(case, folder)
    tier = folder / "tier"
    if case["memory"] == "dram":  # planned all the same, to compare
        auto = replace(config, memory=MemoryConfig(name="auto"))
        places = placing.planned(auto, graph, held_out=NOTHING, folder=tier)
        assert places.plan is not None
        if places.plan.mode != "dram":
            raise SystemExit("the machine has too little memory for this case")
    else:
        places = placing.planned(config, graph, held_out=NOTHING, folder=tier)
    assert places.plan is not None
    plan = places.plan
    print(f"plan: {plan.mode}, panel {plan.panel}, buffers {in_bytes(plan.buffer_bytes)}", file=sys.stderr)
    trainer = None
    try:
        started = time.perf_counter()
        model, graph = placing.build(config, graph, places, torch.device("cpu"), tier)
        fill_seconds = time.perf_counter() - started
        assert config.trainer is not None
        assert config.loss is not None
        assert config.optimizer is not None
        trainer = Trainer(model, config.trainer, config.loss, config.optimizer, places=places)  # type: ignore[arg-type]
        trainer.learner.warm_up(0)
        trainer._step(0)
        before, seconds = trainer.learner.actual, []
        for step in range(1, steps + 1):
            started = time.perf_counter()
            loss = float(trainer._step(step))
            seconds.append(time.perf_counter() - started)
            print(f"step {step}: {seconds[-1]:.2f} s, loss {loss:.4f}", file=sys.stderr)
        after = trainer.learner.actual
        told = account(plan, after)
    finally:
        if trainer is not None:
            trainer.learner.close(drain=False)
        places.close()
    step_seconds = statistics.median(seconds)
    count = after.steps - before.steps
    transferring, waiting = (
        (getattr(after, name) - getattr(before, name)) / count for name in ("transferring", "waiting")
    )
    return {
        "plan": {"mode": plan.mode, "panel_columns": plan.panel, "buffer_bytes": plan.buffer_bytes},
        "predicted_seconds_per_step": plan.step_seconds,
        "predicted_resource_seconds": plan.resources,
        "seconds_per_step": step_seconds,
        "steps_seconds": seconds,
        "transfer_seconds_per_step": transferring,
        "waiting_seconds_per_step": waiting,
        "planned_bytes": plan.tier_bytes(),
        "peak_rss_bytes": runlog.peak_rss_bytes(),
        "graph_seconds": graph_seconds,
        "fill_seconds": fill_seconds,
        "tensors": told["tensors"],
        "load_before": os.getloadavg()[0],
    }


def expansion(case: dict[str, Any]) -> tuple[BipartiteGraph, float]:
    """The graph of a case, and the seconds it took."""
    words = ["data=gowalla"]
    if "base" in case:
        counts = zip(("num_users", "num_items", "num_interactions"), TINY)
        words = [*(f"data.synthetic.{name}={count}" for name, count in counts), "data.synthetic.communities=2"]
    base = dataset.load(curves.composed([*words, "data.valid_ratio=0"]).data).train
    started = time.perf_counter()
    users, items = fractal.expand(base, case["users"], case["items"], case["interactions"], seed=0)
    graph = BipartiteGraph.from_edges(users, items, case["users"], case["items"])
    return graph, time.perf_counter() - started


def settings(case: dict[str, Any], folder: Path) -> TrainConfig:
    """A training on this graph: published LightGCN with a larger batch."""
    overrides = [f"model.dim={case['dim']}", f"trainer.batch_size={case['batch']}", "trainer.sampling=users"]
    overrides += ["data.valid_ratio=0", "loss.reg=1e-4", f"memory={case['memory']}"]
    if case["memory"] != "dram":
        overrides.append(f"memory.folder={folder}")
    if case["limit_bytes"] is not None:
        overrides.append(f"memory.limit={case['limit_bytes']}")
    return curves.composed(["data=gowalla", *overrides])


def tables(result: dict[str, Any]) -> list[Table]:
    """A row a measurement, and the conditions of the last ones."""
    rows = []
    for row in result["rows"]:
        state = (row["users"] + row["items"]) * row["dim"] * STATE
        shown = {name: row[name] for name in ("users", "items", "interactions", "dim")} | {"state": state}
        shown |= {"memory": row["memory"], "DRAM limit": row["limit_bytes"]}
        if "failed" in row:
            rows.append(shown | {"note": row["failed"]})
            continue
        predicted, actual = row["predicted_seconds_per_step"], row["seconds_per_step"]
        shown |= {"panel": row["plan"]["panel_columns"], "step, predicted": predicted, "step": actual}
        shown |= {"off": actual / predicted - 1, "transfers of it": row["transfer_seconds_per_step"] or None}
        rows.append(
            shown | {"waited for": row["waiting_seconds_per_step"] or None, "peak memory": row["peak_rss_bytes"]}
        )
    units = dict.fromkeys(("state", "DRAM limit", "peak memory"), "bytes") | {"off": "change"}
    units |= dict.fromkeys(("step, predicted", "step", "transfers of it", "waited for"), "seconds")
    note = "State is embeddings and moments. Seconds are medians of the steps after the first."
    return [output.table("steps", "A step", rows, units, note), output.condition_table([result["conditions"]])]


def figures(result: dict[str, Any]) -> list[Figure]:
    """Seconds of a step over interactions, a line a series and placement."""
    rows = [row for row in result["rows"] if "failed" not in row]
    names = list(dict.fromkeys((row["series"], row["memory"]) for row in rows))

    def draw(axes: Axes) -> None:
        for number, (series, memory) in enumerate(names):
            mine = [row for row in rows if (row["series"], row["memory"]) == (series, memory)]
            mine.sort(key=lambda row: row["interactions"])
            points = [row["interactions"] for row in mine], [row["seconds_per_step"] for row in mine]
            axes.plot(*points, **line(number, f" {series}, {memory}"))
        axes.set(xlabel="interactions", ylabel="seconds of a step")
        logarithmic(axes, "x", "y")
        legend(axes)

    return [figure("steps", "Seconds of a step by interactions", draw, 3.2, transparent=False)] if rows else []


if __name__ == "__main__":
    sys.exit(main())
