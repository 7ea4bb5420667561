"""From a profiler's trace of training steps to seconds by operator, none of them counted twice.

On a CPU an operator has the time between its begin and end, without that of operators it calls. On a GPU it has the
time of its kernels, wherever the host was meanwhile; a CUDA graph's kernels have no operator and count by their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gnnrec.profiler import WAITING
from gnnrec.training.op_costs import Call, Cost, cost

STEP, SAMPLING = "gnnrec step", "gnnrec sampling"  # names of the ranges that are recorded
ENGINE_EVENT = "autograd::engine"  # as torch's profiler begins the names of what autograd does
REST, ENGINE, IDLE = "python / other", "autograd engine", "no kernel"

SPMM, SDDMM, GEMM, FUSED = "SpMM", "SDDMM", "GEMM", "SpMM + GEMM"
LOSS, OPTIMIZER, DRAWS, IO, ELEMENTS, OTHER = "loss", "optimizer", "sampling", "I/O", "element-wise", "other"
SELECTION = "row selection"  # parts of the graph, made for a batch or a block
_OWN = {
    SPMM: "spmm spmm_accumulate spmm_extreme_backward lightgcn_propagate lightgcn_propagate_rows "
    "lightgcn_propagate_rows_backward propagate_some ngcf_aggregate",
    FUSED: "ngcf_layer ngcf_layer_backward",
    SDDMM: "sddmm",
    GEMM: "matmul matmul_weight ngcf_dense ngcf_dense_backward",
    LOSS: "bpr_loss bpr_loss_backward bpr_batch softmax_loss softmax_loss_backward uniformity_loss "
    "uniformity_loss_backward",
    OPTIMIZER: "adam_step",
    ELEMENTS: "perturb",
    SELECTION: "select_rows",
}
_CLASSES = {f"gnnrec::{name}": kind for kind, names in _OWN.items() for name in names.split()}
# What a model calls once a layer, with the direction. lightgcn_propagate takes all layers in one call.
LAYERED = {"gnnrec::ngcf_layer": "forward", "gnnrec::ngcf_layer_backward": "backward"}
_PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm")
_CLASSES |= dict.fromkeys(_PRODUCTS, GEMM)
# What moves, makes or looks at tensors without computing with their numbers is no element-wise operator.
_NO_NUMBERS = re.compile(
    r"aten::(empty|new_|zeros|ones|full|_to_copy|to|copy_|clone|contiguous|item|view|reshape|slice|select|narrow|cat"
    r"|stack|split|detach|as_strided|expand|permute|transpose|t$|numpy_T|unsqueeze|squeeze|rand|index|embedding|sort"
    r"|unique|_unique|arange|_unsafe_view|_local_scalar_dense|lift|is_|result_type|alias|resolve_)"
)
_NO_OPERATORS = ("torch::", "prim::", "profiler::")


class Key(NamedTuple):
    """A row of the profile: operator, direction (forward, backward or None where that means nothing), class."""

    operator: str
    direction: str | None
    kind: str


@dataclass
class Row:
    """What the calls of a row took. Bytes and operations are None once those of one call are unknown."""

    calls: int = 0
    seconds: float = 0.0
    bytes: int | None = 0
    flop: int | None = 0

    def count(self, call: Cost) -> None:
        """Add a call."""
        self.calls += 1
        self.bytes = None if self.bytes is None or call.bytes is None else self.bytes + call.bytes
        self.flop = None if self.flop is None or call.flop is None else self.flop + call.flop


_REST = Key(REST, None, OTHER)


@dataclass
class _Frame:
    """An open event of a thread, its row, whether it is a call of that, and the microseconds of events in it."""

    event: Mapping[str, Any]
    key: Key
    counts: bool
    inner: float = 0.0

    @property
    def end(self) -> float:
        return float(self.event["ts"] + self.event["dur"])


class _Layers:
    """Tells the layers of a step apart by the order of calls, which is the reverse one in the backward pass."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, int], float] = {}
        self._calls: dict[str, list[float]] = {}  # of the step so far

    def count(self, frame: _Frame) -> None:
        """An event that has ended, after all that are in it."""
        name, seconds = frame.event["name"], frame.event["dur"] / 1e6
        if name in LAYERED and frame.counts:
            self._calls.setdefault(name, []).append(seconds)
        elif name == STEP:
            for called, times in self._calls.items():
                in_order = times if LAYERED[called] == "forward" else times[::-1]
                for number, one in enumerate(in_order, start=1):
                    self.seconds[called, number] = self.seconds.get((called, number), 0.0) + one
            self._calls = {}


class Profile(NamedTuple):
    """Rows whose seconds sum up to those of all steps, how many these are, and their seconds; seconds of all calls of
    an operator that a model calls once a layer, by operator and number of the layer, from 1, with what it calls."""

    rows: dict[Key, Row]
    steps: int
    seconds: float
    layers: dict[tuple[str, int], float]


