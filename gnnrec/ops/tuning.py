"""Which launch shapes the Triton kernels run with: measured by `tuner.tune`, kept in a file as data.

Nothing is measured when an operator is called: `choose` looks into the user's file, then into the table that comes with
the package, and takes the default where neither knows the case.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType

import torch

from gnnrec.errors import ConfigError
from gnnrec.storage import atomic_write

Shape = Mapping[str, int]

# Of kernels that walk over rows: numbers of a program's tile, whether short rows share a program, warps.
_WALKS: tuple[Shape, ...] = tuple(
    MappingProxyType({"numbers": numbers, "sharing": sharing, "warps": warps})
    for numbers, warps in ((512, 1), (256, 1), (1024, 1), (1024, 2), (2048, 4))
    for sharing in (1, 0)
)
# Of kernels that multiply blocks of rows: rows of a block, warps.
_BLOCKS: tuple[Shape, ...] = tuple(
    MappingProxyType({"rows": rows, "warps": warps}) for rows, warps in ((32, 4), (16, 2), (64, 8))
)
# Of sums by a number: numbers of a program's tile, neighbours that a row gathers at once at the most, rows of a run.
_SUMS: tuple[Shape, ...] = tuple(
    MappingProxyType({"numbers": numbers, "neighbours": neighbours, "run": run, "warps": warps})
    for numbers, neighbours, run, warps in ((512, 4, 64, 1), (512, 1, 64, 1), (512, 4, 256, 1), (1024, 8, 64, 2))
)
# Of the loss over triples: the same for its gradients, and numbers of a program's tile of triples, its warps.
_TRIPLES: tuple[Shape, ...] = tuple(
    MappingProxyType({**sums, "triples": numbers, "triple_warps": warps})
    for numbers, warps in ((1024, 4), (512, 2), (2048, 8))
    for sums in _SUMS
)
# Of the selection of a row's best: buckets it is dealt out to and items that are looked at at once, as powers of two.
_SELECTIONS: tuple[Shape, ...] = tuple(
    MappingProxyType({"log_buckets": buckets, "log_found": found, "warps": warps})
    for buckets, found, warps in ((11, 11, 8), (10, 10, 4), (11, 11, 16), (12, 11, 16))
)
# The candidates of every operator that has launch shapes, the default first.
CANDIDATES: Mapping[str, tuple[Shape, ...]] = {
    "spmm": (*_WALKS[2:4], *_WALKS[:2], *_WALKS[4:]),  # on an H100 its sums are fastest with the smallest tile
    "sddmm": _WALKS,
    "edge_softmax": _WALKS,
    "gat_conv": _WALKS,
    "gmm_conv": _WALKS,
    "ngcf_layer": _BLOCKS,
    "index_scatter": _SUMS,
    "bpr_loss": _TRIPLES,
    "topk_scores": _SELECTIONS,
}

_forced: dict[str, Shape] = {}
_asked: set[str] = set()  # keys since `recorded` began


def user_file() -> Path:
    """gnnrec/launches.json in the user's cache folder (XDG_CACHE_HOME)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gnnrec" / "launches.json"


def shipped_file() -> Path:
    """The table that comes with the package."""
    return Path(__file__).parent / "launches.json"


def choose(
    operator: str, dim: int, heads: int, dtype: torch.dtype, sizes: Sequence[int], device: torch.device
) -> Shape:
    """The launch shape of an operator's kernels for this case.

    Args:
        sizes: the matrix's degree histogram, or `magnitudes` where there is no matrix.
    """
    name = key(operator, dim, heads, dtype, sizes, device)
    if operator in _forced:
        _asked.add(name)
        return _forced[operator]
    found = _lookup(name)
    return CANDIDATES[operator][0] if found is None else found


def key(operator: str, dim: int, heads: int, dtype: torch.dtype, sizes: Sequence[int], device: torch.device) -> str:
    """What a choice is kept under: operator, dim, heads, dtype, degree histogram (or sizes) and device name."""
    numbers = ".".join(map(str, sizes))
    return "/".join((operator, str(dim), str(heads), str(dtype).removeprefix("torch."), numbers, device_name(device)))


def magnitudes(*sizes: int) -> tuple[int, ...]:
    """What stands for sizes in a key: the powers of two above them."""
    return tuple(size.bit_length() for size in sizes)


@cache
def device_name(device: torch.device) -> str:
    """The GPU's name as its driver gives it; that of the interpreter for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"


@contextmanager
def forced(operator: str, shape: Shape) -> Iterator[None]:
    """Run an operator's kernels with this shape."""
    before = _forced.get(operator)
    _forced[operator] = shape
    try:
        yield
    finally:
        del _forced[operator]
        if before is not None:
            _forced[operator] = before


def asked(operator: str) -> list[str]:
    """The keys of an operator's cases that `forced` decided since the last call."""
    names = sorted(name for name in _asked if name.startswith(f"{operator}/"))
    _asked.clear()
    return names


def keep(shapes: Mapping[str, Shape], file: Path | None = None) -> Path:
    """Write choices, by key, into a file beside those that are in it; by default the user's, where `choose` looks."""
    file = user_file() if file is None else file
    together = dict(_load(file)) | {name: dict(shape) for name, shape in shapes.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, json.dumps({"shapes": dict(sorted(together.items()))}, indent=1).encode())
    _load.cache_clear()
    _lookup.cache_clear()
    return file


@cache
def _lookup(name: str) -> Shape | None:
    for file in (user_file(), shipped_file()):
        if (shape := _load(file).get(name)) is not None:
            return shape
    return None


@cache
def _load(file: Path) -> Mapping[str, Shape]:
    """The choices of a file; none where there is no file. Those of an older version that no candidate has are left out.

    Raises:
        ConfigError: the file is damaged.
    """
    if not file.exists():
        return {}
    try:
        shapes = json.loads(file.read_text())["shapes"]
        return {name: shape for name, shape in shapes.items() if shape in _known(name.partition("/")[0])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "Remove it and run `gnnrec tune` again"
        raise ConfigError(f"is damaged: {error!r}", where=str(file), remedy=remedy) from error


def _known(operator: str) -> list[dict[str, int]]:
    return [dict(shape) for shape in CANDIDATES.get(operator, ())]
