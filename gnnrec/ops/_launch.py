"""How Triton kernels are launched: what they are told of a matrix, with which shape they run.

Only this file and the operators' `cuda.py` know Triton, and `cuda.py` is imported once a tensor lies on a GPU.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import torch

from gnnrec.ops import _arguments, tuning

MOST_REGISTERS = 255  # that a thread can have
PANELS = (256, 128)  # columns of a program at the most, where a row has more than that


class Matrix(NamedTuple):
    """A packed matrix on a GPU. What there is not is None.

    Args:
        indptr: int64 [rows + 1]; indices: int32 [nnz]; row_scale, col_scale: in the dtype of the computation.
        pieces: of long rows, int64 [n, 3]: row, first entry, end; medium: the same of rows that have a program each;
            alone: both, one after the other; short: the same of rows of which several share a program.
        long: int64 [long, 3]: row, first piece, end.
        histogram: of degrees, int64 on the CPU.
        entries: int64 [nnz], which edge value belongs to an entry.
    """

    indptr: torch.Tensor
    indices: torch.Tensor
    row_scale: torch.Tensor | None
    col_scale: torch.Tensor | None
    pieces: torch.Tensor
    medium: torch.Tensor
    alone: torch.Tensor
    short: torch.Tensor
    long: torch.Tensor
    histogram: torch.Tensor
    entries: torch.Tensor | None

    @property
    def rows(self) -> int:
        return self.indptr.shape[0] - 1

    @property
    def nnz(self) -> int:
        return self.indices.shape[0]


def unpack(packed: list[torch.Tensor], dtype: torch.dtype) -> Matrix:
    """A matrix that `_arguments.pack` packed, its scales in the dtype that x of this dtype is computed in."""
    indptr, indices, row_scale, col_scale, *schedule, entries = packed
    wide = _arguments.compute_dtype(dtype)
    rows, cols = (scale.to(wide) if scale.numel() else None for scale in (row_scale, col_scale))
    pieces, medium, alone, short, long, histogram = schedule
    values = entries if entries.numel() else None
    return Matrix(indptr, indices, rows, cols, pieces, medium, alone, short, long, histogram, values)


def rows_contiguous(x: torch.Tensor) -> torch.Tensor:
    """x itself where its last dimension is contiguous, as kernels take it, or a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def bits(number: float) -> int:
    """A float64 as the integer that kernels take it as: Triton would round a float argument to float32."""
    result: int = struct.unpack("<q", struct.pack("<d", number))[0]
    return result


def power_of_2(number: int) -> int:
    """The next power of two."""
    return 1 << max(0, number - 1).bit_length()


