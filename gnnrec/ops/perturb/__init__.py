"""perturb: every row moved away from 0 by noise of one length."""

from __future__ import annotations

from math import inf
from typing import Any

import torch

from gnnrec import device as devices
from gnnrec.ops import _arguments, _dropout
from gnnrec.ops._operator import Operator
from gnnrec.ops.perturb import cpu, reference

__all__ = ["OP", "perturb"]


def perturb(x: torch.Tensor, eps: float, *, seed: torch.Tensor | None = None) -> torch.Tensor:
    """x + eps * sign(x) * r / |r|, row by row, with r uniform in [0, 1)^dim: noise of length eps in x's own orthant.

    r is a function of (seed, row, column), a multiple of 2^-24, the same for every dtype and on every device. It is
    made in registers, and nothing is kept: the gradient passes as it is. Differentiable to any order. Computed in
    float32 for halves. The result is bit-equal for any number of threads. On a GPU nothing waits for it.

    Args:
        x: float32, float64, bfloat16 or float16 [rows, dim], any strides.
        eps: length of the noise, at least 0; a row in which there are zeros gets less.
        seed: int64 [] on the CPU, not negative; None draws one from torch's default generator.

    Returns:
        [rows, dim], of x's dtype.

    Raises:
        ValueError: another type, dtype, device, shape or number, with what was received; in a CUDA graph, which would
            repeat the noise.

    Source: Yu et al. 2022, "Are graph augmentations necessary?", equations 7 and 8.
    """
    _arguments.check_dense("perturb", "x", x)
    if not 0 <= eps < inf:
        raise ValueError(f"perturb: eps must be at least 0 and finite, got {eps}")
    result: torch.Tensor = _perturb(x, float(eps), _dropout.draw_seed(seed, "perturb"))
    return result


@torch.library.custom_op("gnnrec::perturb", mutates_args=())
def _perturb(x: torch.Tensor, eps: float, seed: torch.Tensor) -> torch.Tensor:
    out = devices.empty(x, x.shape, "the perturbed rows")
    if devices.on_gpu(x):
        from gnnrec.ops.perturb import cuda

        cuda.perturb(x, eps, int(seed), out)
        return out
    cpu.perturb(_arguments.array(x), eps, int(seed), _arguments.array(out), _arguments.numpy_dtype(x.dtype))
    return out


@_perturb.register_fake
def _(x: torch.Tensor, eps: float, seed: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    return grad, None, None


_perturb.register_autograd(_backward)

OP = Operator("perturb", perturb, reference.perturb, reference.cases, reference.bytes_moved)
