"""adam_step: a step of Adam or AdamW in one pass over parameter, gradient and state."""

from __future__ import annotations

from math import inf
from typing import Any

import torch

from gnnrec import device as devices
from gnnrec.ops import _arguments
from gnnrec.ops._operator import Operator
from gnnrec.ops.adam import cpu, reference

__all__ = ["OP", "adam_step"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def adam_step(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    *,
    lr: float | torch.Tensor,
    step: int | torch.Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    clip: float | None = None,
    seed: int = 0,
    master: torch.Tensor | None = None,
) -> torch.Tensor:
    """A step of Adam in place, without gradients; returns the parameter.

    For every row, with g its gradient, made shorter where it is longer than `clip`:

        g += weight_decay * parameter, or if decoupled: parameter *= 1 - lr * weight_decay
        mean = betas[0] * mean + (1 - betas[0]) * g
        square = betas[1] * square + (1 - betas[1]) * g^2
        parameter -= lr * mean / (1 - betas[0]^step) / (sqrt(square / (1 - betas[1]^step)) + eps)

    Computed in float32, or float64 for a float64 parameter. What is stored as bfloat16 is rounded at random, up or down
    so that its mean is the number that was rounded: small steps are not lost. The bits for it are a function of (seed,
    step, row, column), the same on every device. The parameter follows from mean and square before they are rounded.
    The result is bit-equal for any number of threads. On a GPU nothing waits for it.

    Args:
        parameter: float32, float64 or bfloat16 [rows, dim], its rows contiguous and apart; or [dim], which is one row.
        gradient: of the same dtype and shape, any strides.
        mean, square: float32 or bfloat16, both the same; float64 for a float64 parameter. As for the parameter else.
        lr: factor of the step, at least 0.
        step: the number of this step, from 1 on, below 2^32.

            Either may be a tensor of one number. One that lies on the parameter's GPU is read there, unchecked, so that
            a CUDA graph can hold the step.
        betas: within [0, 1).
        eps: at least 0.
        weight_decay: at least 0.
        clip: the greatest L2 norm of a row of the gradient, above 0; None leaves the gradient as it is.
        seed: within 0 and 2^63 - 1; counts for bfloat16 alone.
        master: float32, of a bfloat16 parameter: the step is taken on it, and the parameter becomes it, rounded to
            nearest.

    Raises:
        ValueError: another type, dtype, device, shape, layout or number, with what was received; tensors that share a
            storage.

    Source: Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2, for `decoupled`; Zamirai et al.
    2020, "Revisiting BFloat16 training", for rounding at random; Micikevicius et al. 2018, "Mixed precision training",
    for the master copy.
    """
    _check_tensors(parameter, gradient, mean, square, master)
    rate, size = _number_of("lr", lr, parameter)
    counter, count = _number_of("step", step, parameter)
    _check_numbers(size, betas, eps, weight_decay, clip, seed)
    if counter is None and not 1 <= int(count) < 2**32:
        raise ValueError(f"adam_step: step must lie within 1 and 2^32 - 1, got {int(count)}")
    decay, shrinking = (0.0, weight_decay) if decoupled else (weight_decay, 0.0)
    numbers = [float(x) for x in (size, *betas, eps, decay, shrinking, inf if clip is None else clip)]
    tensors = [x if x is None or x.dim() == 2 else x[None] for x in (parameter, gradient, mean, square, master)]
    with torch.no_grad():
        _step(*tensors, rate, counter, int(count), numbers, seed)
    return parameter


def _check_tensors(parameter: Any, gradient: Any, mean: Any, square: Any, master: Any) -> None:
    if all(isinstance(x, torch.Tensor) and x.dim() == 1 for x in (parameter, gradient)):
        shape: tuple[int, ...] = (len(parameter),)
        check: Any = _arguments.check_vector
        check("adam_step", "parameter", parameter, dtypes=DTYPES)
    else:
        check = _arguments.check_dense
        check("adam_step", "parameter", parameter, dtypes=DTYPES)
        shape = tuple(parameter.shape)
    check("adam_step", "gradient", gradient, *shape, dtypes=(parameter.dtype,))
    wide = _arguments.compute_dtype(parameter.dtype)
    check("adam_step", "mean", mean, *shape, dtypes=(wide, torch.bfloat16) if wide == torch.float32 else (wide,))
    check("adam_step", "square", square, *shape, dtypes=(mean.dtype,))
    if master is not None:
        if parameter.dtype != torch.bfloat16:
            raise ValueError(f"adam_step: master is for a parameter of torch.bfloat16, got one of {parameter.dtype}")
        check("adam_step", "master", master, *shape, dtypes=(wide,))
    given = {"gradient": gradient, "mean": mean, "square": square, "master": master}
    _arguments.check_device("adam_step", parameter, **given)
    tensors = {name: x for name, x in ({"parameter": parameter} | given).items() if x is not None}
    for name, x in tensors.items():
        if name == "gradient":
            continue
        if x.stride(-1) != 1 or (x.dim() == 2 and len(x) > 1 and x.stride(0) < x.shape[1]):
            raise ValueError(f"adam_step: the rows of {name} must be contiguous and apart, got strides {x.stride()}")
        for other, y in tensors.items():
            if other != name and torch._C._overlaps(x, y):
                raise ValueError(f"adam_step: {name} must not share a storage with {other}")


def _check_numbers(
    lr: float, betas: tuple[float, float], eps: float, decay: float, clip: float | None, seed: int
) -> None:
    for name, value in {"lr": lr, "eps": eps, "weight_decay": decay}.items():
        if not 0 <= value < inf:
            raise ValueError(f"adam_step: {name} must be at least 0 and finite, got {value}")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"adam_step: betas must be two numbers within [0, 1), got {betas}")
    if clip is not None and not clip > 0:
        raise ValueError(f"adam_step: clip must be above 0, or None, got {clip}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"adam_step: seed must lie within 0 and 2^63 - 1, got {seed}")


def _number_of(name: str, given: float | torch.Tensor, parameter: torch.Tensor) -> tuple[torch.Tensor | None, float]:
    """A tensor on the parameter's GPU as it is, or else the number."""
    if isinstance(given, torch.Tensor):
        if given.numel() != 1:
            raise ValueError(f"adam_step: {name} must be one number, got {list(given.shape)}")
        if devices.on_gpu(parameter) and given.device == parameter.device:
            return given, 0.0
    return None, float(given)


@torch.library.custom_op("gnnrec::adam_step", mutates_args=("parameter", "mean", "square", "master"))
def _step(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    master: torch.Tensor | None,
    rate: torch.Tensor | None,
    counter: torch.Tensor | None,
    count: int,
    numbers: list[float],
    seed: int,
) -> None:
    """The step numbered counter, or count where there is none, on [rows, dim].

    rate: lr, unless it is among the numbers: lr, both betas, eps, decay in the gradient, decay of the parameter beside
    it, the greatest norm of a row.
    """
    if devices.on_gpu(parameter):
        from gnnrec.ops.adam import cuda

        given = numbers[0] if rate is None else rate, count if counter is None else counter
        cuda.step(parameter, gradient, mean, square, master, *given, numbers[1:], seed)
        return
    changed, copied = parameter if master is None else master, None if master is None else parameter
    arrays = tuple(None if x is None else _arguments.array(x) for x in (changed, gradient, mean, square, copied))
    cpu.step(arrays, count, numbers, seed)


@_step.register_fake
def _(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    master: torch.Tensor | None,
    rate: torch.Tensor | None,
    counter: torch.Tensor | None,
    count: int,
    numbers: list[float],
    seed: int,
) -> None:
    return None


def _on_copies(
    parameter: torch.Tensor, gradient: torch.Tensor, mean: torch.Tensor, square: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, ...]:
    """What a step makes of parameter, mean and |square|, which stay as they are: the form that tests walk over."""

    def copy(x: Any) -> Any:
        return x.new_empty(x.shape).copy_(x) if isinstance(x, torch.Tensor) else x

    copies = copy(parameter), copy(mean), copy(square.abs() if isinstance(square, torch.Tensor) else square)
    adam_step(copies[0], gradient, *copies[1:], **options)
    return copies


OP = Operator(
    "adam_step",
    _on_copies,
    reference.adam_step,
    reference.cases,
    reference.bytes_moved,
    dtypes=DTYPES,
    differentiable=False,
)
