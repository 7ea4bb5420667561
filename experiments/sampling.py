"""Whole graph with large batches, or sampled parts of it: what an epoch computes and takes, by depth and workers.

    python experiments/reproduce.py sampling               # Gowalla, half an hour
    python experiments/reproduce.py sampling short=true    # ml-100k, one depth

LightGCN of width 64 with BPR. Whole graph: ours, one process or several that share the columns. Sampled: DGL's own way
(`sampled_dgl.py`), whose batch, loaders and optimiser are first tuned at three layers for each number of processes,
with 10 neighbours drawn in every layer and with all of them; and DGL on the whole graph. Redundancy: edges that a layer
computes in an epoch, forward, per edge of the graph.
Up to two workers are processes here. More are MODELLED: a worker's share of a step is measured in one process with one
thread (with the columns that it would have; with the users of its METIS part), what crosses the network is counted and
divided by the bandwidth that is said. Rows that the file holds already are not measured again.

The comparison is that of Hu et al. 2022, "Analysis and Optimization of GNN-Based Recommender Systems on Persistent
Memory", of one machine that trains on the whole graph and several that train on sampled sub-graphs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import curves  # noqa: F401 - prepares the process
import output

from gnnrec.errors import ConfigError, GnnrecError
from gnnrec.report.cells import MODELLED, Cell, Table
from gnnrec.report.fields import get
from gnnrec.report.svg import Figure, figure, legend, line, logarithmic
from gnnrec.storage import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]

HERE = Path(__file__).parent
WHOLE = "whole graph"
WHOLE_DGL = "whole graph in DGL"
SAMPLED = {"10 neighbours": 10, "all neighbours": -1}  # of every node, in every layer
TUNED_AT = 3  # layers
EPOCHS = 2  # of ours
NUMBER = 4  # bytes


@dataclass(frozen=True)
class Plan:
    """What is measured: depths, batches that are tried, workers that are processes here and those that are modelled."""

    data: str = "gowalla"
    dim: int = 64
    layers: tuple[int, ...] = (1, 2, 3, 4, 5)
    batches: tuple[int, ...] = (2048, 16384, 131072)
    loaders: tuple[int, ...] = (0, 1)
    workers: tuple[int, ...] = (1, 2)
    modelled: tuple[int, ...] = (4, 8, 16)
    seconds: float = 6.0  # of a measurement's steps
    ways: tuple[str, ...] = tuple(SAMPLED)


SHORT = Plan("ml-100k", 16, (1,), (4096,), (0,), (1, 2), (4,), 0.5, ("10 neighbours",))


@dataclass(frozen=True)
class Network:
    """Of the workers that are modelled: gigabits and seconds a message."""

    gbit: float
    latency: float

    def seconds(self, sent: float, messages: int) -> float:
        return sent / (self.gbit * 1e9 / 8) + messages * self.latency


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument(
        "--gbit", type=output.positive(float), default=25.0, help="of the network between workers that are modelled"
    )
    parser.add_argument("--latency-us", type=output.positive(float, zero=True), default=20.0, help="of a message there")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    if find_spec("dgl") is None:
        raise ConfigError("dgl is not installed", where="sampling", remedy="pip install gnnrec[dgl]")
    plan, network = SHORT if options.short else Plan(), Network(options.gbit, 1e-6 * options.latency_us)
    measure = Measured(output.folder(options.out) / "sampling.json")
    rows = list(results(plan, network, measure))
    notes = [
        f"LightGCN on {plan.data}, width {plan.dim}, BPR. {MODELLED}: {network.gbit:g} Gbit/s, "
        f"{1e6 * network.latency:g} us a message.",
        *said(plan, rows),
    ]
    tables = [shown(rows), output.condition_table(measure.conditions)]
    output.write(options.out, "sampling", tables, [drawn(rows)], notes=[*notes, *[output.SHORT] * options.short])
    return 0


class Measured:
    """Measurements by their settings, in a file that grows with each; `conditions` of those that were asked for.

    Args:
        file: is written after every measurement.
    """

    def __init__(self, file: Path) -> None:
        self.known, self.file = output.earlier(file, "cases") or {"cases": []}, file
        self.conditions: list[Row] = []

    def __call__(self, **case: Any) -> Row:
        """Of DGL's training where it has a fan-out, else of ours; fresh processes."""
        for entry in self.known["cases"]:
            if entry["case"] == case:
                self.conditions.append(get(entry, "conditions", dict, str(self.file)))
                return dict(entry["found"])
        print(f"measuring {case}", file=sys.stderr, flush=True)
        found = dgl(case) if "fanout" in case else ours(**case)
        self.conditions.append(output.conditions_here())
        self.known["cases"].append({"case": case, "found": found, "conditions": self.conditions[-1]})
        atomic_write(self.file, (json.dumps(self.known, indent=1) + "\n").encode())
        return found


