"""Oracle, cases and bytes of adam_step."""

from __future__ import annotations

from typing import Any

import torch

from gnnrec.ops._operator import DIMS, Case


def adam_step(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    *,
    lr: float,
    step: int,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    clip: float | None = None,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The papers' equations: the new parameter, mean and square, of which nothing is rounded at random.

    Cases are drawn with either sign, which a mean of squares does not have: its absolute value is taken.
    """
    if clip is not None:
        norms = gradient.norm(dim=-1, keepdim=True)
        gradient = torch.where(norms > clip, gradient * (clip / norms), gradient)
    if decoupled:
        parameter = parameter * (1 - lr * weight_decay)
    else:
        gradient = gradient + weight_decay * parameter
    mean = betas[0] * mean + (1 - betas[0]) * gradient
    square = betas[1] * square.abs() + (1 - betas[1]) * gradient.square()
    root = (square / (1 - betas[1] ** step)).sqrt()
    return parameter - lr * (mean / (1 - betas[0] ** step)) / (root + eps), mean, square


def cases() -> list[Case]:
    """Every width with half of the rows too long and both kinds of decay; neither; a first step; one row of several
    panels; more rows than a block has."""
    result = []
    for dim in DIMS:
        decay = {"weight_decay": 0.1, "decoupled": dim % 2 == 0, "clip": dim**0.5}
        result.append(_case(f"{dim}", 23, dim, step=3, seed=dim << 40, **decay))
    result.append(_case("first", 23, 33, step=1))
    result.append(_case("no-betas", 5, 64, step=2**31, betas=(0.0, 0.0), eps=1.0, seed=2**63 - 1))
    result.append(_case("one-row", 1, 1000, step=70_000, clip=30.0, seed=1))
    result.append(_case("one-row-plain", 1, 600, step=2))
    result.append(_case("blocks", 600, 64, step=10, decoupled=True, weight_decay=0.01))
    return result


def _case(name: str, rows: int, dim: int, **options: Any) -> Case:
    names = ("parameter", "gradient", "mean", "square")
    return Case(name, {given: (rows, dim) for given in names}, {"lr": 0.01, **options})


def bytes_moved(case: Case, itemsize: int) -> int:
    """Four numbers read and three written for every element."""
    rows, dim = case.tensors["parameter"]
    return 7 * rows * dim * itemsize
