"""One way of computing an operator: how it is built and called, and whether its result is right."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType

import torch
from workload import Tensors, Workload

Call = Callable[[], Tensors]


class Missing(Exception):
    """A contender cannot run here; the message says why."""


@dataclass(frozen=True)
class Step:
    """A computation that is ready to be called.

    Args:
        forward: gives the result.
        leaves: what a backward pass gives gradients of, by the names that the entry's inputs have.
        layout: brings the gradient of a leaf into the layout of the input, where the contender's is another one.
    """

    forward: Callable[[], torch.Tensor]
    leaves: Tensors = field(default_factory=dict)
    layout: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = field(default_factory=dict)


Build = Callable[[Workload, Tensors], Step]
Upstream = Callable[[torch.Tensor], torch.Tensor]  # the gradient of an output, of its shape and dtype


def require(module: str) -> ModuleType:
    """The imported module. Raises Missing where it cannot be imported."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # a package built for another torch fails to load its library
        raise Missing(f"{module.partition('.')[0]} cannot be imported: {error}") from error


def prepare(build: Build, workload: Workload, inputs: Tensors, upstream: Upstream | None) -> Call:
    """A call of the forward pass, or of forward and backward pass where an upstream gradient is given."""
    step = build(workload, {name: x.detach().requires_grad_(upstream is not None) for name, x in inputs.items()})
    leaves = list(step.leaves.values())

    def forward() -> Tensors:
        with torch.no_grad():
            return {"out": step.forward()}

    if upstream is None:
        return forward

    def forward_backward() -> Tensors:
        out = step.forward()
        gradients = torch.autograd.grad(out, leaves, upstream(out))
        result = {"out": out.detach()}
        for name, gradient in zip(step.leaves, gradients):
            result[f"gradient of {name}"] = step.layout.get(name, torch.Tensor.detach)(gradient)
        return result

    return forward_backward


def worst_element(x: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest error of an element, in units of the root mean square of its row or of the whole tensor, the larger:
    a row with thousands of terms has larger rounding errors than the others."""
    exact = exact.reshape(len(exact) if exact.dim() > 1 else 1, -1)
    x = x.double().reshape(exact.shape)
    size = exact.square().mean(dim=1, keepdim=True).sqrt()
    size = torch.maximum(size, exact.square().mean().sqrt())
    error = (x - exact).abs() / size
    return float(error.masked_fill(x == exact, 0).nan_to_num(torch.inf, torch.inf).max())


def whole_tensor(x: torch.Tensor, exact: torch.Tensor) -> float:
    """The error in the Euclidean norm, relative: for gradients of functions with kinks, where a rounding error sends
    the gradient of an element elsewhere now and then."""
    error = float((x.double() - exact).norm() / exact.norm())
    return error if error == error else torch.inf
