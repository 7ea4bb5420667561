"""Oracles, cases and bytes of segment_reduce, gather_segment_reduce and index_scatter."""

from __future__ import annotations

from typing import Any

import torch

from gnnrec.ops._operator import Case

REDUCE = {"sum": "sum", "mean": "mean", "max": "amax", "min": "amin"}  # scatter_reduce's names


def segment_reduce(x: torch.Tensor, indptr: torch.Tensor, *, reduce: str = "sum") -> torch.Tensor:
    """Every row's segment number, then a scatter."""
    return index_scatter(x, torch.repeat_interleave(indptr.diff()), len(indptr) - 1, reduce=reduce)


def gather_segment_reduce(
    x: torch.Tensor, indices: torch.Tensor, indptr: torch.Tensor, *, reduce: str = "sum"
) -> torch.Tensor:
    """Gathered first."""
    return segment_reduce(x[indices], indptr, reduce=reduce)


def index_scatter(src: torch.Tensor, index: torch.Tensor, size: int, *, reduce: str = "sum") -> torch.Tensor:
    """torch's scatter_reduce."""
    index = index.long()[:, None].expand(src.shape)
    zero = src.new_zeros(size, src.shape[1])
    return zero.scatter_reduce(0, index, src, REDUCE[reduce], include_self=False)


def _walk(name: str, rows: int, options: dict[str, Any]) -> list[Case]:
    widths = [({"reduce": "sum"}, dim) for dim in (1, 33, 64, 300)] + [({"reduce": reduce}, 3) for reduce in REDUCE]
    return [
        Case(f"{dim}-{chosen['reduce']}-{at}", {name: (rows, dim)}, {**options, **chosen})
        for at, (chosen, dim) in enumerate(widths)
    ]


_LENGTHS = torch.tensor([0, 3, 1, 0, 20, 2, 7, 0])


def segment_cases() -> list[Case]:
    """Empty segments and a long one, several widths, every reduction."""
    return _walk("x", 33, {"indptr": torch.cat([torch.zeros(1, dtype=torch.int64), _LENGTHS.cumsum(0)])})


def gather_cases() -> list[Case]:
    """The same segments of rows that come often, once and never."""
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), _LENGTHS.cumsum(0)])
    indices = torch.randint(9, (33,), generator=torch.Generator().manual_seed(0))
    return _walk("x", 11, {"indptr": indptr, "indices": indices})


def scatter_cases() -> list[Case]:
    """Unsorted numbers, some missing; then sorted ones."""
    index = torch.randint(9, (33,), generator=torch.Generator().manual_seed(0))
    ordered = Case("33-sorted", {"src": (33, 33)}, {"index": index.sort().values.int(), "size": 12})
    return [*_walk("src", 33, {"index": index, "size": 12}), ordered]


def bytes_moved(case: Case, itemsize: int) -> int:
    """A row for every number, the numbers, the output once."""
    ((rows, dim),) = case.tensors.values()
    numbers: torch.Tensor = case.options.get("indices", case.options.get("index", torch.empty(0)))
    groups = int(case.options.get("size", len(case.options.get("indptr", [0])) - 1))
    gathered = numbers.numel() or rows
    return 8 * (groups + 1) + 4 * gathered + (gathered + groups) * dim * itemsize
