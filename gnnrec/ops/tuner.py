"""Measures launch shapes: every candidate of an operator, forward and backward together, on one graph."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from gnnrec import device as devices
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import tuning
from gnnrec.ops.bpr_loss import bpr_loss
from gnnrec.ops.edge_softmax import edge_softmax
from gnnrec.ops.gat_conv import gat_conv
from gnnrec.ops.gmm_conv import gmm_conv
from gnnrec.ops.ngcf_layer import ngcf_layer
from gnnrec.ops.sddmm import sddmm
from gnnrec.ops.segment import index_scatter
from gnnrec.ops.spmm import spmm
from gnnrec.ops.topk_scores import topk_dense

ROUNDS = 9
GAIN = 1.02  # a candidate that gains less over the default is not told from noise
KERNELS, COORDINATES = 3, 2  # of gmm_conv
SCORED = 1024  # rows of which the best are selected
SMALL = ("index_scatter", "bpr_loss")  # work on the nodes of a batch
ANY_SHAPE = ("spmm", *SMALL, "topk_scores")  # take a matrix that is not square
CYCLES, LONGEST_WAIT = 2e9, 0.05  # a second, at the most; seconds

Call = Callable[[], None]
Clock = Callable[[Call], float]


@dataclass(frozen=True)
class Tuned:
    """What tuning one operator at one width found.

    Args:
        operator, dim, heads, dtype: the case; of topk_scores, `dim` is how many are selected.
        batch: how many triples the case has, 0 where it is the whole graph.
        shape: the fastest, and what is kept.
        seconds: of the fastest; default_seconds: of the default shape. Forward and backward, medians.
        keys: the cases that the choice was kept for.
        failed: candidates that the GPU could not run, with the reason.
    """

    operator: str
    dim: int
    heads: int
    batch: int
    dtype: str
    shape: tuning.Shape
    seconds: float
    default_seconds: float
    keys: Sequence[str]
    failed: Mapping[str, str]


def tune(
    matrix: SparseMatrix,
    *,
    operators: Sequence[str] = tuple(tuning.CANDIDATES),
    dims: Sequence[int] = (64,),
    heads: int = 4,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    batches: Sequence[int] = (65_536,),
    ks: Sequence[int] = (20,),
    items: int | None = None,
    clock: Clock | None = None,
) -> Iterator[Tuned]:
    """Time all candidates of operators on a graph; yields what each case came to. `tuning.keep` writes it down.

    Candidates take turns, so that a disturbance meets all of them; calls far from a candidate's median are left out.

    Args:
        matrix: on a GPU; square, unless only operators are tuned that need no such one.
        operators: of `tuning.CANDIDATES`.
        dims: widths, multiples of heads; heads: of attention.
        dtypes: of the dense operands.
        batches: triples of bpr_loss, of whose nodes index_scatter adds up rows.
        ks: how many topk_scores selects; items: of how many, by default the matrix's columns.
        clock: seconds of a call; by default CUDA events, with the L2 cache emptied before.

    Raises:
        DeviceError: the matrix lies on no GPU.
        ValueError: an unknown operator, a matrix that is not square, a width that heads do not divide.
    """
    if not devices.on_gpu(matrix.indptr):
        remedy = "Launch shapes exist for GPUs alone: move it with .to('cuda')"
        raise devices.DeviceError("the graph lies on the CPU", where="tune", remedy=remedy)
    unknown = set(operators) - set(tuning.CANDIDATES)
    square = matrix.shape[0] == matrix.shape[1] or set(operators) <= set(ANY_SHAPE)
    if unknown or not square or any(dim % heads for dim in dims):
        raise ValueError(
            f"tune: operators of {', '.join(tuning.CANDIDATES)}, a square matrix and widths that {heads} divides are "
            f"needed, got {', '.join(operators)}, {matrix} and {list(dims)}"
        )
    clock = _cuda_clock(matrix.device) if clock is None else clock
    for operator in operators:
        widths = {"edge_softmax": (heads,), "topk_scores": ks}.get(operator, dims)
        sizes = batches if operator in SMALL else (0,)
        precisions = dtypes if operator != "topk_scores" else (torch.float32,)
        for dtype, dim, batch in itertools.product(precisions, widths, sizes):
            call = _call(operator, matrix, dim, heads, batch, items or matrix.shape[1], dtype)
            yield _tune(operator, call, dim, heads, batch, dtype, clock)


def _tune(operator: str, call: Call, dim: int, heads: int, batch: int, dtype: torch.dtype, clock: Clock) -> Tuned:
    seconds: dict[int, list[float]] = {}
    failed: dict[str, str] = {}
    keys: set[str] = set()
    candidates = tuning.CANDIDATES[operator]
    tuning.asked(operator)  # whoever else has forced a shape before
    for number, shape in enumerate(candidates):
        with tuning.forced(operator, shape):
            try:
                call()  # compiles
                seconds[number] = []
            except _out_of_resources() as error:
                failed[str(dict(shape))] = str(error)
        keys |= set(tuning.asked(operator))
    if 0 not in seconds:
        raise devices.DeviceError(f"the default launch shape fails: {failed}", where=operator)
    for _ in range(ROUNDS):
        for number, times in seconds.items():
            with tuning.forced(operator, candidates[number]):
                times.append(clock(call))
    typical = {number: _typical(times) for number, times in seconds.items()}
    best = min(typical, key=lambda number: typical[number])
    if typical[best] * GAIN > typical[0]:
        best = 0
    name, found = str(dtype).removeprefix("torch."), candidates[best]
    return Tuned(operator, dim, heads, batch, name, found, typical[best], typical[0], sorted(keys), failed)


def _typical(times: Sequence[float]) -> float:
    """The median without the outliers: times further from it than three median deviations (scaled to a normal's)."""
    middle = median(times)
    spread = 1.4826 * median(abs(t - middle) for t in times)
    return median(t for t in times if abs(t - middle) <= 3 * spread)


def _out_of_resources() -> type[Exception]:
    from triton.runtime.errors import OutOfResources

    error: type[Exception] = OutOfResources
    return error


def _cuda_clock(device: torch.device) -> Clock:
    """Seconds between two events around a call. The GPU waits before, as long as the host takes to launch the call, so
    that it is the kernels that are timed and not their launches."""
    cache = torch.empty(4 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.uint8, device=device)

    def clock(call: Call) -> float:
        with torch.cuda.device(device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            started = time.perf_counter()
            call()
            wait = min(1.5 * (time.perf_counter() - started) + 1e-4, LONGEST_WAIT)
            cache.zero_()
            torch.cuda._sleep(int(CYCLES * wait))
            begin.record()
            call()
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1000

    return clock


def _call(
    operator: str, matrix: SparseMatrix, dim: int, heads: int, batch: int, items: int, dtype: torch.dtype
) -> Call:
    """A forward and a backward call of an operator. Batches are drawn by the entries: popular nodes come often."""
    nodes, generator = matrix.shape[1], torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        x = torch.randn(shape, generator=generator) / math.sqrt(shape[-1])
        return x.to(matrix.device, dtype).requires_grad_()

    def entries(count: int) -> torch.Tensor:
        return torch.randint(matrix.nnz, (count,), generator=generator).to(matrix.device)

    def backward(y: torch.Tensor, *tensors: torch.Tensor) -> None:
        torch.autograd.grad(y, tensors, y.detach())

    def training(function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> Call:
        return lambda: backward(function(matrix, *tensors), *tensors)

    if operator == "spmm":
        return training(spmm, draw(nodes, dim))
    if operator == "sddmm":
        return training(sddmm, draw(nodes, dim), draw(nodes, dim))
    if operator == "edge_softmax":
        return training(edge_softmax, draw(matrix.nnz, heads))
    if operator == "topk_scores":
        scores = draw(SCORED, items).detach()
        return lambda: topk_dense(scores, k=min(dim, items)) and None
    x, square = draw(nodes, dim), (dim, dim)
    if operator == "index_scatter":
        rows, index = draw(3 * batch, dim), matrix.indices[entries(3 * batch)]
        return lambda: backward(index_scatter(rows, index, nodes), rows)
    if operator == "bpr_loss":
        ego = draw(nodes, dim)
        positive, negative = matrix.indices[entries(batch)], torch.randint(nodes, (batch,), generator=generator)
        triples = torch.stack([matrix.indices[entries(batch)], positive, negative.to(positive)]).long()
        return lambda: backward(bpr_loss(x, ego, triples, 1e-4), x, ego)
    if operator == "gat_conv":
        return training(gat_conv, x, draw(*square), draw(heads, dim // heads), draw(heads, dim // heads))
    if operator == "gmm_conv":
        gaussians = draw(matrix.nnz, COORDINATES), draw(KERNELS, COORDINATES), draw(KERNELS, COORDINATES)
        return training(gmm_conv, x, *gaussians, draw(KERNELS, *square))
    return training(ngcf_layer, x, draw(*square), draw(dim), draw(*square), draw(dim))
