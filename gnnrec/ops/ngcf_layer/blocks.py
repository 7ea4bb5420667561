"""ngcf_layer where neither features nor aggregates are ever in memory at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from gnnrec import profiler
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import _arguments, _dropout
from gnnrec.ops.ngcf_layer import cpu, passes


class NGCFBlocks:
    """One `ngcf_layer` of a symmetric matrix, forward and backward, bit-equal to it: its aggregation for any columns of
    some rows, everything else for some rows with all their columns. float32 on the CPU.

    Rows are known by their numbers in the matrix, int64 [n], rising: dropout is a function of them, and so is the order
    in which the gradients of the weights are summed. `backward` takes every row at most once, in their order; what is
    left out has the gradient 0.

    Args:
        indptr: int64 [nodes + 1], the row pointers of the matrix [nodes, nodes], which has scales and no values.
        w1, b1, w2, b2: float32 [out, in] and [out].
        negative_slope, dropout, node_dropout: as for `ngcf_layer` in training.
        seed: of dropout, int64 [] on the CPU; None drops nothing.

    Raises:
        ValueError: another type, dtype, device or shape, with what was received.
    """

    def __init__(
        self,
        indptr: torch.Tensor,
        w1: torch.Tensor,
        b1: torch.Tensor,
        w2: torch.Tensor,
        b2: torch.Tensor,
        *,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        node_dropout: float = 0.0,
        seed: torch.Tensor | None = None,
    ) -> None:
        _arguments.check_indices("NGCFBlocks", "indptr", indptr)
        for name, w in {"w1": w1, "w2": w2}.items():
            _arguments.check_dense("NGCFBlocks", name, w, w1.shape[0], w1.shape[1], (torch.float32,))
        for name, b in {"b1": b1, "b2": b2}.items():
            _arguments.check_vector("NGCFBlocks", name, b, len(w1), (torch.float32,))
        _dropout.check_probability("NGCFBlocks", "dropout", dropout)
        _dropout.check_probability("NGCFBlocks", "node_dropout", node_dropout)
        self._dropout = passes.Dropout()
        if seed is not None:
            self._dropout = passes.Dropout(int(_dropout.draw_seed(seed)), dropout, node_dropout)
        self._weights = _arguments.array(torch.cat([w1, w2], dim=1))  # [out, 2 in]
        self._columns = np.ascontiguousarray(self._weights.T)
        self._bias = (b1 + b2).detach()[None].numpy()
        self._slope = np.float32(negative_slope)
        self._borders = passes.borders(indptr.numpy(), len(w1))
        self._partial: npt.NDArray[np.float32] | None = None
        self._partial_bias: npt.NDArray[np.float32] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Columns of the result, and of the features."""
        return self._weights.shape[0], self._weights.shape[1] // 2

    def aggregate(
        self,
        part: SparseMatrix,
        numbers: torch.Tensor,
        x: torch.Tensor,
        out: torch.Tensor,
        *,
        backward: bool = False,
    ) -> None:
        """out = the aggregates of some rows for the columns of x; or, backward, out += what reaches them of x, the
        gradients of all aggregates.

        Args:
            part: the matrix of these rows.
            x: float32 [nodes, columns].
            out: float32 [n, columns].
        """
        _arguments.check_matrix("NGCFBlocks", part)
        _arguments.check_dense("NGCFBlocks", "x", x, part.shape[1], None, (torch.float32,))
        _arguments.check_dense("NGCFBlocks", "out", out, len(numbers), x.shape[1], (torch.float32,))
        packed, target = _arguments.pack(part), out.numpy()
        base, added = (target, out) if backward else (None, None)
        # As spmm has its arguments.
        with profiler.kernel("gnnrec::ngcf_aggregate", packed, [], x, None, "sum", 1.0, added):
            arrays = _arguments.matrix_arrays(packed, torch.float32)
            passes.aggregate(arrays, x.numpy(), target, np.float32, self._dropout, base, backward, numbers.numpy())

    def forward(
        self, numbers: torch.Tensor, own: torch.Tensor, sums: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The result for some rows [n, out] and its norms [n], from their features and their aggregates [n, in]."""
        self._check(numbers, own=own, sums=sums)
        out, norms = torch.empty(len(own), self.shape[0]), torch.empty(len(own))
        drop = self._dropout.seed, *self._dropout.of_messages(np.float32)
        inputs = numbers.numpy(), own.numpy(), sums.numpy(), self._columns, self._bias, self._slope, *drop
        with profiler.kernel("gnnrec::ngcf_dense", own, out):
            cpu.compile_dense(*self.shape[::-1])(-(-len(out) // cpu.PIECE), *inputs, out.numpy(), norms.numpy())
        return out, norms

    def backward(
        self,
        numbers: torch.Tensor,
        own: torch.Tensor,
        sums: torch.Tensor,
        out: torch.Tensor,
        norms: torch.Tensor,
        grad: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradients of the features, as far as they do not go through the aggregates, and of the aggregates of
        some rows, [n, in]; those of the weights are added to what `gradients` gives.

        Args:
            own, sums: as for `forward`.
            out, norms: what it gave.
            grad: of the result [n, out].
        """
        self._check(numbers, own=own, sums=sums)
        arrays = [x.numpy() for x in (own, sums, out, norms, grad)]
        if self._partial is None:
            count = len(self._borders) - 1
            self._partial = np.zeros((count, *self._weights.shape), np.float32)
            self._partial_bias = np.zeros((count, 2, len(self._weights)), np.float32)
        upstream, grad_own, grad_sums = np.empty_like(arrays[2]), np.empty_like(arrays[0]), np.empty_like(arrays[0])
        drop = self._dropout.seed, *self._dropout.of_messages(np.float32)
        pieces, settings = -(-len(upstream) // cpu.PIECE), (self._weights, self._slope, *drop)
        places = np.searchsorted(numbers.numpy(), self._borders)
        chunks = np.flatnonzero(np.diff(places))
        parts = np.column_stack([chunks, places[chunks], places[chunks + 1]])
        slices, partial = len(parts) * cpu.slices_of(self.shape[0]), (self._partial, self._partial_bias)
        with profiler.kernel("gnnrec::ngcf_dense_backward", own, out):
            run = cpu.compile_dense_backward(*self.shape[::-1])
            run(pieces, numbers.numpy(), *arrays[:2], *settings, *arrays[2:], upstream, grad_own, grad_sums)
            run = cpu.compile_weight_gradients(*self.shape[::-1])
            run(slices, parts, *arrays[:2], upstream, *partial)
        return torch.from_numpy(grad_own), torch.from_numpy(grad_sums)

    def gradients(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Those of w1, b1, w2 and b2, after the last rows."""
        assert self._partial is not None, "rows come first"
        assert self._partial_bias is not None
        weights, bias = passes.total(self._partial), passes.total(self._partial_bias)[0]
        w1, w2 = torch.from_numpy(weights).chunk(2, dim=1)
        both = torch.from_numpy(bias)
        return w1, both, w2, both.clone()

    def _check(self, numbers: torch.Tensor, **tensors: torch.Tensor) -> None:
        _arguments.check_indices("NGCFBlocks", "numbers", numbers)
        for name, x in tensors.items():
            _arguments.check_dense("NGCFBlocks", name, x, len(numbers), self.shape[1], (torch.float32,))
