"""The tables of what a profile knows."""

from __future__ import annotations

from collections.abc import Sequence

from gnnrec.report.cells import Cell, Table, beside, filled, line
from gnnrec.report.profiles import CLASSES, Operator, Profile
from gnnrec.report.records import Run

LEAST = 0.001  # of a step: what is shorter has no row of its own
CACHED = "caches"  # marks bytes that passed faster than memory delivers them


def classes(runs: Sequence[Run]) -> Table:
    """Seconds of a step by class, of the runs that have a profile."""
    by_class = [run.profile.seconds() if run.profile else {} for run in runs]
    kinds = dict.fromkeys([*CLASSES, *(kind for seconds in by_class for kind in seconds)])
    lines = [line(runs, kind, "seconds", [seconds.get(kind) for seconds in by_class], touched=True) for kind in kinds]
    steps = [run.profile.step_seconds if run.profile and run.profile.steps else None for run in runs]
    lines.append(line(runs, "a step", "seconds", steps, touched=True))
    counts = [run.profile.steps if run.profile else None for run in runs]
    lines.append(line(runs, "steps that were recorded", "", counts))
    note = (
        "Of recorded steps, with what recording takes. What is outside of any operator counts as other. "
        "On a GPU the time is that of kernels."
    )
    return beside("classes", "A step by class of operator", runs, lines, note)


def operators(run: Run) -> Table:
    """A row an operator and direction."""
    assert run.profile is not None
    profile, header = run.profile, [*map(Cell, ("operator", "direction", "class", "calls a step"))]
    header += [Cell("time", "seconds"), Cell("share", "share"), Cell("moved", "bytes"), Cell("bandwidth", "GB/s")]
    header += [Cell("of measured", "share"), Cell("computed", "GFLOP/s"), Cell("intensity", "flop/byte")]
    note = (
        "Bytes and operations of a step, as the operators' models count them: rows each time they are gathered, so "
        "that those which caches hold pass faster than memory delivers them. What was measured is the rate of "
        f"gathered rows for SpMM, SDDMM and loss, of reading in order for all else{_unmeasured(profile)}."
    )
    shown = [operator for operator in profile.operators if operator.share >= LEAST]
    rows = [_operator(run, profile, operator) for operator in [*shown, *_together(profile.operators[len(shown) :])]]
    return filled(Table("operators", "A step by operator", (*header, Cell("bound by")), tuple(rows), note))


def _together(operators: Sequence[Operator]) -> list[Operator]:
    """A row for those that are too short for one each."""
    if not operators:
        return []
    calls, seconds, share = (sum(getattr(one, name) for one in operators) for name in ("calls", "seconds", "share"))
    return [Operator(f"{len(operators)} shorter ones", "", "", calls, seconds, share, None, None)]


def _unmeasured(profile: Profile) -> str:
    known = any(ceiling.read or ceiling.gather for ceiling in profile.ceilings)
    return "" if known else "; nothing was, before the run: gnnrec calibrate measures"


def _operator(run: Run, profile: Profile, operator: Operator) -> tuple[Cell, ...]:
    stamp, bound = run.simulated, profile.is_memory_bound(operator)
    share = of_measured(profile, operator)
    return (
        Cell(operator.name),
        Cell(operator.direction),
        Cell(operator.kind),
        Cell(int(operator.calls) if operator.calls.is_integer() else operator.calls),
        Cell(operator.seconds, "seconds", stamp),
        Cell(operator.share, "share", stamp),
        Cell(operator.bytes or None, "bytes"),
        Cell(operator.gb_per_s, "GB/s", stamp),
        Cell(share, "share", stamp, CACHED if share is not None and share > 1 else ""),
        Cell(operator.gflop_per_s, "GFLOP/s", stamp),
        Cell(operator.intensity, "flop/byte"),
        Cell(None if bound is None else "memory" if bound else "computation"),
    )


def of_measured(profile: Profile, operator: Operator) -> float | None:
    """Its bandwidth as a share of the measured one."""
    rate = profile.bandwidth(operator.kind)
    return None if rate is None or operator.gb_per_s is None else operator.gb_per_s / rate


def layers(run: Run) -> Table:
    """Seconds of a step by layer."""
    assert run.profile is not None
    found = {(layer.number, layer.direction): layer.seconds for layer in run.profile.layers}
    ways, stamp = ("forward", "backward"), run.simulated
    rows = tuple(
        (Cell(number), *(Cell(found.get((number, way)), "seconds", stamp) for way in ways))
        for number in sorted({number for number, _ in found})
    )
    header = Cell("layer"), *(Cell(way, "seconds") for way in ways)
    note = "With all that a layer calls. Models whose layers are parts of one operator have no rows here."
    return Table("layers", "A step by layer", header, rows, note)


def moved(run: Run) -> Table:
    """What the recorded steps streamed, by file."""
    assert run.profile is not None
    ways = [(way, Cell(f"{way} in a step", "bytes"), Cell(f"{way}, a thread", "GB/s")) for way in ("read", "written")]
    header = Cell("file"), *(cell for _, size, speed in ways for cell in (size, speed))
    rows = [
        (
            Cell(one.file),
            Cell(one.read_bytes, "bytes"),
            Cell(_rate(one.read_bytes, one.read_seconds), "GB/s", run.simulated),
            Cell(one.write_bytes, "bytes"),
            Cell(_rate(one.write_bytes, one.write_seconds), "GB/s", run.simulated),
        )
        for one in run.profile.moved
    ]
    note = "Of the recorded steps. Several threads transfer at a time: rates are those of one of them."
    return Table("transfers", "Transfers", header, tuple(rows), note)


def _rate(count: float, seconds: float) -> float | None:
    return count / seconds / 1e9 if seconds > 0 else None


def calibration(runs: Sequence[Run]) -> Table:
    """The measured bandwidths that were valid when the runs ended, each once."""
    found = {(tier.name, tier.words): tier for run in runs if run.profile for tier in run.profile.tiers}
    header = [*map(Cell, ("tier", "pattern")), Cell("row", "bytes"), Cell("within", "bytes"), Cell("threads")]
    header += [Cell("bandwidth", "GB/s"), Cell("spread", "share"), Cell("measurements")]
    rows = [
        (
            Cell(tier.name),
            Cell(rate.pattern),
            Cell(rate.row_bytes, "bytes") if rate.row_bytes else Cell("in order"),
            Cell(rate.working_set, "bytes") if rate.working_set else Cell("far more than caches"),
            Cell(rate.threads),
            Cell(rate.gb_per_s, "GB/s"),
            Cell(rate.spread, "share"),
            Cell(rate.count),
        )
        for tier in found.values()
        for rate in tier.rates
    ]
    about = [f"{tier.name}: {_latency(tier.latency_ns)}{tier.words}." for tier in found.values()]
    note = " ".join(["Medians; spread is what lies between the slowest and the fastest, of the median.", *about])
    return Table("calibration", "Measured bandwidths", tuple(header), tuple(rows), note)


def _latency(nanoseconds: float | None) -> str:
    return "" if nanoseconds is None else f"latency {nanoseconds:,.0f} ns; "
