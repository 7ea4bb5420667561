"""One way of computing an operator: how it is built and called, and whether its result is right."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType

import torch
from workload import Tensors, Workload

Call = Callable[[], Tensors]

LR = 1e-3  # of Adam in training steps
DIRECTIONS = 2  # in which the gradient of a training step is compared
DIFFERENCE = 1e-7  # of the central differences; a larger one meets more kinks


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


def rotate(calls: Sequence[Call]) -> Call:
    """A call that is each of these in turn."""
    turn = itertools.cycle(calls)
    return lambda: next(turn)()


def prepare_step(build: Build, workload: Workload, inputs: Tensors, captured: bool = False) -> Call:
    """A call of a training step: the loss, its gradients, a step of fused Adam. Every call changes the parameters.

    Args:
        build: its forward pass gives the loss, its leaves are the inputs.
        captured: whether the step is replayed as a CUDA graph.
    """
    on_gpu = workload.device.type == "cuda"
    if captured and not on_gpu:
        raise Missing("a CUDA graph needs a GPU")
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    forward = build(workload, leaves).forward
    optimizer = torch.optim.Adam(leaves.values(), lr=LR, fused=True, capturable=on_gpu)

    def step() -> Tensors:
        loss = forward()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gradients = {f"gradient of {name}": x.grad for name, x in leaves.items() if x.grad is not None}
        return {"out": loss.detach(), **gradients}

    if not captured:
        return step
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # what is made once is made outside of the graph
            step()
    torch.cuda.current_stream().wait_stream(aside)
    with torch.no_grad():
        for name, x in leaves.items():
            x.copy_(inputs[name])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    return partial(_replay, graph, result, step)


def _replay(graph: torch.cuda.CUDAGraph, result: Tensors, step: Call) -> Tensors:
    """A replay of a step, which has the tensors that the graph knows by address, and so has to live as long."""
    graph.replay()
    return result


def slopes(workload: Workload, given: Tensors, result: Tensors) -> Tensors:
    """A training step's loss, and its slopes in a few random directions: what `exact_slopes` can find without a
    backward pass in float64, which no memory holds for a large graph."""

    def slope(number: int) -> torch.Tensor:
        parts = [(result[f"gradient of {name}"].double() * d).sum() for name, d in direction(workload, given, number)]
        return torch.stack(parts).sum()

    return {"out": result["out"], "slopes": torch.stack([slope(number) for number in range(DIRECTIONS)])}


def exact_slopes(build: Build, workload: Workload, inputs: Tensors) -> Tensors:
    """The same from an oracle of the loss, by central differences; inputs are float64."""

    def loss(number: int, way: float) -> torch.Tensor:
        moved = {name: inputs[name] + way * d for name, d in direction(workload, inputs, number)}
        return build(workload, moved).forward()

    with torch.no_grad():
        found = [
            (loss(number, DIFFERENCE) - loss(number, -DIFFERENCE)) / (2 * DIFFERENCE) for number in range(DIRECTIONS)
        ]
        return {"out": build(workload, inputs).forward(), "slopes": torch.stack(found)}


def direction(workload: Workload, like: Tensors, number: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Random numbers of the inputs' shapes, one after the other."""
    for k, (name, x) in enumerate(like.items(), 100):
        yield name, workload.normal(1000 * number + k, *x.shape)


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
