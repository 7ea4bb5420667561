"""The benchmark's numbers as tables, JSON and a plot."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import measure
from rich.console import Console
from rich.table import Table
from runner import OK, Result, Row, Verdict, meant

from gnnrec.storage import atomic_write

MIB = 2**20
NUMBERS = "bench_ops.json"


@dataclass
class Point:
    """spmm on a synthetic graph: directed edges, median seconds, and the seconds that its bytes take at the bandwidth
    of gathering from a buffer as large as its operand, which falls as the operand outgrows the caches."""

    edges: int
    seconds: float
    gather_seconds: float


@dataclass
class Report:
    """Everything that a run finds.

    Args:
        machine, versions, options, data: what the numbers depend on.
        bandwidth: bytes a second of random rows out of a buffer of the operand's size and out of a large one, where
            that was measured.
        copy_bandwidth: bytes a second, read and written, of a large copy within a GPU; None on a CPU.
        results: of the operations.
        scaling: spmm against edges.
        load_before, load_after: the system's load averages.
        openmp: files of the OpenMP runtimes that were loaded: contenders of one runtime share a pool of threads.
    """

    machine: dict[str, Any]
    versions: dict[str, str | None]
    options: dict[str, Any]
    data: dict[str, Any]
    load_before: tuple[float, ...]
    bandwidth: dict[str, float] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    scaling: list[Point] = field(default_factory=list)
    copy_bandwidth: float | None = None
    load_after: tuple[float, ...] = ()
    openmp: list[str] = field(default_factory=list)

    @property
    def busy(self) -> list[Result]:
        """Results that were measured while other programs had the processor."""
        return [result for result in self.results if result.others_load > measure.BUSY]


def show_head(report: Report, console: Console) -> None:
    """What the numbers depend on."""
    machine, data = report.machine, report.data
    console.print(
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, "
        f"last-level cache {machine['last_level_cache_bytes'] // MIB} MiB; {machine['system']}"
    )
    if "gpu" in machine:
        console.print(
            f"{machine['gpu']}, compute capability {machine['compute_capability']}, {machine['multiprocessors']} "
            f"multiprocessors, {machine['gpu_memory_bytes'] / 2**30:.0f} GiB, L2 {machine['l2_bytes'] // MIB} MiB; "
            f"CUDA {machine['cuda']}, driver {machine['driver']}"
        )
    console.print(", ".join(f"{name} {version or 'is not installed'}" for name, version in report.versions.items()))
    console.print(
        f"{data['name']}: {data['users']:,} users, {data['items']:,} items, {data['directed_edges']:,} directed edges; "
        f"dim {report.options['dim']}, float32, {report.options['threads']} threads"
    )
    rates = ", ".join(f"{rate / 1e9:.1f} GB/s {where}" for where, rate in report.bandwidth.items())
    if rates:
        console.print(f"gather of random {measure.LINE}-byte rows: {rates}")
    if report.copy_bandwidth:
        console.print(f"copy within the GPU: {report.copy_bandwidth / 1e9:.0f} GB/s, read and written")
    console.print(f"load before: {_loads(report.load_before)}")
    memory = "GPU" if "gpu" in machine else "resident"
    console.print(
        f"ms: median of interleaved calls with quartiles; ratio: theirs / ours; MiB: high-water mark of the {memory} "
        "memory above the inputs; gather: bytes by the operator's count / time / bandwidth of an operand-sized buffer; "
        "copy: the same / bandwidth of a copy, more than 100% where caches hold what is gathered again"
    )
    if report.options["quick"]:
        console.print("quick: results are checked, but times on a tiny graph and verdicts on targets mean nothing")


def show_result(result: Result, console: Console) -> None:
    """One operation's table."""
    table = Table(title=f"{result.operation}, {result.mode}", title_justify="left", title_style="bold")
    table.add_column("")
    for name in ("ms", "quartiles", "calls", "ratio", "MiB", "MiB ratio", "gather", "copy", "error"):
        table.add_column(name, justify="right")
    for row in result.rows:
        table.add_row(row.name, *_cells(row))
    console.print(table)
    console.print(
        f"  {result.edges:,} directed edges ({result.graph}); inputs in turn: {result.sets} x "
        f"{result.set_bytes / MIB:,.1f} MiB, {'more' if result.exceeds_cache else 'less'} than the last cache"
    )
    for verdict in result.verdicts:
        console.print(f"  {_verdict(verdict):12} {verdict.target}: {_measured(verdict)}")
    if result.others_load > measure.BUSY:
        console.print(f"  WARNING: other programs took {result.others_load:.0%} of the processor: doubtful timings")