def panel(dim: int) -> int:
    """Columns of a program for rows of `dim`: a power of two that leaves few of the program's lanes idle."""
    return min((min(power_of_2(dim), most) for most in PANELS), key=lambda columns: -(-dim // columns) * columns)


class Tile(NamedTuple):
    """The tile [ROWS, NEIGHBOURS, DIM] of a kernel that walks over rows, see `_tiles`.

    Args:
        dim: columns of a program, a power of two; panels: how many programs share a row's columns.
        lanes: neighbours that a medium row gathers at once, and short rows that share a program.
        sharing: whether short rows share a program, or each has one as the others do.
        warps: of a program.
    """

    dim: int
    panels: int
    lanes: int
    sharing: bool
    warps: int


def tile(operator: str, matrix: Matrix, dim: int, dtype: torch.dtype, *, heads: int = 1, sums: int = 1) -> Tile:
    """The tile that was tuned for a walk over this matrix.

    Args:
        operator: as in `gnnrec.ops`; dim: columns of what is gathered, all heads' together; dtype: of x.
        sums: tiles that a program holds at once.
    """
    shape = tuning.choose(operator, dim, heads, dtype, matrix.histogram.tolist(), matrix.indices.device)
    columns = panel(dim)
    # A row that is no multiple of 16 bytes is read number by number, with an address in registers for each.
    single = dim * dtype.itemsize % 16 > 0
    lanes = max(1, shape["numbers"] * 4 // _arguments.compute_dtype(dtype).itemsize // sums // columns >> single)
    return Tile(columns, -(-dim // columns), lanes, bool(shape["sharing"]), shape["warps"])


def walk(kernel: Any, matrix: Matrix, shape: Tile, *args: Any, **constants: Any) -> None:
    """Launch a kernel over all rows that are not long.

    Its first parameters are those of `_tiles.row_range`, then `indices` and `args`; ROWS, NEIGHBOURS, DIM and PIECES,
    which is False, are among its constants.
    """
    _walk(kernel, matrix, shape, matrix.medium, False, *args, PIECES=False, **constants)
    _walk(kernel, matrix, shape, matrix.short, shape.sharing, *args, PIECES=False, **constants)


def walk_pieces(kernel: Any, matrix: Matrix, shape: Tile, *args: Any, **constants: Any) -> None:
    """The same over the pieces of long rows, where it writes one row each: PIECES is True."""
    _walk(kernel, matrix, shape, matrix.pieces, False, *args, PIECES=True, **constants)


def walk_entries(kernel: Any, matrix: Matrix, shape: Tile, *args: Any, **constants: Any) -> None:
    """The same over all rows, by a kernel to which a piece is like a row: it has no constant PIECES."""
    _walk(kernel, matrix, shape, matrix.alone, False, *args, **constants)
    _walk(kernel, matrix, shape, matrix.short, shape.sharing, *args, **constants)


def walk_once(kernel: Any, matrix: Matrix, shape: Tile, *args: Any, **constants: Any) -> None:
    """The same over all rows in a single launch, at whose end alone programs are idle.

    The kernel's first parameters are `alone`, how many of these are pieces, how many there are, `short`, how many there
    are, `indices` and `args`. Programs of short rows, ROWS each, come last; ROWS is 1 where rows share none.
    """
    at_once = shape.lanes if shape.sharing else 1
    grid = len(matrix.alone) + -(-len(matrix.short) // at_once), shape.panels
    given = matrix.alone, len(matrix.pieces), len(matrix.alone), matrix.short, len(matrix.short), matrix.indices
    sizes = {"ROWS": at_once, "NEIGHBOURS": shape.lanes, "DIM": shape.dim}
    launch(kernel, grid, *given, *args, warps=shape.warps, registers=_registers(at_once), **sizes, **constants)


def _walk(
    kernel: Any,
    matrix: Matrix,
    shape: Tile,
    rows: torch.Tensor,
    sharing: bool,
    *args: Any,
    registers: int | None = None,
    **constants: Any,
) -> None:
    at_once = shape.lanes if sharing else 1
    sizes = {"ROWS": at_once, "NEIGHBOURS": 1 if at_once > 1 else shape.lanes, "DIM": shape.dim}
    given, registers = (rows, len(rows), matrix.indices), _registers(at_once) or registers
    grid = -(-len(rows) // at_once), shape.panels
    launch(kernel, grid, *given, *args, warps=shape.warps, registers=registers, **sizes, **constants)


def _registers(at_once: int) -> int | None:
    """Left alone, ptxas 12.8 spills two registers of a program of 8 or 16 rows."""
    return MOST_REGISTERS if at_once > 1 else None


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *args: Any,
    warps: int = 4,
    stages: int = 2,
    registers: int | None = None,
    **constants: Any,
) -> None:
    """Run a kernel on the current stream of its tensors' GPU; nothing where the grid is empty.

    With `registers` the assembler takes up to so many a thread; left alone, it sometimes spills a few for a higher
    occupancy.
    """
    if 0 in grid:
        return
    first = next(x for x in args if isinstance(x, torch.Tensor))
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    options |= {} if registers is None else {"maxnreg": registers}
    with torch.cuda.device_of(first):
        kernel[grid](*args, **constants, **options)
