"""Oracle, cases and bytes of perturb."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gnnrec.ops._dropout import draw_seed, words
from gnnrec.ops._operator import DIMS, Case
from gnnrec.ops.perturb.cpu import NOISE


def perturb(x: torch.Tensor, eps: float, *, seed: torch.Tensor | None = None) -> torch.Tensor:
    """The authors' line of code, with the operator's random numbers."""
    return x + x.detach().sign() * F.normalize(uniform(seed, x), dim=-1) * eps


def uniform(seed: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """r, like a tensor [rows, dim]: the upper 24 bits of every word."""
    row = torch.arange(len(like))
    return (words(int(draw_seed(seed)), row, torch.zeros_like(row), NOISE, like.shape[1]) >> 8).to(like.dtype) / 2**24


def cases() -> list[Case]:
    """Every width, several panels of it, more rows than a block has, seeds beyond 32 bits, lengths from 0 on."""
    result = [_case(f"{dim}", 23, dim, 0.1, dim << 40) for dim in DIMS]
    result += [_case("panels", 5, 600, 3.0, 2**63 - 1), _case("none", 7, 16, 0.0, 1)]
    return [*result, _case("blocks", 700, 64, 0.5, 2)]


def _case(name: str, rows: int, dim: int, eps: float, seed: int) -> Case:
    return Case(name, {"x": (rows, dim)}, {"eps": eps, "seed": torch.tensor(seed)})


def bytes_moved(case: Case, itemsize: int) -> int:
    """Every number read and written once."""
    rows, dim = case.tensors["x"]
    return 2 * rows * dim * itemsize
