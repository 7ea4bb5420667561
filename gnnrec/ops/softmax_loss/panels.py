"""The pass of softmax_loss over panels of rows, on either device: library products, and one kernel between them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from gnnrec import device as devices
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import _arguments
from gnnrec.ops._vector import MAX_DIM
from gnnrec.ops.sddmm import sddmm
from gnnrec.ops.softmax_loss import cpu
from gnnrec.ops.spmm import spmm

WIDTH = 64  # columns of a panel are a multiple of it
ROWS = 32  # and rows of this: the library compiles, and keeps, a product of bfloat16 for every new shape
SHORTEST = 1e-12  # length of a row that has a direction; torch's F.normalize has the same limit
CPU_PANEL, GPU_PANEL = 2**24, 2**26  # bytes of a panel: of a last-level cache, and enough rows to fill a GPU
Result = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def loss(
    positives: SparseMatrix,
    queries: torch.Tensor,
    keys: torch.Tensor,
    negatives: torch.Tensor | None,
    log_counts: torch.Tensor | None,
    bias: torch.Tensor | None,
    temperature: float,
    cosine: bool,
    power: float,
    ratio: float | None,
    precision: torch.dtype,
    gradients: bool,
) -> Result:
    """The loss and the gradients of queries and keys, see `softmax_loss`; without `gradients` those have no rows.

    Args:
        positives: whose rows all make the batch, and are those of the queries.
        ratio: of the positives' temperature to the other one, for the bilateral form.
    """
    wide = _arguments.compute_dtype(queries.dtype)
    queries, keys = queries.contiguous(), keys.contiguous()  # sums and products round differently for other strides
    mine, mine_norms = unit(queries.to(wide), cosine)
    all_keys, key_norms = unit(keys.to(wide), cosine)
    mine = mine / temperature
    scores = sddmm(positives, mine, all_keys)
    degrees = positives.indptr.diff()
    weight = torch.where(degrees > 0, degrees.to(wide) ** (power - 1), 0)  # of each positive of a row
    weight /= (weight * degrees).sum().clamp(min=torch.finfo(wide).tiny)
    others = all_keys if negatives is None else all_keys.index_select(0, negatives)
    away = log_counts  # what is subtracted from the columns' scores
    if bias is not None:
        bias = bias.detach().to(wide)
        scores += bias[positives.indices.long()]
        away = (0 if away is None else away.to(wide)) - (bias if negatives is None else bias[negatives])
    columns, shift = padded(others, away, precision)
    hits = _hits(positives, negatives, len(shift))

    entry_weight = torch.repeat_interleave(weight, degrees, output_size=positives.nnz)
    total = torch.zeros((), dtype=torch.float64, device=mine.device)
    if ratio is None:
        push = torch.empty_like(scores)  # of every positive's score
    else:
        row_weight = weight * degrees
        total, push = _attraction(positives, scores, row_weight, ratio)
    count = len(mine)
    extra = -count % ROWS
    mine, degrees = F.pad(mine, (0, 0, 0, extra)), F.pad(degrees, (0, extra))
    if ratio is not None:
        row_weight = F.pad(row_weight, (0, extra))
    grad_mine, grad_others = torch.zeros_like(mine), torch.zeros_like(others)
    ranges = list(split(mine, columns))
    most = ranges[0][1] if ranges else ROWS  # rows of every panel but the last
    starts = [*positives.indptr[:-1:most].tolist(), positives.nnz]  # at once: on a GPU it waits
    for number, (first, last, panel) in enumerate(ranges):
        entries = slice(starts[number], starts[number + 1])
        torch.mm(mine[first:last].to(precision), columns.T, out=panel)
        lengths = degrees[first:last]
        row = torch.repeat_interleave(lengths, output_size=entries.stop - entries.start)
        panel.view(-1).index_fill_(0, row * len(shift) + hits[entries], -torch.inf)
        largest, sums = exponentials(panel, shift)
        log_sums = largest + sums.log()
        # A row without negatives has no sum, and its largest is none of its scores.
        some = sums > 0
        if ratio is None:
            score, by = scores[entries], entry_weight[entries]
            log_all = torch.logaddexp(score, log_sums[row])
            total += (by.double() * (log_all - score)).sum()
            push[entries] = by * ((score - log_all).exp() - 1)
            shares = torch.where(some[row], by * (largest[row] - log_all).exp(), 0)
            # Row by row: index_add_ uses atomics on a GPU.
            pull = torch.segment_reduce(shares, "sum", lengths=lengths, unsafe=True, initial=0)
        else:
            by = torch.where(some, row_weight[first:last], 0)
            total += torch.where(some, by.double() * log_sums, 0).sum()
            pull = torch.where(some, by / sums, 0)
        if gradients:
            pull = pull[:, None]
            grad_mine[first:last] = torch.mm(panel, columns) * pull
            grad_others += torch.mm(panel.T, (mine[first:last] * pull).to(precision))[: len(others)]
    value = total.to(wide)
    if not gradients:
        nothing = mine.new_empty((0, mine.shape[1]))
        return value, nothing, nothing.clone()
    mine, grad_mine = mine[:count], grad_mine[:count] + spmm(positives, all_keys, push)
    grad_keys = spmm(positives.T, mine, push[positives.transposed_entries])
    if negatives is None:
        grad_keys += grad_others
    else:
        grad_keys[negatives] += grad_others  # which are different
    grad_mine /= temperature
    grad_mine = through_unit(grad_mine, mine * temperature, mine_norms)
    return value, grad_mine, through_unit(grad_keys, all_keys, key_norms)


def _attraction(
    positives: SparseMatrix, scores: torch.Tensor, row_weight: torch.Tensor, ratio: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The positives' part of the bilateral form, float64, and the derivative by each of their scores."""
    degrees = positives.indptr.diff()
    row = torch.repeat_interleave(degrees, output_size=positives.nnz)
    scaled = scores / ratio
    # A row without positives has the weight 0.
    most = torch.segment_reduce(scaled, "max", lengths=degrees, unsafe=True, initial=torch.finfo(scores.dtype).min)
    parts = (scaled - most[row]).exp()
    sums = torch.segment_reduce(parts, "sum", lengths=degrees, unsafe=True, initial=0)
    log_means = torch.where(degrees > 0, most + (sums / degrees).log(), 0)
    return -(row_weight.double() * ratio * log_means).sum(), -(row_weight / sums)[row] * parts


