"""One operation of the table: check every contender, measure those that are right, compare."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field

import measure
import torch
from contender import (
    Call,
    Missing,
    Upstream,
    exact_slopes,
    prepare,
    prepare_step,
    rotate,
    slopes,
    whole_tensor,
    worst_element,
)
from operations import BEST, FORWARD, STEP, TRAINING, Check, Operation, Peer, Target
from workload import Tensors, Workload

OURS = "ours"
OK, FAILED, RAISED, MISSING, UNCHECKED = "ok", "failed its check", "failed", "missing", "could not be checked"
NOTE = 300  # characters of a message
KINK_TOLERANCE = 5e-3  # in norm; a term lost at a hub is more


@dataclass
class Row:
    """One contender in one operation.

    Args:
        name: of the contender.
        status: OK, FAILED, RAISED, MISSING or UNCHECKED; only what is OK is timed.
        note: why it is missing, what is wrong with its result or what it raised.
        same: whether it computes the same as ours.
        error: of its result, see `contender.worst_element` and `whole_tensor`; the larger share of its tolerance.
        seconds: of every timed call; low, median, high: their quartiles.
        peak_bytes: of resident or of GPU memory above the inputs; None for a CUDA graph, which has its own beforehand.
        ratio, bytes_ratio: its median and peak memory by ours.
        gather_share, copy_share: bytes of a forward call by the operator's own count, every gather counted, / median /
            the bandwidth of gathering random rows, and that of a copy.
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
    copy_share: float | None = None


@dataclass
class Verdict:
    """A target beside what was measured, a ratio, a share or seconds as the target's, and whether that reaches `least`;
    None where it was not measured."""

    target: str
    peer: str
    of: str
    least: float
    measured: float | None
    reached: bool | None


@dataclass
class Result:
    """An operation in one mode.

    Args:
        operation, mode: of the table.
        graph, edges: what it ran on; edges are directed.
        rows: of the contenders, ours first.
        verdicts: on the targets.
        others_load: the share of the processor that other programs had meanwhile.
        set_bytes: of the dense inputs and of the matrix's entries; sets: so many, which calls go through in turn.
        exceeds_cache: whether one set is larger than the processor's last cache or the GPU's L2.
    """

    operation: str
    mode: str
    graph: str
    edges: int
    rows: list[Row]
    verdicts: list[Verdict]
    others_load: float
    set_bytes: int
    sets: int
    exceeds_cache: bool


Set = tuple[Workload, Tensors]


def run(
    operation: Operation, mode: str, w: Workload, budget: float, repeats: int, clock: measure.Clock | None = None
) -> Result:
    """Check, measure and compare all contenders of an operation.

    Args:
        operation: of the table.
        mode: FORWARD, TRAINING or STEP.
        w: the graph.
        budget: seconds for all timed calls together; each contender has at least measure.LEAST.
        repeats: the most timed calls of a contender.
        clock: of the device; by default the CPU's.
    """
    clock = clock or measure.Clock()
    inputs = operation.inputs(w)
    size = sum(x.nbytes for x in (*inputs.values(), w.adjacency.indptr, w.adjacency.indices))
    count = 1 if mode == STEP else clock.sets(size)  # a step goes on with what it has changed
    sets = [(w, inputs), *((w.copy(), {name: x.clone() for name, x in inputs.items()}) for _ in range(count - 1))]
    everyone = Peer(OURS, operation.build_ours), *operation.peers
    groups = [everyone] if operation.together else [(each,) for each in everyone]
    timer = clock.step_seconds if mode == STEP else clock.seconds
    exact: dict[tuple[int, bool], Tensors] = {}
    rows, others = [], 0.0
    for group in groups:
        found, calls = check_all(group, operation.check, mode, sets, exact, clock)
        replayed = {peer.name for peer in group if peer.captured}
        for row in found:
            if row.status == OK and row.name not in replayed:
                row.peak_bytes = clock.peak_bytes(calls[row.name])
        with measure.Load() as load:
            seconds = measure.interleave(calls, budget / len(groups), repeats, timer) if calls else {}
        for row in found:
            if row.status == OK:
                row.seconds = seconds[row.name]
                row.low, row.median, row.high = measure.quartiles(row.seconds)
        rows, others = rows + found, max(others, load.others)
        del calls
        if len(groups) > 1:
            gc.collect()
    compare(rows)
    if mode == FORWARD:
        share_of_bandwidth(operation, w, inputs, rows[0], clock)
    judged = verdicts(operation.targets.get(mode, ()), rows)
    memory = size, count, size > clock.cache_bytes()
    return Result(operation.name, mode, w.name, w.adjacency.nnz, rows, judged, others, *memory)


