"""Optimisers by name.

All state is tensors, so that `state_dict` goes into a checkpoint as it is. A step never makes the CPU wait for a GPU
and gives the same bits for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gnnrec import ops
from gnnrec.config import OptimizerConfig
from gnnrec.memtier.stream import Stream

MOMENTS = ("exp_avg", "exp_avg_sq")
RUN = 64  # numbers that are added up at a time


# The name of a state, the parameter and the state's type -> zeros like the parameter.
Zeros = Callable[[str, torch.Tensor, torch.dtype], torch.Tensor]


def build(
    config: OptimizerConfig, model: nn.Module, zeros: Zeros | None = None, stream: Stream | None = None
) -> torch.optim.Optimizer:
    """The optimiser of the model's parameters, where they lie now. On a GPU a step may be captured in a CUDA graph.

    Args:
        config: of the optimiser.
        model: its parameters are changed.
        zeros: where Adam's state of `model.embedding` comes from; None puts it where the parameter lies.
        stream: of the moments of `model.embedding`, which then lie in files; for Adam.
    """
    parameters = list(model.parameters())
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    moments: dict[str, Any] = {"betas": tuple(config.betas), "eps": config.eps}
    if config.name in ("adam", "adamw"):
        options |= moments | {"decoupled": config.name == "adamw", "clip": config.clip}
        options |= {"state_dtype": getattr(torch, config.state_dtype), "zeros": {}}
        if zeros is not None:
            options["zeros"] = {parameter: zeros for parameter in parameters if parameter is model.embedding}
        streams = (
            {} if stream is None else {parameter: stream for parameter in parameters if parameter is model.embedding}
        )
        return Adam(parameters, streams=streams, **options)
    if config.name == "lamb":
        return Lamb(parameters, **options, **moments)
    if config.name == "lars":
        return Lars(parameters, **options, momentum=config.momentum)
    if config.name == "rowwise_adagrad":
        return RowwiseAdagrad(parameters, **options, eps=config.eps)
    return torch.optim.SGD(parameters, **options, momentum=config.momentum)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the steps from now on, also of captured ones of Adam; a GPU is not waited for."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def adam_block(
    config: OptimizerConfig,
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    *,
    lr: float,
    step: int,
) -> None:
    """A step of Adam, as configured, on a block of a parameter and of its state, float32 [rows, columns] each."""
    options: dict[str, Any] = {"betas": tuple(config.betas), "eps": config.eps, "weight_decay": config.weight_decay}
    options |= {"lr": lr, "step": step, "decoupled": config.name == "adamw"}
    ops.adam_step(parameter, gradient, exp_avg, exp_avg_sq, **options)


class _Optimizer(torch.optim.Optimizer):
    """Calls `update` for every parameter that has a gradient. Parameters of more than two dimensions are taken as
    matrices whose rows are the last one, vectors as one row.

    With the options `fused` and `capturable` torch loads the state `step` as float32 to where the parameter lies.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], **options: Any) -> None:
        parameters = list(parameters)
        captured = any(parameter.is_cuda for parameter in parameters)
        super().__init__(parameters, options | {"fused": True, "capturable": captured})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, parameter.grad, self.state[parameter], group, number)
                number += 1
        return loss

    def update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any], number: int
    ) -> None:
        """Change the parameter and its state, which is empty at first; number: of the parameter among all."""
        raise NotImplementedError


