"""Recordings of steps as Chrome traces: on a CPU every call that torch dispatches, on a GPU by torch's profiler.

On a CPU torch's profiler would change what it measures. It keeps small pieces of memory of every call until it ends,
and these come to lie between the results of the step: freed, a result is no longer large enough for the next one of its
size, which takes fresh memory. On Gowalla each recorded step had 35 to 70 MB of page faults that no other step has,
most of them in the backward pass. What is kept here are Python's objects, which lie elsewhere. One thing differs still:
while calls are dispatched to a mode, autograd adds gradients up in new memory (aten::add), not in place (aten::add_).
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch._C._dynamo.eval_frame import _FrameAction as FrameAction
from torch._C._dynamo.eval_frame import _FrameExecStrategy as FrameExecStrategy
from torch._C._dynamo.eval_frame import set_code_exec_strategy
from torch.profiler import ProfilerActivity, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from gnnrec import profiler
from gnnrec.training.trace import ENGINE_EVENT, STEP

_ENTER, _EXIT = "profiler::_record_function_enter_new", "profiler::_record_function_exit"
_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
# As torch's profiler names them.
_TYPES = {
    torch.float64: "double",
    torch.float32: "float",
    torch.bfloat16: "c10::BFloat16",
    torch.float16: "c10::Half",
    torch.int64: "long int",
    torch.int32: "int",
}


class Recording(profiler.Recording, Protocol):
    """Some steps, recorded."""

    def step(self) -> AbstractContextManager[None]:
        """Around a step that is to be recorded."""
        ...

    def end(self) -> bytes:
        """End it; gives the trace."""
        ...


def begin(device: torch.device, folder: Path) -> Recording:
    """A recording of steps on this device; files that it needs for a while lie in the folder."""
    return KernelRecording(device, folder) if device.type == "cuda" else CallRecording()


# Category, name, begin and end in nanoseconds, arguments as `_described` has them.
_Event = tuple[str, str, int, int, tuple[Any, ...]]


class CallRecording(TorchDispatchMode):
    """Calls of operators below autograd, ranges by `record_function`, backward passes, and kernels."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Else what is kept here would make Python look through all that there is for garbage, in the middle of a step.
        # What somebody else has frozen is not ours to thaw.
        self._frozen = gc.get_freeze_count() == 0
        if self._frozen:
            gc.freeze()
        self._events: list[_Event] = []
        self._ranges: list[tuple[str, int]] = []  # that are open
        self._backward: tuple[int, int, int] | None = None  # the latest: its number, begin and end

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """What torch keeps its compiler off with takes a second to import, in the first step; `_SKIP` takes nothing."""
        return False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """What a model has compiled runs compiled, as in every other step."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        begin, kwargs = time.perf_counter_ns(), kwargs or {}
        result = self._call(func, args, kwargs)
        name, end = func.name().partition(".")[0], time.perf_counter_ns()
        if name == _ENTER:
            self._ranges.append((args[0], begin))
        elif name != _EXIT:
            # Names of torch.cond and its like have no namespace.
            name = name if "::" in name else f"{func.namespace}::{name}"
            self._events.append(("cpu_op", name, begin, end, _described([*args, *kwargs.values()])))
        elif self._ranges:  # else of a range from before the step
            self._events.append(("user_annotation", *self._ranges.pop(), end, ()))
        self._count_backward(begin, end)
        return result

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func.namespace != "gnnrec":
            return func(*args, **kwargs)
        with self:  # operators of ours call others
            return func.redispatch(_CPU, *args, **kwargs)

    @contextmanager
    def kernel(self, name: str, arguments: tuple[Any, ...]) -> Iterator[None]:
        """As profiler.Recording.kernel."""
        begin = time.perf_counter_ns()
        yield
        self._events.append(("cpu_op", name, begin, time.perf_counter_ns(), _described(arguments)))

    @contextmanager
    def step(self) -> Iterator[None]:
        """As Recording.step."""
        begin = time.perf_counter_ns()
        with self, profiler.told(self):
            yield
        self._end_backward()
        self._events.append(("user_annotation", STEP, begin, time.perf_counter_ns(), ()))

    def end(self) -> bytes:
        """As Recording.end."""
        if self._frozen:
            gc.unfreeze()
            self._frozen = False
        place = {"ph": "X", "pid": os.getpid(), "tid": threading.get_native_id()}
        names = "Input Dims", "Input type", "Concrete Inputs"
        events = [
            place
            | {"cat": category, "name": name, "ts": begin / 1e3, "dur": (end - begin) / 1e3}
            | {"args": dict(zip(names, zip(*described), strict=False))}
            for category, name, begin, end, described in self._events
        ]
        return json.dumps({"displayTimeUnit": "ms", "traceEvents": events}).encode()

    def _count_backward(self, begin: int, end: int) -> None:
        """Calls that autograd makes lie within its pass, and ranges from their begin to their end."""
        number = torch._C._current_graph_task_id()
        if number < 0:
            return
        if self._backward is not None and self._backward[0] == number:
            begin = min(begin, self._backward[1])  # calls that an operator makes end before it does
        else:
            self._end_backward()
        self._backward = number, begin, end

    def _end_backward(self) -> None:
        if self._backward is not None:
            self._events.append(("cpu_op", ENGINE_EVENT, *self._backward[1:], ()))
            self._backward = None


# Between the parts of a function that torch.compile could not compile as a whole, it would compile this.
_SKIP = FrameExecStrategy(FrameAction.SKIP, FrameAction.SKIP)
set_code_exec_strategy(CallRecording.__torch_dispatch__.__code__, _SKIP)


class KernelRecording:
    """torch's profiler, which knows what a GPU does; steps wait for it."""

    def __init__(self, device: torch.device, folder: Path) -> None:
        self._device, self._folder = device, folder
        torch.cuda.synchronize(device)
        activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
        self._profiler = torch.profiler.profile(activities=activities, record_shapes=True)
        self._profiler.start()

    @contextmanager
    def kernel(self, name: str, arguments: tuple[Any, ...]) -> Iterator[None]:
        """As profiler.Recording.kernel; arguments are not kept."""
        with record_function(name):
            yield

    @contextmanager
    def step(self) -> Iterator[None]:
        """As Recording.step."""
        with record_function(STEP), profiler.told(self):
            yield
            torch.cuda.synchronize(self._device)

    def end(self) -> bytes:
        """As Recording.end."""
        self._profiler.stop()
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".tmp-trace-") as folder:
            file = Path(folder) / "trace.json"
            self._profiler.export_chrome_trace(str(file))
            return file.read_bytes()


def _described(arguments: Iterable[Any]) -> tuple[tuple[Any, str, str], ...]:
    """Shape, type and value of every argument, in the words of torch's profiler."""
    return tuple(map(_argument, arguments))


def _argument(value: Any) -> tuple[tuple[Any, ...], str, str]:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), _TYPES.get(value.dtype, str(value.dtype)), ""
    if value is None:
        return (), "", ""
    if isinstance(value, (list, tuple)):
        if any(isinstance(part, torch.Tensor) for part in value):
            return tuple(_argument(part)[0] for part in value), "TensorList", ""
        return (), "ScalarList", str(list(value))
    return (), "Scalar", str(value)
