"""The C++ limit of spmm: built into a temporary folder at its first use, never part of the package."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from contender import Missing

from gnnrec.ops import SparseMatrix

SOURCE = Path(__file__).with_name("limit_spmm.cpp")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")  # with the OpenMP runtime that is loaded already
COMPILER = shutil.which("g++")
WIDTHS = (16, 32, 64, 128)


@cache
def _library() -> ctypes.CDLL:
    if COMPILER is None:
        raise Missing("there is no g++")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "limit_spmm.so"
        built = subprocess.run([COMPILER, *FLAGS, "-o", target, SOURCE], capture_output=True, text=True)
        if built.returncode:
            raise Missing(f"g++ does not build it: {built.stderr.strip().splitlines()[-1]}")
        return ctypes.CDLL(str(target))


def spmm(matrix: SparseMatrix, x: torch.Tensor, threads: int) -> Callable[[], torch.Tensor]:
    """The product with float32 [cols, dim] as a call that only runs the kernel on fresh output.

    Raises:
        Missing: no compiler, a processor without AVX-512, a width that no kernel is compiled for.
    """
    library, dim = _library(), x.shape[1]
    x = x.detach()

    def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
        return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())

    inputs = [pointer(each) for each in (matrix.indptr, matrix.indices, matrix.row_scale, matrix.col_scale, x)]

    def call() -> torch.Tensor:
        out = torch.empty(matrix.shape[0], dim)
        assert (x.data_ptr() | out.data_ptr()) % 64 == 0  # torch's allocator sees to it
        library.limit_spmm(ctypes.c_int64(matrix.shape[0]), *inputs, pointer(out), dim, threads)
        return out

    if dim not in WIDTHS:
        raise Missing(f"it is compiled for {', '.join(map(str, WIDTHS))} columns, not {dim}")
    return call