def upstream_of(w: Workload) -> Upstream:
    """Random gradients, the same for every contender; 1 for a scalar."""
    drawn: dict[torch.Size, torch.Tensor] = {}

    def draw(out: torch.Tensor) -> torch.Tensor:
        if out.shape not in drawn:
            drawn[out.shape] = w.normal(9, *out.shape) if out.shape else torch.ones((), device=w.device)
        return drawn[out.shape].to(out.dtype)

    return draw


def check_all(
    contenders: Sequence[Peer],
    usual: Check,
    mode: str,
    sets: Sequence[Set],
    exact: dict[tuple[int, bool], Tensors],
    clock: measure.Clock,
) -> tuple[list[Row], dict[str, Call]]:
    """A row for each contender, and the calls of those whose results for the first set are right.

    Args:
        contenders: in the order of the rows.
        usual: the check of those that have none of their own.
        mode: FORWARD, TRAINING or STEP.
        sets: of inputs, equal but for where they lie.
        exact: what oracles have given already, by check and whether without gradients.
        clock: of the device.
    """
    w, inputs = sets[0]
    rows, calls = [], {}
    for peer in contenders:
        check, plain = peer.check or usual, mode == FORWARD or not peer.differentiable
        if mode == TRAINING and plain and peer.check is None:
            continue  # it has no part in this
        try:
            ready = [build(peer, mode, plain, *each) for each in sets]
            result = ready[0]()
            for call in ready[1:]:
                call()
        except Missing as missing:
            rows.append(Row(peer.name, MISSING, str(missing)))
            continue
        except clock.failures as error:
            rows.append(Row(peer.name, RAISED, " ".join(f"{type(error).__name__}: {error}".split())[:NOTE]))
            continue
        key = id(check), plain
        try:
            if key not in exact:
                exact_inputs = {name: x.double() for name, x in inputs.items()}
                if mode == STEP:
                    exact[key] = exact_slopes(check.oracle, w, exact_inputs)
                else:
                    exact[key] = prepare(check.oracle, w, exact_inputs, None if plain else upstream_of(w))()
            read = slopes if mode == STEP else check.read
            row = judge(peer.name, check, read(w, inputs, result), exact[key])
        except clock.failures as error:  # float64 takes twice the memory
            rows.append(Row(peer.name, UNCHECKED, " ".join(f"{type(error).__name__}: {error}".split())[:NOTE]))
            continue
        row.same = peer.check is None
        rows.append(row)
        if row.status == OK:
            calls[peer.name] = rotate(ready)
    return rows, calls


def build(peer: Peer, mode: str, plain: bool, w: Workload, inputs: Tensors) -> Call:
    """The call of a contender on one set of inputs."""
    if mode == STEP:
        return prepare_step(peer.build, w, inputs, peer.captured)
    return prepare(peer.build, w, inputs, None if plain else upstream_of(w))


def judge(name: str, check: Check, result: Tensors, exact: Tensors, norm: float = KINK_TOLERANCE) -> Row:
    """The row of a contender with that result; norm: the tolerance of what is compared in norm."""
    worst, worst_share, where = 0.0, 0.0, ""
    for key, x in result.items():
        if key not in exact or x.shape != exact[key].shape:
            wanted = list(exact[key].shape) if key in exact else "none"
            return Row(name, FAILED, f"{key} has shape {list(x.shape)}, not {wanted}")
        kinked = check.kinks and key.startswith("gradient")
        error = whole_tensor(x, exact[key]) if kinked else worst_element(x, exact[key])
        share = error / (norm if kinked else check.tolerance)
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
        if target.of == "bandwidth":
            numbers = [rows[0].copy_share]
        elif target.of == "limit":
            numbers = [row.median for row in rows if row.name == target.peer]
        else:
            rivals = [row for row in rows[1:] if meant(target.peer, row)]
            numbers = [row.ratio if target.of == "seconds" else row.bytes_ratio for row in rivals]
        measured = min((number for number in numbers if number is not None), default=None)
        reached = None if measured is None else (measured < target.least) == (target.of == "limit")
        found.append(Verdict(str(target), target.peer, target.of, target.least, measured, reached))
    return found


def meant(peer: str, row: Row) -> bool:
    """Whether a target's peer is this contender."""
    return row.same if peer == BEST else row.name == peer or row.name.startswith(f"{peer}, ")


def share_of_bandwidth(operation: Operation, w: Workload, inputs: Tensors, ours: Row, clock: measure.Clock) -> None:
    """What ours makes of the device's bandwidths, by the bytes that the operator says it moves."""
    moved = operation.bytes_moved(w, inputs) if ours.status == OK else None
    if moved and ours.median:
        operand = w.nodes * w.dim * operation.itemsize
        ours.gather_share = moved / ours.median / clock.gather_bandwidth(operand, w.threads)
        if clock.copy_bandwidth:
            ours.copy_share = moved / ours.median / clock.copy_bandwidth
