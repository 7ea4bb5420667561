"""A GPU that is not there, for tests of what happens around the kernels.

Tensors on it are CPU tensors in a wrapper that says they lie on a device of its own. As with a GPU, none of them goes
together with a tensor on the CPU or becomes a numpy array; and what would make the CPU wait for it can be forbidden.
Operators run as they would there, down to their Triton kernels, which are interpreted. Only in tests/interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._library import custom_ops
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from triton.runtime.interpreter import GridExecutor

from gnnrec import device as devices
from gnnrec.ops import _arguments

NAME = "pretended"
backend_registration._setup_privateuseone_for_python_backend(NAME)
GPU = torch.device(NAME, 0)

aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
# What waits because its result, or the size of its result, has to be known on the CPU.
WAITING = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
}


class OnGpu(torch.Tensor):
    """A tensor on the pretended GPU; `inner` holds its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnGpu:
        layout = inner.shape, inner.stride(), inner.storage_offset()
        wrapper = torch.Tensor._make_wrapper_subclass(cls, *layout, dtype=inner.dtype, device=GPU)
        wrapper.inner = inner
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        assert _State.may_wait, "tolist makes the CPU wait for the GPU"
        return self.inner.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({self.inner})"


class _Mode(TorchDispatchMode):
    """Sees what is made on the GPU or copied to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _State:
    may_wait = True


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    here = [x for x in tensors if isinstance(x, OnGpu)]
    elsewhere = [x for x in tensors if not isinstance(x, OnGpu)]
    if here and func.namespace == "gnnrec":
        with _Mode():
            return custom_ops.OPDEFS[func.name()]._init_fn(*args, **kwargs)
    target = kwargs.get("device")
    to_gpu = bool(here) if target is None else torch.device(target).type == NAME
    if here and elsewhere and func not in COPIES:
        strangers = [list(x.shape) for x in elsewhere if x.dim()]
        assert not strangers, f"{func} brings {list(here[0].shape)} on the GPU together with {strangers} on the CPU"
    if not _State.may_wait and (here or to_gpu):
        crosses = func in COPIES and (bool(elsewhere) or not to_gpu)
        sized = func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
        masked = func in (aten.index.Tensor, aten.index_put_.default) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        waits = func in WAITING or crosses or sized or masked
        assert not waits, f"{func} makes the CPU wait for the GPU"
    if target is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
    result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    known = {id(x.inner): x for x in here}  # what an operation in place returns

    def wrapped(x: Any) -> Any:
        return x if not to_gpu or not isinstance(x, torch.Tensor) else known[id(x)] if id(x) in known else OnGpu(x)

    return tree_map(wrapped, result)


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, OnGpu) else x


@contextmanager
def pretended() -> Iterator[torch.device]:
    """While it lasts, device=cuda is a GPU, which is given; kernels on the CPU are numba's as ever."""
    resolve, check, interpret = devices.resolve, _arguments._check_tensor, GridExecutor.__call__

    def run(kernel: Any, *args: Any, **constants: Any) -> None:
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        on_cpu = [list(x.shape) for x in tensors if not isinstance(x, OnGpu)]
        assert len(on_cpu) in (0, len(tensors)), f"a kernel is given {on_cpu} on the CPU beside tensors on the GPU"
        with _disable_current_modes():
            interpret(kernel, *map(_inner, args), **constants)

    with pytest.MonkeyPatch.context() as patch, _Mode():
        patch.setattr(devices, "on_gpu", lambda x: x.device == GPU)
        patch.setattr(devices, "resolve", lambda name: GPU if name == "cuda" else resolve(name))
        patch.setattr(_arguments, "_check_tensor", lambda *given: None if given[2].device == GPU else check(*given))
        patch.setattr(GridExecutor, "__call__", run)
        overwritten = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            yield GPU
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwritten)


class WithoutWaiting:
    """While it lasts, an operation that would make the CPU wait for the GPU fails, as it would in a CUDA graph."""

    def __enter__(self) -> None:
        _State.may_wait = False

    def __exit__(self, *_: object) -> None:
        _State.may_wait = True