def _cells(row: Row) -> list[str]:
    if row.status != OK:
        return [row.status, row.note]
    times = [None if seconds is None else 1e3 * seconds for seconds in (row.low, row.median, row.high)]
    return [
        _number(times[1], ".2f"),
        f"{_number(times[0], '.2f')} - {_number(times[2], '.2f')}",
        str(len(row.seconds)),
        _number(row.ratio, ".2f"),
        _number(None if row.peak_bytes is None else row.peak_bytes / MIB, ",.1f"),
        _number(row.bytes_ratio, ".2f"),
        _number(row.gather_share, ".0%"),
        _number(row.copy_share, ".0%"),
        _number(row.error, ".0e"),
    ]


def show_end(report: Report, console: Console) -> None:
    """All targets, and what casts doubt on the numbers."""
    table = Table(title="To reach", title_justify="left", title_style="bold")
    for name in ("operation", "mode", "target", "measured", ""):
        table.add_column(name)
    for result in report.results:
        for v in result.verdicts:
            table.add_row(result.operation, result.mode, v.target, _measured(v), _verdict(v))
    console.print(table)
    for point in report.scaling:
        console.print(
            f"spmm, {point.edges / 1e6:6.1f} M directed edges: {1e3 * point.seconds:8.1f} ms, "
            f"{1e9 * point.seconds / point.edges:.2f} ns/edge; at gather bandwidth {1e3 * point.gather_seconds:.1f} ms"
        )
    console.print(f"OpenMP: {', '.join(report.openmp)}; OMP_WAIT_POLICY={report.machine['omp_wait_policy']}")
    console.print(f"load after: {_loads(report.load_after)}")
    if report.busy:
        names = ", ".join(f"{result.operation} ({result.mode})" for result in report.busy)
        console.print(f"WARNING: other programs were busy during {names}: repeat on an idle machine")


def save_numbers(report: Report, file: Path) -> None:
    """Write the numbers as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, json.dumps(asdict(report), indent=1).encode())


def save(report: Report, console: Console, folder: Path) -> None:
    """Write bench_ops.txt and bench_ops.json, and bench_ops.png where there is matplotlib."""
    save_numbers(report, folder / NUMBERS)
    try:
        import matplotlib
    except ImportError as error:
        console.print(f"no plot: {error}")
    else:
        matplotlib.use("Agg")
        atomic_write(folder / "bench_ops.png", lambda path: plot(report, path))
    atomic_write(folder / "bench_ops.txt", console.export_text().encode())


def plot(report: Report, path: Path) -> None:
    """Bars of theirs / ours, targets as lines across them; time against edges where that was measured."""
    from matplotlib import pyplot

    bars = [(result, row) for result in report.results for row in result.rows if row.ratio]
    panels = 2 if report.scaling else 1
    figure, axes = pyplot.subplots(1, panels, squeeze=False, figsize=(9 * panels, 4 + 0.2 * len(bars)))
    names = [f"{result.operation}, {result.mode}: {row.name}" for result, row in bars]
    bar_axis = axes[0][0]
    bar_axis.barh(range(len(bars)), [row.ratio for _, row in bars], color="tab:blue")
    bar_axis.set_yticks(range(len(bars)), names, fontsize=7)
    bar_axis.margins(y=0.01)
    bar_axis.invert_yaxis()
    bar_axis.set_xscale("log")
    bar_axis.axvline(1, color="black", linewidth=0.8)
    bar_axis.set_xlabel("median time, theirs / ours")
    for at, (result, row) in enumerate(bars):
        for verdict in result.verdicts:
            if verdict.of == "seconds" and meant(verdict.peer, row):
                bar_axis.vlines(verdict.least, at - 0.45, at + 0.45, color="tab:red")
    if report.scaling:
        axis, points = axes[0][1], report.scaling
        edges, first = [point.edges for point in points], points[0]
        axis.loglog(edges, [point.seconds for point in points], "o-", label="spmm")
        axis.loglog(edges, [point.gather_seconds for point in points], "x--", label="its bytes at gather bandwidth")
        axis.loglog(edges, [first.seconds * each / first.edges for each in edges], ":", color="grey", label="linear")
        axis.set_xlabel("directed edges")
        axis.set_ylabel("seconds")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _verdict(verdict: Verdict) -> str:
    return "not measured" if verdict.reached is None else "reached" if verdict.reached else "missed"


def _measured(verdict: Verdict) -> str:
    """As the target puts it: theirs / ours, ours / theirs where it bounds ours from above, a share or a time."""
    if verdict.measured is None:
        return ""
    if verdict.of == "limit":
        return f"{1e3 * verdict.measured:.2f} ms"
    if verdict.of == "bandwidth":
        return f"{verdict.measured:.0%}"
    return f"{verdict.measured if verdict.least >= 1 else 1 / verdict.measured:.2f} x"


def _loads(loads: tuple[float, ...]) -> str:
    return " ".join(f"{load:.2f}" for load in loads)
