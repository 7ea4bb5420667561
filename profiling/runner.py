"""One operation of the table: check every contender, measure those that are right, compare."""

from __future__ import annotations

from dataclasses import dataclass, field

import measure
import torch
from contender import Call, Missing, Upstream, prepare, whole_tensor, worst_element
from operations import BEST, FORWARD, Check, Operation, Peer, Target
from workload import Tensors, Workload

OURS = "ours"
OK, FAILED, MISSING = "ok", "failed its check", "missing"
KINK_TOLERANCE = 5e-3  # in norm; a term lost at a hub is more


@dataclass
class Row:
    """One contender in one operation.

    Args:
        name: of the contender.
        status: OK, FAILED or MISSING; only what is OK is timed.
        note: why it is missing or what is wrong with its result.
        same: whether it computes the same as ours.
        error: of its result, see `contender.worst_element` and `whole_tensor`; the larger share of its tolerance.
        seconds: of every timed call; low, median, high: their quartiles.
        peak_bytes: of resident memory above the inputs.
        ratio, bytes_ratio: its median and peak memory by ours.
        gather_share: bytes of a forward call by the operator's own count / median / the machine's gather bandwidth.
    """

    name: str
    status: str
    note: str = ""
    same: bool = True
    error: float | None = None
    seconds: list[float] = field(default_factory=list)
    low: float | None = None
    median: float | None = None
    high: float | None = None
    peak_bytes: int | None = None
    ratio: float | None = None
    bytes_ratio: float | None = None
    gather_share: float | None = None


@dataclass
class Verdict:
    """A target beside what was measured: theirs / ours, and whether that is at least `least`; None where one of the two
    was not measured."""

    target: str
    peer: str
    of: str
    least: float
    measured: float | None
    reached: bool | None


@dataclass
class Result:
    """An operation in one mode; others_load is the share of the processor that other programs had meanwhile."""

    operation: str
    mode: str
    rows: list[Row]
    verdicts: list[Verdict]
    others_load: float


def run(operation: Operation, mode: str, w: Workload, budget: float, repeats: int) -> Result:
    """Check, measure and compare all contenders of an operation.

    Args:
        operation: of the table.
        mode: FORWARD or TRAINING.
        w: the graph.
        budget: seconds for all timed calls together; each contender has at least measure.LEAST.
        repeats: the most timed calls of a contender.
    """
    inputs = operation.inputs(w)
    upstream = None if mode == FORWARD else upstream_of(w)
    rows, calls = check_all(operation, w, inputs, upstream)
    for row in rows:
        if row.status == OK:
            row.peak_bytes = measure.peak_bytes(calls[row.name])
    with measure.Load() as load:
        seconds = measure.interleave(calls, budget, repeats) if calls else {}
    for row in rows:
        if row.status == OK:
            row.seconds = seconds[row.name]
            row.low, row.median, row.high = measure.quartiles(row.seconds)
    compare(rows)
    if mode == FORWARD:
        share_of_bandwidth(operation, w, inputs, rows[0])
    return Result(operation.name, mode, rows, verdicts(operation.targets.get(mode, ()), rows), load.others)


def upstream_of(w: Workload) -> Upstream:
    """Random gradients, the same for every contender; 1 for a scalar."""
    drawn: dict[torch.Size, torch.Tensor] = {}

    def draw(out: torch.Tensor) -> torch.Tensor:
        if out.shape not in drawn:
            drawn[out.shape] = w.normal(9, *out.shape) if out.shape else torch.ones(())
        return drawn[out.shape].to(out.dtype)

    return draw


def check_all(
    operation: Operation, w: Workload, inputs: Tensors, upstream: Upstream | None
) -> tuple[list[Row], dict[str, Call]]:
    """A row for each contender, ours first, and the calls of those whose results are right."""
    exact_inputs = {name: x.double() for name, x in inputs.items()}
    exact: dict[tuple[int, bool], Tensors] = {}
    rows, calls = [], {}
    for peer in (Peer(OURS, operation.build_ours), *operation.peers):
        check, gradients = peer.check or operation.check, upstream if peer.differentiable else None
        if upstream and not gradients and peer.check is None:
            continue  # it has no part in this
        try:
            call = prepare(peer.build, w, inputs, gradients)
            result = call()
        except Missing as missing:
            rows.append(Row(peer.name, MISSING, str(missing)))
            continue
        key = id(check), gradients is None
        if key not in exact:
            exact[key] = prepare(check.oracle, w, exact_inputs, gradients)()
        row = judge(peer.name, check, check.read(w, inputs, result), exact[key])
        row.same = peer.check is None
        rows.append(row)
        if row.status == OK:
            calls[peer.name] = call
    return rows, calls


def judge(name: str, check: Check, result: Tensors, exact: Tensors) -> Row:
    """The row of a contender with that result."""
    worst, worst_share, where = 0.0, 0.0, ""
    for key, x in result.items():
        if key not in exact or x.shape != exact[key].shape:
            wanted = list(exact[key].shape) if key in exact else "none"
            return Row(name, FAILED, f"{key} has shape {list(x.shape)}, not {wanted}")
        kinked = check.kinks and key != "out"
        error = whole_tensor(x, exact[key]) if kinked else worst_element(x, exact[key])
        share = error / (KINK_TOLERANCE if kinked else check.tolerance)
        if share >= worst_share:
            worst, worst_share, where = error, share, key
    if worst_share > 1:
        return Row(name, FAILED, f"{where} is off by {worst:.1e}", error=worst)
    return Row(name, OK, error=worst)


def compare(rows: list[Row]) -> None:
    """Fill in the ratios to ours, where both are right."""
    ours = rows[0]
    if ours.status != OK:
        return
    for row in rows[1:]:
        if row.median and ours.median:
            row.ratio = row.median / ours.median
        if row.peak_bytes and ours.peak_bytes:
            row.bytes_ratio = row.peak_bytes / ours.peak_bytes


def verdicts(targets: tuple[Target, ...], rows: list[Row]) -> list[Verdict]:
    """Each target beside what was measured."""
    found = []
    for target in targets:
        rivals = [row for row in rows[1:] if (row.same if target.peer == BEST else row.name == target.peer)]
        ratios = [row.ratio if target.of == "seconds" else row.bytes_ratio for row in rivals]
        measured = min((ratio for ratio in ratios if ratio is not None), default=None)
        reached = None if measured is None else measured >= target.least
        found.append(Verdict(str(target), target.peer, target.of, target.least, measured, reached))
    return found


def share_of_bandwidth(operation: Operation, w: Workload, inputs: Tensors, ours: Row) -> None:
    """What ours makes of the machine's gather bandwidth, by the bytes that the operator says it moves."""
    moved = operation.bytes_moved(w, inputs) if ours.status == OK else None
    if moved and ours.median:
        operand = w.nodes * w.dim * operation.itemsize
        ours.gather_share = moved / ours.median / measure.gather_bandwidth(operand, w.threads)
