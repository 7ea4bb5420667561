"""Training steps a second at equal batch and layers: our trainer beside the public codes, in one process, on one graph.

    python profiling/bench_training.py                            # on Gowalla (GNNREC_DATA): ten minutes
    python profiling/bench_training.py --contest "LightGCN, batch 2048" --seconds 60
    python profiling/bench_training.py --quick                    # a tiny graph: checks, but no timings to quote

First every loop takes a step from the same start on the same batch: loss and gradients are compared with float64, the
parameters after it with Adam's first step along that gradient. Then loops take turns, some steps each, and every round
begins with another one; a ratio is the median of the rounds' ratios. Ours draws its batches within the step, the others
are given theirs; all have the command line's settings of malloc and of waiting threads. The loops are in
training_loops.py, those that are not installed are named as missing. Prints tables, writes results/training.json.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from gnnrec import process

HERE = Path(__file__).parent
process.prepare()  # for all loops, and before torch and any OpenMP runtime are loaded
# ruff: noqa: E402

import measure
import peers
import torch
import training_loops as loops
import workload
from bench_ops import describe, import_peers
from contender import Missing, Step, prepare
from operations import STEP, Check, Target
from report import save_numbers, show_end, show_head, show_result
from rich.console import Console
from runner import FAILED, KINK_TOLERANCE, MISSING, OK, OURS, Result, Row, judge, upstream_of, verdicts
from training_loops import Loop, Setting
from workload import Tensors, Workload

from gnnrec import ops
from gnnrec.config.recipes import composed

PACKAGES = ("dgl", "torch_geometric.nn", "recbole.model.general_recommender.lightgcn")
BATCHES = "ours draws its batches within the step, the others are given theirs"
QUICK_BATCH = 512
EPS = 1e-8  # of Adam
PUBLIC, PYG, RECBOLE, PROPAGATION = "public PyTorch", "PyG LightGCN, CSR", "RecBole", "its propagation"

Oracle = Callable[[Setting, Tensors], Step]


@dataclass(frozen=True)
class Contest:
    """Loops that are measured together.

    Args:
        name: of the table.
        recipe: in conf/experiment; overrides: further ones.
        batch: of the loops.
        oracle: of the first loss.
        loops: besides ours, by name.
        targets: for them.
        own: what a loop is checked against that computes something else.
        tolerance: see `operations.Check`.
        norm: gradients are compared in norm up to that, for functions with kinks and products in bfloat16.
    """

    name: str
    recipe: str
    batch: int
    oracle: Oracle
    loops: Mapping[str, Callable[[Setting], Loop]]
    targets: tuple[Target, ...] = ()
    overrides: tuple[str, ...] = ()
    own: Mapping[str, Oracle] = field(default_factory=dict)
    tolerance: float = 1e-4
    norm: float | None = None

    def setting(self, w: Workload, quick: bool) -> Setting:
        """Its start and its batches on a graph."""
        batch = min(self.batch, QUICK_BATCH) if quick else self.batch
        overrides = [f"experiment={self.recipe}", f"model.dim={w.dim}", f"trainer.batch_size={batch}", *self.overrides]
        return Setting(w, composed(overrides))


def lightgcn(batch: int) -> Contest:
    """LightGCN with BPR as published."""
    others = {
        PUBLIC: loops.public_pytorch,
        PYG: loops.pyg_csr,
        RECBOLE: loops.recbole,
        "DGL, u_mul_e_sum": loops.lightgcn_with(peers.dgl_weighted_product),
        "DGL, copy_u_sum": loops.lightgcn_with(peers.dgl_folded_product),
    }
    targets = Target(PUBLIC, 15), Target(PYG, 9), Target(RECBOLE, 12)
    return Contest(f"LightGCN, batch {batch}", "published_lightgcn", batch, loops.lightgcn_loss, others, targets)


CONTESTS = (
    lightgcn(2048),
    lightgcn(65_536),
    Contest(
        "LightGCN, large_batch",
        "large_batch",
        13_000,
        loops.softmax_loss,
        {PROPAGATION: loops.our_propagation},
        (Target(PROPAGATION, 1 / 2),),
        own={PROPAGATION: loops.propagated},
        tolerance=5e-3,
        norm=2e-2,
    ),
    Contest(
        "NGCF, batch 1024",
        "published_ngcf",
        1024,
        loops.ngcf_loss,
        {
            "torch COO, as RecBole": loops.ngcf_with(peers.torch_coo),
            "torch CSR": loops.ngcf_with(peers.torch_csr),
        },
        overrides=("model.message_dropout=0",),  # masks differ from library to library
        norm=KINK_TOLERANCE,
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code is 1 where a result of ours is wrong."""
    options = parse(arguments)
    ops.set_num_threads(options.threads)
    torch.set_num_interop_threads(1)
    warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
    clock, console = measure.Clock(), Console(width=150)
    w = workload.load(options.data, options.dim, options.threads, options.quick)
    report = describe(w, clock, options, "recbole")
    report.options["batches"] = BATCHES
    show_head(report, console)
    import_peers(PACKAGES)
    for contest in CONTESTS:
        if contest.name in options.contest:
            report.results.append(run(contest, w, options, clock))
            show(report.results[-1], console)
            save_numbers(report, options.out)  # what is measured stays, whatever comes
            gc.collect()
    report.load_after, report.openmp = os.getloadavg(), measure.openmp_runtimes()
    show_end(report, console)
    save_numbers(report, options.out)
    gc.unfreeze()
    return int(any(row.status == FAILED and row.name == OURS for each in report.results for row in each.rows))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [contest.name for contest in CONTESTS]
    parser.add_argument("--contest", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {names}")
    parser.add_argument("--data", default="gowalla", help="a data set of the catalog")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--steps", type=int, default=5, help="that a loop takes in its turn")
    parser.add_argument("--repeats", type=int, default=15, help="the most rounds")
    parser.add_argument("--seconds", type=float, default=180.0, help="for the timed steps of a contest")
    parser.add_argument("--out", type=Path, help="results/training.json; with --quick outputs/training.json")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny graph and few steps: checks, but no timings to quote"
    )
    options = parser.parse_args(arguments)
    options.dim = 64
    if options.out is None:
        options.out = Path("outputs/training.json") if options.quick else HERE / "results" / "training.json"
    if options.quick:
        options.steps, options.repeats, options.seconds = 1, 3, 0.0
    return options


