"""Panels of columns beside all columns at once, by the Triton kernels.

For tests/interpreter and tests/gpu, whose fixture `device` is where tensors lie.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gnnrec import ops
from gnnrec.graph import BipartiteGraph, schedule, sparse
from gnnrec.ops import tuning
from gnnrec.ops._panels import panels_of

USERS, ITEMS = 60, 50


def on_gpu(device):
    """Where what takes the interpreter minutes takes no time."""
    return torch.device(device).type == "cuda"


def panels(x, width):
    return [x[:, first : first + width].contiguous() for first in range(0, x.shape[1], width)]


@pytest.fixture
def matrix(device, monkeypatch):
    """A symmetric matrix with short, medium and long rows."""
    for module in (schedule, sparse):
        monkeypatch.setattr(module, "GPU_LONG", 40)
    monkeypatch.setattr(schedule, "GPU_SHORT", 4)
    rng = np.random.default_rng(0)
    graph = BipartiteGraph.from_edges(rng.integers(USERS, size=700), rng.zipf(1.5, 700) % ITEMS, USERS, ITEMS)
    result = graph.norm_adjacency().to(device)
    assert all(map(len, (result.short, result.medium, result.long)))
    return result


@pytest.mark.parametrize("shape", [2, 3])
def test_propagation_of_a_panel(matrix, device, shape):
    """Of launch shapes of 256 numbers: rows have several times the neighbours that are gathered at once."""
    nodes = USERS + ITEMS
    dim, widths = (256, (16, 64)) if on_gpu(device) else (32, (16,))
    x = torch.randn(nodes, dim, generator=torch.Generator().manual_seed(0)).to(device)
    weights = [0.1, 0.2, 0.7]
    chosen = torch.tensor([3, 70, 71, 109, int(matrix.long[0, 0])], device=device)
    with tuning.forced("spmm", tuning.CANDIDATES["spmm"][shape]):
        whole = ops.lightgcn_propagate(matrix, x, layer_weights=weights, num_layers=2)
        product = ops.spmm(matrix, x)
        for width in widths:
            for first, panel in zip(range(0, dim, width), panels(x, width)):
                columns = slice(first, first + width)
                out, work = torch.full_like(panel, torch.nan), torch.full_like(panel, torch.nan)
                with panels_of(matrix, dim, width):
                    found = ops.lightgcn_propagate_into(out, work, matrix, panel, layer_weights=weights)
                    blocks = [ops.spmm(matrix.row_block(rows), panel) for rows in (slice(0, 47), slice(47, nodes))]
                    rows = ops.spmm(matrix.select_rows(chosen), panel)
                assert torch.equal(found, whole[:, columns])
                assert torch.equal(torch.cat(blocks), product[:, columns])
                assert torch.equal(rows, product[chosen, columns])


@pytest.mark.parametrize(
    ("reg", "negatives", "hardest", "shape"), [(0.0, 1, False, 0), (0.1, 3, False, 1), (0.1, 2, True, 3)]
)
def test_a_loss_from_panels(device, reg, negatives, hardest, shape):
    """With a node that comes in more pairs than a run has, one of whose rows is used twice in a pair."""
    dim, batch, nodes, widths = (96, 3000, 300, (16, 48)) if on_gpu(device) else (32, 100, 12, (16,))
    generator = torch.Generator().manual_seed(1)
    final, ego = (torch.randn(nodes, dim, generator=generator).to(device).requires_grad_() for _ in range(2))
    triples = 1 + torch.randint(nodes - 2, (2 + negatives, batch), generator=generator)
    triples[1, 20:90] = 7
    triples[2, :9] = triples[1, :9]
    triples = triples.to(device)
    with tuning.forced("bpr_loss", tuning.CANDIDATES["bpr_loss"][shape]):
        whole = ops.bpr_loss(final, ego, triples, reg, hardest=hardest)
        gradient, decay = torch.autograd.grad(whole, [final, ego], materialize_grads=True)
        for width in widths:
            found = ops.BPRPanels(triples, (nodes, dim), reg, hardest=hardest, device=device)
            there = found.nodes
            assert torch.equal(there, triples.unique())
            for columns in zip(panels(final.detach()[there], width), panels(ego.detach()[there], width)):
                found.add(*columns)
            assert torch.equal(found.loss(), whole)
            assert torch.equal(torch.cat([found.gradient() for _ in range(dim // width)], 1), gradient[there])
            if reg:
                assert torch.equal(ego[there] * found.decay[:, None], decay[there])
            else:
                assert found.decay is None


@pytest.mark.parametrize(("reg", "negatives", "hardest"), [(0.0, 1, False), (0.1, 3, False), (0.1, 2, True)])
def test_a_loss_from_panels_of_two_processes(device, reg, negatives, hardest):
    """One tells what it has of the scores, the other adds that to its own, and knows the gradient of its columns."""
    dim, batch, nodes = 32, 100, 12
    generator = torch.Generator().manual_seed(2)
    final, ego = (torch.randn(nodes, dim, generator=generator).to(device).requires_grad_() for _ in range(2))
    triples = torch.randint(nodes, (2 + negatives, batch), generator=generator).to(device)
    whole = ops.bpr_loss(final, ego, triples, reg, hardest=hardest)
    gradient, decay = torch.autograd.grad(whole, [final, ego], materialize_grads=True)
    first, second = (ops.BPRPanels(triples, (nodes, 16), reg, hardest=hardest, device=device) for _ in range(2))
    for number, process in enumerate((first, second)):
        columns = slice(16 * number, 16 * (number + 1))
        process.add(*(x.detach()[process.nodes, columns] for x in (final, ego)))
    told: list[torch.Tensor] = []
    first.loss(lambda *parts: told.extend(part.clone() for part in parts))
    loss = second.loss(lambda *parts: [part.add_(told.pop(0)) for part in parts])
    there = second.nodes
    torch.testing.assert_close(second.gradient(), gradient[there, 16:])
    if reg:
        torch.testing.assert_close(ego[there] * second.decay[:, None], decay[there])
    if not hardest:  # of which the first process could not know at once which these are
        torch.testing.assert_close(loss, whole.detach())
    assert not told