def rows_of(events: Iterable[Mapping[str, Any]]) -> Profile:
    """Seconds, calls, bytes and operations by operator.

    Args:
        events: `traceEvents` of a Chrome trace, its steps in ranges named STEP. A GPU has done a step when it ends.
    """
    complete = [event for event in events if event.get("ph") == "X"]
    host = [event for event in complete if event["cat"] in ("cpu_op", "user_annotation")]
    kernels = [event for event in complete if event["cat"] in ("kernel", "gpu_memcpy", "gpu_memset")]
    steps = [event for event in host if event["name"] == STEP]
    seconds = sum(float(step["dur"]) for step in steps) / 1e6
    threads: dict[Any, list[Mapping[str, Any]]] = {}
    for event in host:
        threads.setdefault(event["tid"], []).append(event)
    main, differentiated = {step["tid"] for step in steps}, any(_is_engine(event["name"]) for event in host)
    rows: dict[Key, Row] = {}
    layers = _Layers()
    owners: dict[int, Key] = {}  # by the number under which kernels know what launched them
    for thread, inside in threads.items():
        if thread not in main and not kernels:
            continue  # beside the steps, whose seconds are those of their own thread
        for frame in _closed(inside, only_steps=thread in main, differentiated=differentiated):
            row = rows.setdefault(frame.key, Row())
            row.seconds += (frame.event["dur"] - frame.inner) / 1e6
            if frame.counts:
                row.count(_cost(frame.event))
            layers.count(frame)
            if "External id" in frame.event.get("args", {}):
                owners[frame.event["args"]["External id"]] = frame.key
    if kernels:
        _by_kernels(rows, kernels, owners, steps)
    return Profile(rows, len(steps), seconds, {} if kernels else layers.seconds)


def _closed(events: list[Mapping[str, Any]], *, only_steps: bool, differentiated: bool) -> Iterator[_Frame]:
    """The events of a thread as they end, those within steps where asked."""
    stack: list[_Frame] = []
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        while stack and event["ts"] >= stack[-1].end:
            yield stack.pop()
        around = stack[-1] if stack else None
        if around is None and only_steps and event["name"] != STEP:
            continue
        key = _key(event, None if around is None else around.key, differentiated=differentiated)
        stack.append(_Frame(event, around.key if key is None and around else key or _REST, key is not None))
        if around is not None:
            around.inner += min(event["dur"], around.end - event["ts"])
    while stack:
        yield stack.pop()


def _key(event: Mapping[str, Any], around: Key | None, *, differentiated: bool) -> Key | None:
    """The row of an event within one of this row; None: the same, as a part of it."""
    name = event["name"]
    if around is not None and around.operator == SAMPLING:
        return None
    if name.startswith("gnnrec::"):
        return Key(name, _direction(around, differentiated=differentiated), _CLASSES.get(name, OTHER))
    if name == SAMPLING:
        return Key(SAMPLING, None, DRAWS)
    if name == WAITING:
        return Key(WAITING, None, IO)
    if around is not None and around.operator.startswith("gnnrec::"):
        return None
    if event["cat"] == "user_annotation":
        return Key(name.partition("#")[0], None, OPTIMIZER) if name.startswith("Optimizer.") else None
    if _is_engine(name):
        return Key(ENGINE, "backward", OTHER)
    if "::" not in name or name.startswith(_NO_OPERATORS):
        return None
    if around is not None and around.operator.startswith("aten::") and name not in _PRODUCTS:
        return None
    # Nobody knows what operators of others do.
    kind = _CLASSES.get(name, ELEMENTS if name.startswith("aten::") and not _NO_NUMBERS.match(name) else OTHER)
    if around is not None and around.kind == OPTIMIZER:
        return Key(name, None, OPTIMIZER)
    return Key(name, _direction(around, differentiated=differentiated), kind)


def _direction(around: Key | None, *, differentiated: bool) -> str | None:
    if around is None or not differentiated or around.kind == OPTIMIZER:
        return None
    return around.direction or "forward"


def _is_engine(name: str) -> bool:
    return name.startswith(ENGINE_EVENT)


def _cost(event: Mapping[str, Any]) -> Cost:
    arguments = event.get("args", {})
    names = "Input Dims", "Input type", "Concrete Inputs"
    if not all(name in arguments for name in names):
        return Cost()
    return cost(Call(event["name"], *(arguments[name] for name in names)))


def _by_kernels(
    rows: dict[Key, Row], kernels: list[Mapping[str, Any]], owners: dict[int, Key], steps: list[Mapping[str, Any]]
) -> None:
    """Replace seconds of the host by those of kernels within the steps, the rest of which has a row of its own."""
    for row in rows.values():
        row.seconds = 0.0
    idle = rows.setdefault(Key(IDLE, None, OTHER), Row(bytes=None, flop=None))
    for step in steps:
        left = step["dur"]
        for kernel in kernels:
            if not step["ts"] <= kernel["ts"] < step["ts"] + step["dur"]:
                continue
            owner = owners.get(kernel.get("args", {}).get("External id", 0), _REST)
            if owner == _REST:  # of a captured step
                owner = Key(kernel["name"], None, OTHER)
                rows.setdefault(owner, Row(bytes=None, flop=None)).calls += 1
            rows[owner].seconds += kernel["dur"] / 1e6
            left -= kernel["dur"]
        idle.seconds += max(left, 0.0) / 1e6
    waits = Key(WAITING, None, IO)
    if waits in rows and not rows[waits].seconds:
        del rows[waits]  # without kernels: no kernel