def unit(x: torch.Tensor, cosine: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows of length 1 and what they were divided by, [rows, 1]; without `cosine` the rows as they are.

    Rows shorter than SHORTEST have no direction: they are divided by infinity, and so is their gradient.
    """
    if not cosine:
        return x, None
    if _in_registers(x):
        out, norms = torch.empty_like(x), x.new_empty(len(x))
        cpu.unit(_arguments.array(x), SHORTEST, _arguments.array(out), _arguments.array(norms))
        return out, norms[:, None]
    norms = x.norm(dim=1, keepdim=True)
    norms = norms.masked_fill_(norms < SHORTEST, torch.inf)
    return x / norms, norms


def through_unit(grad: torch.Tensor, unit: torch.Tensor, norms: torch.Tensor | None) -> torch.Tensor:
    """The gradient of rows from that of the rows divided by their length; may overwrite what it is given."""
    if norms is None:
        return grad
    if _in_registers(grad):
        cpu.through_unit(*map(_arguments.array, (grad, unit, norms[:, 0])))
        return grad
    return (grad - unit * (grad * unit).sum(dim=1, keepdim=True)) / norms


def _in_registers(x: torch.Tensor) -> bool:
    """Whether the CPU's kernels take it."""
    return not devices.on_gpu(x) and x.shape[1] <= MAX_DIM and len(x) > 0


def padded(
    others: torch.Tensor, log_counts: torch.Tensor | None, precision: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The columns with rows of zeros up to the next multiple of WIDTH, at least one, and what is subtracted from a
    panel's columns: infinity from those of the zeros."""
    extra = WIDTH - len(others) % WIDTH
    shift = others.new_zeros(len(others)) if log_counts is None else log_counts.to(others.dtype)
    return F.pad(others, (0, 0, 0, extra)).to(precision), F.pad(shift, (0, extra), value=torch.inf)


def _hits(positives: SparseMatrix, negatives: torch.Tensor | None, width: int) -> torch.Tensor:
    """The column of a panel that holds each positive, int64 [nnz]; the last one, a padded one, for those that are not
    among the negatives."""
    if negatives is None:
        return positives.indices.long()
    columns = negatives.new_full((positives.shape[1],), width - 1)
    columns[negatives] = torch.arange(len(negatives), device=negatives.device)
    return columns[positives.indices.long()]


def split(queries: torch.Tensor, padded: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Ranges of rows, all but the last of one size, and memory for their products with all columns."""
    size = GPU_PANEL if devices.on_gpu(queries) else CPU_PANEL
    most = max(ROWS, size // (len(padded) * padded.element_size()) // ROWS * ROWS)
    memory = devices.empty(queries, (min(most, len(queries)), len(padded)), "a panel of scores", padded.dtype)
    for first in range(0, len(queries), most):
        last = min(first + most, len(queries))
        yield first, last, memory[: last - first]


def exponentials(panel: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace x by exp(x - shift - the largest of its row); the largest and the sums of every row."""
    largest, sums = (torch.empty(len(panel), dtype=shift.dtype, device=panel.device) for _ in range(2))
    if devices.on_gpu(panel):
        from gnnrec.ops.softmax_loss import cuda

        cuda.exponentials(panel, shift, largest, sums)
    else:
        cpu.exponentials(*map(_arguments.array, (panel, shift, largest, sums)))
    return largest, sums