class Adam(_Optimizer):
    """Adam (Kingma and Ba 2015) or, decoupled, AdamW (Loshchilov and Hutter 2019), by `ops.adam_step`; see there.

    Its state has the names and, but for state_dtype, the types of torch.optim.Adam's. A bfloat16 parameter has a
    float32 copy in it besides, `master`, on which steps are taken.

    Args:
        state_dtype: of the moments, float32 (float64 for a float64 parameter) or bfloat16, which is rounded at random
            by the number of the parameter and the step.
        clip: the greatest L2 norm of a row of a gradient.
        zeros: of parameters whose state does not lie beside them: where it comes from.
        streams: of the moments of parameters whose moments lie in files, float32 panels as wide as the parameter.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decoupled: bool = False,
        clip: float | None = None,
        state_dtype: torch.dtype = torch.float32,
        zeros: Mapping[Any, Zeros] | None = None,
        streams: Mapping[Any, Stream] | None = None,
    ) -> None:
        parameters, self._zeros, self._streams = list(parameters), zeros or {}, streams or {}
        on_gpu = [parameter.device for parameter in parameters if parameter.is_cuda]
        # Where a CUDA graph that holds the step finds it, whatever it is then.
        rate = torch.tensor(lr, dtype=torch.float64, device=on_gpu[0]) if on_gpu else lr
        options = {"lr": rate, "betas": betas, "eps": eps, "weight_decay": weight_decay, "decoupled": decoupled}
        super().__init__(parameters, **options, clip=clip, state_dtype=state_dtype)

    def update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any], number: int
    ) -> None:
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            for name in MOMENTS if parameter not in self._streams else ():
                state[name] = self._place(name, parameter, _moments(parameter, group))
            if parameter.dtype == torch.bfloat16:
                state["master"] = self._place("master", parameter, torch.float32).copy_(parameter)
        state["step"] += 1
        names = ("lr", "betas", "eps", "weight_decay", "decoupled", "clip")
        options = {name: group[name] for name in names} | {"step": state["step"], "seed": number}
        gradient, master = gradient.contiguous(), state.get("master")
        if parameter in self._streams:
            for block in self._streams[parameter].panel(0):
                part = None if master is None else master[block.rows]
                ops.adam_step(parameter[block.rows], gradient[block.rows], *block.tensors, master=part, **options)
            return
        tensors = parameter, gradient, state["exp_avg"], state["exp_avg_sq"], master
        *matrices, master = map(_matrix, tensors)
        ops.adam_step(*matrices, master=master, **options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which gives all state the parameter's type, but for the moments."""
        super().load_state_dict(state_dict)
        owners = [(parameter, group) for group in self.param_groups for parameter in group["params"]]
        for number, state in state_dict["state"].items():
            parameter, group = owners[number]
            kinds = dict.fromkeys(MOMENTS if parameter not in self._streams else (), _moments(parameter, group))
            if "master" in state:
                kinds["master"] = torch.float32
            for name, dtype in kinds.items():
                self.state[parameter][name] = self._place(name, parameter, dtype).copy_(state[name])

    def _place(self, name: str, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Zeros for a state of this parameter."""
        return self._zeros.get(parameter, _zeros)(name, parameter, dtype)


def _zeros(name: str, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Beside the parameter."""
    return parameter.new_zeros(parameter.shape, dtype=dtype)


def _matrix(x: Any) -> Any:
    """A tensor as adam_step takes it."""
    return x if x is None or x.dim() in (1, 2) else x.view(-1, x.shape[-1] if x.dim() else 1)


def _moments(parameter: torch.Tensor, group: dict[str, Any]) -> torch.dtype:
    """The type of Adam's moments."""
    dtype: torch.dtype = group["state_dtype"]
    return parameter.dtype if parameter.dtype == torch.float64 and dtype == torch.float32 else dtype


class Lamb(_Optimizer):
    """Adam's step with decoupled decay, as long as the whole parameter times lr (You et al. 2020, algorithm 2, with the
    identity for phi); where either has no length, it keeps its own."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any], number: int
    ) -> None:
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        first, second = group["betas"]
        state["step"] += 1
        mean, square, step = state["exp_avg"], state["exp_avg_sq"], state["step"].double()
        mean.mul_(first).add_(gradient, alpha=1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        below = (square / (1 - second**step)).sqrt_().add_(group["eps"])
        update = (mean / (1 - first**step)).div_(below).add_(parameter, alpha=group["weight_decay"])
        ratio = _ratio(_norm(parameter), _norm(update))
        parameter.sub_(update.mul_(ratio), alpha=group["lr"])


class Lars(_Optimizer):
    """Descent with momentum by steps that are as long as the whole parameter times lr (You et al. 2017, algorithm 1).

    lr is the product of the paper's global learning rate and its trust coefficient. Where parameter or gradient are
    zero, the gradient is taken as it is.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any], number: int
    ) -> None:
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        decay, length = group["weight_decay"], _norm(parameter)
        ratio = _ratio(length, _norm(gradient) + decay * length)
        update = gradient.add(parameter, alpha=decay).mul_(ratio * group["lr"])
        parameter.sub_(state["momentum_buffer"].mul_(group["momentum"]).add_(update))


class RowwiseAdagrad(_Optimizer):
    """Adagrad (Duchi et al. 2011) with one accumulator a row, the sum of the means of its squared gradients, as in
    TorchRec and FBGEMM ("exact row-wise Adagrad"). weight_decay adds to the gradient."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float = 1e-3, eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, lr=lr, eps=eps, weight_decay=weight_decay)

    def update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any], number: int
    ) -> None:
        gradient = gradient.add(parameter, alpha=group["weight_decay"])
        squares = gradient.square()
        mean = (squares.sum(dim=-1) if squares.dim() > 1 else _sum(squares)) / max(1, squares.shape[-1:].numel())
        if not state:
            state["sum"] = torch.zeros_like(mean)
        state["sum"] += mean
        parameter.addcdiv_(gradient, state["sum"].sqrt().add_(group["eps"]).unsqueeze(-1), value=-group["lr"])


def _ratio(length: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """length / below, 1 where either is 0."""
    return torch.where((length > 0) & (below > 0), length / below, 1.0)


def _norm(x: torch.Tensor) -> torch.Tensor:
    """The L2 norm of all of a tensor."""
    squares = x.square()
    return _sum(squares.sum(dim=-1) if x.dim() > 1 else squares).sqrt()


def _sum(x: torch.Tensor) -> torch.Tensor:
    """The sum of all numbers, run by run: torch would split a single large sum among as many threads as there are."""
    x = x.flatten()
    while len(x) > RUN:
        x = F.pad(x, (0, -len(x) % RUN)).view(-1, RUN).sum(dim=1)
    return x.sum()