def dgl(case: Row) -> Row:
    """A training by `sampled_dgl.py`."""
    said = in_process([str(HERE / "sampled_dgl.py"), json.dumps(case)], case)
    found: Row = json.loads(said.splitlines()[-1])
    return found


def in_process(words: Sequence[str], case: Row) -> str:
    """What a fresh Python says to standard output."""
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        found = f"ended with exit code {done.returncode}"
        raise GnnrecError(found, where=f"measuring {case}", remedy="What it met stands above")
    return done.stdout


def ours(data: str, dim: int, layers: int, batch: int, ranks: int, threads: int) -> Row:
    """Published LightGCN with another batch, by the command line or torchrun: steps, the mean of their seconds."""
    start = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"] if ranks > 1 else []
    case = {"data": data, "dim": dim, "layers": layers, "batch": batch, "ranks": ranks, "threads": threads}
    settings = [f"data={data}", "data.valid_ratio=0", "experiment=published_lightgcn", "device=cpu"]
    settings += [
        f"trainer.epochs={EPOCHS}",
        f"model.dim={dim}",
        f"model.layers={layers}",
        f"trainer.batch_size={batch}",
        f"threads={threads}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", *start, "gnnrec", "train", *settings, "view=quiet", f"hydra.run.dir={folder}/run"]
        in_process(words, case)
        summary = json.loads(Path(folder, "run", "summary.json").read_bytes())
    seconds = (summary["train_seconds"] - summary["compile_seconds"]) / summary["steps"]
    return {"step_seconds": seconds, "steps": summary["steps"] / EPOCHS, "pairs": summary["data"]["train"]}


