"""Time, bytes and memory of operators with each of their three techniques off and on.

    python experiments/reproduce.py ablation                      # GNNREC_DATA names the data sets' folder
    python experiments/reproduce.py ablation operators=gat_conv dim=128 out=folder

The forms are in forms.py; how they are checked, timed and their memory is found is `profiling/bench_ops.py`'s.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnnrec import process

process.prepare()
sys.path.append(str(Path(__file__).parents[1] / "profiling"))
# ruff: noqa: E402

import measure
import output
import runner
import torch
import workload
from forms import OPERATORS, Form, Operator
from operations import TRAINING, Peer
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gnnrec import ops
from gnnrec.report.svg import SERIES, Figure, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TECHNIQUES = ("reorganised", "fused", "recomputed")
RESULTS = "results of operators"
BYTES = (RESULTS, "kept", "peak memory")
NOTE = (
    "Results of operators: bytes that each of torch's and the package's own returns or changes, in both passes; what "
    "one writes for itself in between, such as the layers of lightgcn_propagate, is not among them, but in peak memory."
    " Kept: between the passes, arguments aside. Time and memory of both. Reorganised off: a message for every edge, "
    "made by torch and summed by segment_reduce. Fused off: the package's operators one by one, of which spmm still "
    "gathers, scales and sums in one pass; with reorganised off, gathering and scaling are passes too."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code is 1 where a form is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operators", nargs="+", default=list(OPERATORS), choices=list(OPERATORS))
    parser.add_argument("--data", default="gowalla", help="a data set of the catalog")
    parser.add_argument("--dim", type=output.positive(int), default=64)
    parser.add_argument("--repeats", type=output.positive(int), default=15, help="the most timed calls of a form")
    parser.add_argument(
        "--seconds", type=output.positive(float, zero=True), default=30, help="for the timed calls of an operator"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny graph: checks, but no timings to quote")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    output.folder(options.out)
    w = workload.load(options.data, options.dim, ops.most_threads(), options.quick)
    found = {name: measured(OPERATORS[name], w, options.seconds, options.repeats) for name in options.operators}
    rows = [{"operator": name} | row for name, own in found.items() for row in own]
    title = f"{w.name}, {w.adjacency.nnz:,} directed edges, width {w.dim}"
    shown = output.table("forms", title, rows, dict.fromkeys(BYTES, "bytes") | {"time": "seconds"}, NOTE)
    figures = [drawn(name, own) for name, own in found.items()]
    notes = [output.SHORT] if options.quick else []
    output.write(
        options.out, "ablation", [shown, output.condition_table([output.conditions_here()])], figures, notes=notes
    )
    return int(any(row["note"] for row in rows))


def measured(operator: Operator, w: workload.Workload, seconds: float, repeats: int) -> list[dict[str, Any]]:
    """A row a form of the operator; the last form is what the others are compared with."""
    given = operator.inputs(w)
    peers = [Peer(words(form), form.build) for form in operator.forms]
    clock = measure.Clock()
    found, calls = runner.check_all(peers, operator.check, TRAINING, [(w, given)], {}, clock)
    peaks = {key: clock.peak_bytes(call) for key, call in calls.items()}
    times = measure.interleave(calls, seconds, repeats) if calls else {}
    medians = {key: measure.quartiles(found)[1] for key, found in times.items()}
    rows, whole = [], words(operator.forms[-1])
    for form, row in zip(operator.forms, found):
        entry: dict[str, Any] = {technique: word(getattr(form, technique)) for technique in TECHNIQUES}
        if row.status == runner.OK:
            entry["time"] = medians[row.name]
            entry["time / all on"] = medians[row.name] / medians[whole] if whole in medians else None
            entry |= traffic(form, w, given) | {"peak memory": peaks[row.name]}
        rows.append(entry | {"note": "" if row.status == runner.OK else f"{row.status}: {row.note}"})
    return rows


def words(form: Form) -> str:
    """The techniques that a form has."""
    return ", ".join(technique for technique in TECHNIQUES if getattr(form, technique)) or "none"


def word(on: bool | None) -> str:
    return "nothing to keep" if on is None else "on" if on else "off"


class Written(TorchDispatchMode):
    """Counts the bytes of operators' results; a view of an argument is not written."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = places(tree_leaves((args, kwargs)))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and (func._schema.is_mutable or not places([x]).keys() <= given.keys()):
                self.bytes += x.nbytes
        return result


def places(found: Sequence[Any]) -> dict[int, int]:
    """Where the memory of tensors lies, and its bytes."""
    storages = [x.untyped_storage() for x in found if isinstance(x, torch.Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def traffic(form: Form, w: workload.Workload, given: workload.Tensors) -> dict[str, int]:
    """Bytes that both passes write, and that the first keeps for the second beside arguments and graph."""
    leaves = {name: x.detach().requires_grad_() for name, x in given.items()}
    forward, upstream = form.build(w, leaves).forward, runner.upstream_of(w)
    before, _ = saved(forward)  # alive until the end: only arguments and graph are in the same place again
    gradient = upstream(forward().detach())
    with Written() as written:
        after, out = saved(forward)
        torch.autograd.grad(out, list(leaves.values()), gradient)
    again = places(before)
    return {RESULTS: written.bytes, "kept": sum(n for place, n in places(after).items() if place not in again)}


def saved(forward: Callable[[], torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What autograd saves of a forward pass, and its result."""
    kept: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept.append(x)
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        return kept, forward()


def drawn(name: str, rows: Sequence[dict[str, Any]]) -> Figure:
    """Seconds of an operator's forms."""

    def draw(axes: Axes) -> None:
        shown = [row for row in rows if "time" in row]
        labels = [", ".join(t for t in TECHNIQUES if row[t] == "on") or "none" for row in shown]
        axes.barh(labels, [1e3 * row["time"] for row in shown], 0.6, color=SERIES[0])
        axes.invert_yaxis()
        axes.set_xlabel("ms, forward and backward")

    return figure(name, f"{name} by technique", draw, 0.9 + 0.32 * len(rows), transparent=False)


if __name__ == "__main__":
    sys.exit(main())
