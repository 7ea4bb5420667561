"""Oracle, cases and bytes of edge_softmax."""

from __future__ import annotations

import torch

from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops._operator import Case, case_matrices, entry_rows


def edge_softmax(matrix: SparseMatrix, logits: torch.Tensor) -> torch.Tensor:
    """Subtract each row's maximum, divide by each row's sum."""
    rows = entry_rows(matrix).reshape(-1, *[1] * (logits.dim() - 1)).expand(logits.shape)
    zero = logits.new_zeros(matrix.shape[0], *logits.shape[1:])
    top = zero.scatter_reduce(0, rows, logits.detach(), "amax", include_self=False)
    exponentials = (logits - top.gather(0, rows)).exp()
    return exponentials / zero.scatter_add(0, rows, exponentials).gather(0, rows)


def cases() -> list[Case]:
    """Every small graph with 33 heads, one of them with every number of heads that makes a kernel of its own."""
    matrices = case_matrices()
    result = [_case(name, matrix, (33,)) for name, matrix in matrices.items()]
    result += [_case("square", matrices["square"], heads) for heads in ((), (4,), (64,), (300,))]
    small = SparseMatrix.from_coo(torch.tensor([0, 0, 0, 2, 2]), torch.tensor([1, 2, 2, 0, 3]), shape=(3, 4))
    return [*result, _case("small", small, (4,))]


def _case(name: str, matrix: SparseMatrix, heads: tuple[int, ...]) -> Case:
    return Case("-".join(map(str, (name, *heads))), {"logits": (matrix.nnz, *heads)}, {"matrix": matrix})


def bytes_moved(case: Case, itemsize: int) -> int:
    """Pointers once; the logits twice, for the sums and for the result; the result once."""
    matrix: SparseMatrix = case.options["matrix"]
    return 8 * (matrix.shape[0] + 1) + 3 * torch.Size(case.tensors["logits"]).numel() * itemsize