def results(plan: Plan, network: Network, measure: Measured) -> Iterator[Row]:
    """Rows: way, layers, workers, batch, seconds and steps of an epoch, redundancy, and what a modelled one sends."""
    largest = max(plan.batches)
    shared = {"data": plan.data, "dim": plan.dim}
    for layers, workers in itertools.product(plan.layers, plan.workers):
        case = shared | {"layers": layers, "batch": largest, "ranks": workers, "threads": max(plan.workers) // workers}
        yield row(WHOLE, case, measure(**case))
    case = shared | {"layers": TUNED_AT, "batch": min(plan.batches), "ranks": 1, "threads": max(plan.workers)}
    yield row(WHOLE, case, measure(**case))
    for workers in plan.modelled:
        case = shared | {"layers": TUNED_AT, "batch": largest, "ranks": 1, "threads": 1, "dim": plan.dim // workers}
        found = measure(**case)
        sent, messages = all_reduced(found["pairs"] / found["steps"], workers)  # a score's part of every pair
        yield modelled(row(WHOLE, case, found), workers, network.seconds(sent, messages), sent)
    dense = {"fanout": 0, "loaders": 0, "optimizer": "dense", "batch": largest, "seconds": plan.seconds}
    for layers, workers in itertools.product(plan.layers, plan.workers):
        case = shared | dense | {"layers": layers, "ranks": workers, "threads": max(plan.workers) // workers}
        yield row(WHOLE_DGL, case, measure(**case))
    for way in plan.ways:
        settings = shared | {"fanout": SAMPLED[way], "seconds": plan.seconds}
        best = {workers: tuned(plan, settings, workers, measure) for workers in plan.workers}
        for layers, workers in itertools.product(plan.layers, plan.workers):
            case = best[workers] | {"layers": layers}
            yield row(way, case, measure(**case))
        for workers in plan.modelled:
            case = best[max(plan.workers)] | {"layers": TUNED_AT, "ranks": 1, "threads": 1, "parts": workers}
            found = measure(**case)
            if case["optimizer"] == "dense":  # everybody has all rows, and needs the gradients of all
                sent, messages = all_reduced(found["nodes"] * plan.dim, workers)
            else:  # rows of others, and the gradients of these
                sent, messages = 2 * found["step_remote_inputs"] * plan.dim * NUMBER, 2
            yield modelled(row(way, case, found), workers, network.seconds(sent, messages), sent)


def all_reduced(numbers: float, workers: int) -> tuple[float, int]:
    """Bytes and messages that a worker sends until all have the sum of so many numbers, around a ring."""
    return 2 * (workers - 1) / workers * numbers * NUMBER, 2 * (workers - 1)


def tuned(plan: Plan, shared: Row, workers: int, measure: Measured) -> Row:
    """The settings with which DGL's epoch is shortest for so many processes."""
    threads = max(plan.workers) // workers
    cases = [
        shared | {"layers": TUNED_AT, "batch": batch, "ranks": workers, "threads": threads} | kind
        for batch in plan.batches
        for kind in ({"loaders": n, "optimizer": name} for n in plan.loaders for name in ("sparse", "dense"))
    ]
    return min(cases, key=lambda case: row("", case, measure(**case))["epoch_seconds"])


def row(way: str, case: Row, found: Row) -> Row:
    """A row of the table. An epoch of ours has the steps that were counted, the last one smaller; DGL's, which are all
    of the same size, are as many as fit into its pairs, not rounded."""
    steps = found["pairs"] / min(case["batch"], found["pairs"]) if "fanout" in case else found["steps"]
    layers, redundancy = case["layers"], steps  # of the whole graph, every edge once a layer and step
    if "step_edges" in found:
        redundancy = found["step_edges"] * max(1, case.get("parts", 1)) * steps / found["directed_edges"] / layers
    times = {"steps": steps, "epoch_seconds": found["step_seconds"] * steps, "redundancy": redundancy}
    return {"way": way, "layers": layers, "workers": case["ranks"], "batch": case["batch"], "sent": None} | times


def modelled(row: Row, workers: int, seconds: float, sent: float) -> Row:
    """The row of so many workers, each of which computes as long as measured and waits for the network."""
    return row | {"workers": workers, "epoch_seconds": row["epoch_seconds"] + row["steps"] * seconds, "sent": sent}


def shown(rows: Sequence[Row]) -> Table:
    """All rows; what is modelled says so."""
    found = []
    for one in rows:
        modelled = one["sent"] is not None
        names = {"training": one["way"], "layers": one["layers"], "workers": one["workers"], "batch": one["batch"]}
        seconds, sent = Cell(one["epoch_seconds"], "seconds", modelled=modelled), None
        if modelled:
            sent = Cell(one["sent"], "bytes", modelled=True)
        times = {"steps": one["steps"], "epoch": seconds, "redundancy": one["redundancy"], "sent a step": sent}
        found.append(names | times)
    title = "Seconds of an epoch, edges computed per edge of the graph"
    return output.table("epochs", title, found, {"epoch": "seconds", "sent a step": "bytes"})


def said(plan: Plan, rows: Sequence[Row]) -> Iterator[str]:
    """What the table says about depth."""
    workers, whole = max(plan.workers), {}
    for one in rows:
        if one["workers"] == workers and one["way"] == WHOLE:
            whole[one["layers"]] = one
    for way in (WHOLE_DGL, *plan.ways):
        mine = {one["layers"]: one for one in rows if one["workers"] == workers and one["way"] == way}
        ratios = [f"{mine[n]['epoch_seconds'] / whole[n]['epoch_seconds']:.1f}" for n in plan.layers]
        edges = [f"{mine[n]['redundancy'] / whole[n]['redundancy']:.2f}" for n in plan.layers]
        depth = ", ".join(map(str, plan.layers))
        yield (
            f"{way}, {workers} workers, layers {depth}: an epoch takes {', '.join(ratios)} times that of the {WHOLE} "
            f"and computes {', '.join(edges)} times its edges."
        )


def drawn(rows: Sequence[Row]) -> Figure:
    """Seconds of an epoch by depth, a line a way and number of workers that were processes."""

    def draw(axes: Axes) -> None:
        largest = max(one["batch"] for one in rows if one["way"] == WHOLE)
        measured = [one for one in rows if one["sent"] is None and (one["way"] != WHOLE or one["batch"] == largest)]
        ways = dict.fromkeys((one["way"], one["workers"]) for one in measured)
        for number, (way, workers) in enumerate(ways):
            mine = [one for one in measured if (one["way"], one["workers"]) == (way, workers)]
            label = f" {way}, {workers} worker{'s' * (workers > 1)}"
            axes.plot([one["layers"] for one in mine], [one["epoch_seconds"] for one in mine], **line(number, label))
        axes.set(xlabel="layers", ylabel="seconds an epoch")
        logarithmic(axes, "y")
        axes.xaxis.get_major_locator().set_params(integer=True)
        legend(axes, 1)

    return figure("depth", "Seconds of an epoch by depth", draw, 4.0, transparent=False)


if __name__ == "__main__":
    sys.exit(main())