def run(contest: Contest, w: Workload, options: argparse.Namespace, clock: measure.Clock) -> Result:
    """Check, measure and compare the loops of a contest."""
    s = contest.setting(w, options.quick)
    rows, ready = check(contest, s)
    for row in rows:
        if row.status == OK:
            row.peak_bytes = clock.peak_bytes(ready[row.name].step)
    calls = {name: partial(take, loop, options.steps) for name, loop in ready.items()}
    with measure.Load() as load:
        seconds = measure.interleave(calls, options.seconds, options.repeats, clock.step_seconds, rotated=True)
    for row in rows:
        if row.status == OK:
            row.seconds = [each / options.steps for each in seconds[row.name]]
            row.low, row.median, row.high = measure.quartiles(row.seconds)
    compare(rows)
    size = sum(x.nbytes for x in (*s.start.values(), w.adjacency.indptr, w.adjacency.indices))
    judged = verdicts(contest.targets, rows)
    memory = size, 1, size > clock.cache_bytes()
    return Result(contest.name, STEP, w.name, w.adjacency.nnz, rows, judged, load.others, *memory)


def take(loop: Loop, steps: int) -> None:
    """Some steps."""
    for _ in range(steps):
        loop.step()


def check(contest: Contest, s: Setting) -> tuple[list[Row], dict[str, Loop]]:
    """A row for each loop, and those loops whose first step is right."""
    rows, ready = [], {}
    exact: dict[Oracle, Tensors] = {}
    for name, build in {OURS: loops.ours, **contest.loops}.items():
        oracle = contest.own.get(name, contest.oracle)
        build_exact = partial(in_setting, oracle, s)
        if oracle not in exact:
            doubles = {each: x.double() for each, x in s.start.items()}
            exact[oracle] = prepare(build_exact, s.w, doubles, upstream_of(s.w))()
        try:
            loop = build(s)
        except Missing as missing:
            rows.append(Row(name, MISSING, str(missing)))
            continue
        result, wanted = first_step(loop, s.start)
        usual = Check(build_exact, tolerance=contest.tolerance, kinks=contest.norm is not None)
        row = judge(name, usual, result, exact[oracle] | wanted, contest.norm or KINK_TOLERANCE)
        row.same = oracle is contest.oracle
        rows.append(row)
        if row.status == OK:
            ready[name] = loop
    return rows, ready


def in_setting(oracle: Oracle, s: Setting, w: Workload, t: Tensors) -> Step:
    """The oracle as `contender.prepare` calls one."""
    return oracle(s, t)


def first_step(loop: Loop, start: Tensors) -> tuple[Tensors, Tensors]:
    """Loss, gradients and parameters after a step; and what the latter should be by Adam along the step's own gradient:
    it goes by the sign alone, which rounding decides where a gradient is next to 0."""
    result, wanted = {"out": loop.step()}, {}
    for name, parts in loop.parameters.items():
        gradient = torch.cat([part.grad for part in parts if part.grad is not None])
        result[f"gradient of {name}"] = gradient
        if loop.lr is not None:
            result[f"{name} after the step"] = torch.cat([part.detach() for part in parts])
            slope = gradient.double()
            wanted[f"{name} after the step"] = start[name].double() - loop.lr * slope / (slope.abs() + EPS)
    return result, wanted


def compare(rows: Sequence[Row]) -> None:
    """Fill in the ratios to ours: of seconds round by round, which the machine's moods do not touch."""
    ours = rows[0]
    for row in rows[1:]:
        if row.seconds and ours.seconds:
            row.ratio = statistics.median(theirs / own for theirs, own in zip(row.seconds, ours.seconds))
        if row.peak_bytes and ours.peak_bytes:
            row.bytes_ratio = row.peak_bytes / ours.peak_bytes


def show(result: Result, console: Console) -> None:
    """A contest's table, and its steps a second."""
    show_result(result, console)
    rates = ", ".join(f"{row.name} {1 / row.median:.3g}" for row in result.rows if row.median)
    console.print(f"  steps a second: {rates}; {BATCHES}")


if __name__ == "__main__":
    sys.exit(main())
