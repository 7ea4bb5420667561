"""Truncated singular value decompositions of a sparse matrix by the project's own spmm: close, or soon."""

from __future__ import annotations

import numpy as np
import torch

from gnnrec import ops
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.graph.sparse import SparseMatrix

ITERATIONS = 8  # of the power method; 6 leave 1.6 of Gowalla's leading 64 dimensions out, 8 leave .5
OVERSAMPLING = 16  # columns more than are asked for
STEPS = 40  # blocks of the Krylov space; with blocks of factors / 8 it is 5 times as wide as what is asked of it


def truncated_svd(matrix: SparseMatrix, factors: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Leading singular values and right singular vectors, from a block Krylov space of M^T M.

    On Gowalla's normalised graph the span of 256 vectors agrees with ARPACK's to 1e-4 of one dimension. Memory beyond
    the result: the Krylov basis, about 5 * factors * cols numbers.

    Args:
        matrix: M [rows, cols]; all is computed where it lies.
        factors: how many, at most min(rows, cols).
        seed: of the random start.

    Returns:
        S [factors] in falling order and V [cols, factors], float32. Where the rank is smaller, the rest of S is about
        0.

    Raises:
        ValueError: more factors than the matrix has.

    Source: Musco and Musco 2015, algorithm 2.
    """
    rows, cols = matrix.shape
    if not 1 <= factors <= min(rows, cols):
        raise ValueError(f"factors must lie within 1 and {min(rows, cols)}, got {factors}")
    block = max(8, -(-factors // 8))
    if STEPS * block >= cols:  # the whole space
        basis = torch.eye(cols, device=matrix.device)
        products = [ops.spmm(matrix.T, ops.spmm(matrix, columns.T.contiguous())) for columns in basis.split(block)]
        projected = torch.cat(products, dim=1)
    else:
        basis, projected = _krylov(matrix, block, min(STEPS, rows // block + 2), seed)
    values, rotation = torch.linalg.eigh(projected)
    order = values.argsort(descending=True)[:factors]
    return values[order].clamp(min=0).sqrt(), basis.T @ rotation[:, order]


def spectral_embedding(graph: BipartiteGraph, dim: int, std: float, *, seed: int = 0) -> torch.Tensor:
    """Where embeddings may start: U S^1/2 and V S^1/2 of the normalised users x items matrix U S V^T, by randomised
    power iteration, with N(0, std)'s mean square.

    Args:
        graph: the training graph.
        dim: columns; those beyond the rank that the graph can have are drawn from N(0, std), as are all rows of nodes
            without edges.
        std: of the result's numbers.
        seed: of the random start.

    Returns:
        float32 [num_users + num_items, dim].

    Source: Halko et al. 2011, algorithm 4.4.
    """
    matrix, generator = graph.norm_user_item(), torch.Generator().manual_seed(seed)
    result = torch.empty(graph.num_nodes, dim).normal_(0, std, generator=generator)
    width = min(dim + OVERSAMPLING, *matrix.shape)
    factors = min(dim, width)
    basis = _orthonormal(torch.randn(matrix.shape[1], width, generator=generator))
    for _ in range(ITERATIONS):
        basis = _orthonormal(ops.spmm(matrix.T, ops.spmm(matrix, basis)))
    image = ops.spmm(matrix, basis)
    squares, rotation = torch.linalg.eigh(image.T @ image)
    order = squares.argsort(descending=True)[:factors]
    roots = squares[order].clamp(min=0).pow(0.25)  # of the singular values
    left = (image @ rotation[:, order]) / roots.clamp(min=1e-6)
    spectral = torch.cat([left, (basis @ rotation[:, order]) * roots])
    degrees = torch.from_numpy(np.concatenate([graph.user_degrees, graph.item_degrees]))
    linked = degrees > 0  # others have no part in the decomposition, where they would be 0
    result[linked, :factors] = (spectral * (std / spectral[linked].square().mean().sqrt()))[linked]
    return result


def _krylov(matrix: SparseMatrix, block: int, steps: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An orthonormal basis (its rows) of the block Krylov space, and M^T M within it."""
    cols, width, device = matrix.shape[1], steps * block, matrix.device
    basis, projected = torch.empty(width, cols, device=device), torch.zeros(width, width, device=device)
    # Drawn on the CPU: every device starts from the same numbers.
    fresh = _orthonormal(torch.randn(cols, block, generator=torch.Generator().manual_seed(seed)).to(device))
    for start in range(0, len(basis), block):
        stop = start + block
        basis[start:stop] = fresh.T
        known = basis[:stop]
        image = ops.spmm(matrix.T, ops.spmm(matrix, fresh))
        within = known @ image
        projected[:stop, start:stop], projected[start:stop, :stop] = within, within.T
        fresh = _orthonormal(image - known.T @ within)
        overlap = torch.ones((), device=device)
        while overlap.abs().max() > 1e-3:  # once, against rounding; more often where the space is exhausted
            overlap = known @ fresh
            fresh = _orthonormal(fresh - known.T @ overlap)
    return basis, projected


def _orthonormal(x: torch.Tensor) -> torch.Tensor:
    q: torch.Tensor = torch.linalg.qr(x)[0]
    return q
