"""GPUs: which tensors lie on one, whether it can run the kernels, and what to say when it cannot."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from gnnrec import kept
from gnnrec.errors import GnnrecError

if TYPE_CHECKING:
    import torch

NAMES = ("auto", "cpu", "cuda")
LOWER = "model.dim, trainer.batch_size or evaluation.k"  # what takes memory on a GPU
CAPABILITY = (8, 0)  # the least that the kernels are compiled and tested for


class DeviceError(GnnrecError, ValueError):
    """A device that is not there, or that cannot run the kernels."""


class DeviceMemoryError(GnnrecError, MemoryError):
    """No memory left on a GPU."""


def on_gpu(x: torch.Tensor) -> bool:
    """Whether the Triton kernels are the ones for this tensor. Tests replace this, to interpret them on CPU tensors."""
    return x.is_cuda


def resolve(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` stands for; auto takes a GPU that can run the kernels, if there is one.

    Raises:
        DeviceError: another name; cuda where there is none, or one that cannot run the kernels.
    """
    import torch

    if name not in NAMES:
        raise DeviceError(f"is {name!r}", where="device", remedy=f"It must be one of {', '.join(NAMES)}")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(
            "torch sees no GPU",
            where=f"device={name}",
            remedy="Use device=cpu, or install a build of torch for this GPU's CUDA version",
        )
    found = torch.device("cuda", torch.cuda.current_device())
    problem = _problem(found)
    if problem is None:
        return found
    if name == "auto":
        print(f"warning: there is a GPU, but {problem[0]}: the CPU is used", file=sys.stderr, flush=True)
        return torch.device("cpu")
    raise DeviceError(problem[0], where=f"device={name}", remedy=problem[1])


def check(operator: str, name: str, x: torch.Tensor) -> None:
    """Raise a DeviceError unless kernels can run where this tensor lies."""
    if x.is_cuda and (problem := _problem(x.device)) is not None:
        raise DeviceError(
            f"{name} {list(x.shape)} ({_size(x.numel() * x.element_size())}) lies on {x.device}, but {problem[0]}",
            where=operator,
            remedy=problem[1],
        )


@cache
def _problem(device: torch.device) -> tuple[str, str] | None:
    """Why kernels cannot run on this GPU, and what to do about it."""
    import torch

    if find_spec("triton") is None:
        return "triton is not installed", "Install gnnrec[cuda], or use the CPU (device=cpu, tensors moved with .cpu())"
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        have, need = (".".join(map(str, version)) for version in (capability, CAPABILITY))
        return (
            f"{torch.cuda.get_device_name(device)} has compute capability {have}, and the kernels need {need}",
            "Use the CPU (device=cpu, tensors moved with .cpu())",
        )
    return None


def empty(like: torch.Tensor, shape: Any, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A fresh tensor beside `like`, of its dtype unless another is given; on the CPU in what a training has kept.

    Raises:
        DeviceMemoryError: no room on the GPU, with the tensor's name and size.
    """
    import torch

    numbers, dtype = torch.Size(shape if isinstance(shape, list | tuple) else [shape]), dtype or like.dtype
    found = kept.empty(numbers, dtype) if like.device.type == "cpu" else None
    if found is not None:
        return found
    try:
        return like.new_empty(numbers, dtype=dtype)
    except torch.OutOfMemoryError as error:
        size = numbers.numel() * dtype.itemsize
        raise _no_memory(f"{name} {list(numbers)} needs {_size(size)}", like.device) from error


@contextmanager
def memory_errors(doing: str, lower: str = LOWER, device: torch.device | None = None) -> Iterator[None]:
    """Turn torch's out-of-memory errors into a DeviceMemoryError that says what was being done, and what to lower."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        asked = str(error).partition("Tried to allocate ")[2].split(". ")[0]
        found = f"{doing} needs {asked} more" if asked else f"{doing} needs more than there is"
        raise _no_memory(found, device or torch.device("cuda", torch.cuda.current_device()), lower) from error


def _no_memory(found: str, device: torch.device, lower: str = LOWER) -> DeviceMemoryError:
    import torch

    free, total = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return DeviceMemoryError(
        f"{found}, but of {_size(total)} only {_size(free + kept)} are free",
        where=str(device),
        remedy=f"Lower {lower}, use device=cpu, or end what else uses this GPU",
    )


def _size(count: float) -> str:
    """Bytes in words."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
