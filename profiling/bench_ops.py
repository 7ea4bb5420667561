"""Our operators beside their peers, in one process and one table: each result is checked first, then all are timed in
turn, with quartiles, peak memory and the share of this device's bandwidths.

    python profiling/bench_ops.py                                 # every operation on Gowalla (GNNREC_DATA)
    python profiling/bench_ops.py --op spmm topk_scores --seconds 20
    python profiling/bench_ops.py --scaling                       # also time against edges, up to 100 M: minutes, 10 GB
    python profiling/bench_ops.py --device cuda                   # on a GPU, also whole training steps; 80 GB

The tables are in operations.py and operations_gpu.py, the peers in peers.py and layer_peers.py, how time and memory are
measured in measure.py and measure_gpu.py. Peers that are not installed are named as missing. Writes bench_ops.txt,
bench_ops.json and bench_ops.png.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from gnnrec import process

process.prepare()  # for all contenders, and before torch and any OpenMP runtime are loaded
# ruff: noqa: E402

import measure
import torch
import workload
from contender import Missing, prepare, require
from measure_gpu import GpuClock
from operations import OPERATIONS, Operation
from operations_gpu import OPERATIONS as GPU_OPERATIONS
from report import NUMBERS, Point, Report, save, save_numbers, show_end, show_head, show_result
from rich.console import Console
from runner import FAILED, OURS, RAISED, run

from gnnrec import device as devices
from gnnrec import ops

PEERS = ("dgl.nn.pytorch", "torch_geometric.nn", "faiss")
SCALING_EDGES = (1, 2, 5, 10, 20, 50, 100)  # millions, directed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code is 2 without the GPU that was asked for, 1 where a result of ours is wrong."""
    options = parse(arguments)
    try:
        device = devices.resolve(options.device)
    except devices.DeviceError as error:
        print(error, file=sys.stderr)
        return 2
    clock = measure.Clock() if options.device == "cpu" else GpuClock(device)
    ops.set_num_threads(options.threads)
    torch.set_num_interop_threads(1)
    warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
    console = Console(width=150, record=True)
    fields = {} if options.device == "cpu" else {"device": device, "step_batch": workload.GPU_STEP_BATCH}
    w = workload.load(options.data, options.dim, options.threads, options.quick, **fields)
    report = describe(w, clock, options)
    report.bandwidth = {
        "from a buffer of the operand's size": clock.gather_bandwidth(4 * w.nodes * w.dim, w.threads),
        "from one of 4 last-level caches": clock.gather_bandwidth(4 * clock.cache_bytes(), w.threads),
    }
    show_head(report, console)
    import_peers()
    for operation in chosen(options.op, OPERATIONS if options.device == "cpu" else GPU_OPERATIONS):
        if operation.large and not w.name.startswith(workload.LARGE_NAME):
            w = workload.load_large(w, options.quick)  # the last ones of the table
        graph = workload.load_wide(w.dim, w.threads, options.quick) if operation.wide else w
        for mode in operation.modes:
            report.results.append(run(operation, mode, graph, options.seconds, options.repeats, clock))
            show_result(report.results[-1], console)
            save_numbers(report, options.out / NUMBERS)  # what is measured stays, whatever comes
    if options.scaling:
        report.scaling = [scale(millions, options) for millions in SCALING_EDGES]
    report.load_after, report.openmp = os.getloadavg(), measure.openmp_runtimes()
    show_end(report, console)
    save(report, console, options.out)
    gc.unfreeze()
    failed = [row for result in report.results for row in result.rows if row.status in (RAISED, FAILED)]
    return int(any(row.name.startswith(OURS) for row in failed))


def describe(w: workload.Workload, clock: measure.Clock, options: argparse.Namespace, *packages: str) -> Report:
    """A report without results: what they will depend on, and the versions of further packages."""
    return Report(
        machine=clock.machine(),
        versions=measure.versions(*packages),
        options={name: v for name, v in vars(options).items() if name != "out"},
        data={
            "name": w.name,
            "users": w.graph.num_users,
            "items": w.graph.num_items,
            "directed_edges": w.adjacency.nnz,
        },
        load_before=os.getloadavg(),
        copy_bandwidth=clock.copy_bandwidth,
    )


def import_peers(modules: Sequence[str] = PEERS) -> None:
    """Import what is there, and take what the imports leave out of later garbage collections, which they would slow."""
    for module in modules:
        with contextlib.suppress(Missing):
            require(module)
    gc.collect()
    gc.freeze()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted({operation.op for operation in OPERATIONS})
    parser.add_argument("--op", nargs="+", choices=names, default=names, metavar="OP", help=f"of {', '.join(names)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--data", default="gowalla", help="a data set of the catalog")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=30, help="the most timed calls of a contender")
    parser.add_argument(
        "--seconds", type=float, help="for the timed calls of an operation in a mode; 20 by default, on a GPU 1"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_ops"))
    parser.add_argument(
        "--quick", action="store_true", help="a tiny graph and few calls: checks, but no timings to quote"
    )
    parser.add_argument("--scaling", action="store_true", help="time spmm from 1 M to 100 M directed edges as well")
    options = parser.parse_args(arguments)
    if options.scaling and options.device == "cuda":
        parser.error("--scaling measures the CPU")
    if options.seconds is None:
        options.seconds = 20.0 if options.device == "cpu" else 1.0
    if options.quick:
        options.repeats, options.seconds = 3, 0.0
    return options


def chosen(names: Sequence[str], table: Sequence[Operation]) -> list[Operation]:
    """The operations of those operators, in the table's order."""
    return [operation for operation in table if operation.op in names]


def scale(millions: int, options: argparse.Namespace) -> Point:
    """spmm on a synthetic graph with that many directed edges."""
    w = workload.load_synthetic(millions * 1_000_000, options.dim, options.threads)
    spmm = next(operation for operation in OPERATIONS if operation.name == "spmm")
    tensors = spmm.inputs(w)
    moved = spmm.bytes_moved(w, tensors)
    assert moved is not None
    call = prepare(spmm.build_ours, w, tensors, None)
    call()
    seconds = measure.interleave({"spmm": call}, 5.0, options.repeats)
    gather_seconds = moved / measure.gather_bandwidth(4 * w.nodes * w.dim, w.threads)
    return Point(w.adjacency.nnz, measure.quartiles(seconds["spmm"])[1], gather_seconds)


if __name__ == "__main__":
    sys.exit(main())
