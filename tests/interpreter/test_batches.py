"""What is done for the rows of a batch: last layers over them, sums over an index, gradients of the loss."""

from contextlib import ExitStack
from importlib import import_module

import numpy as np
import pytest
import torch

from gnnrec import ops
from gnnrec.graph import BipartiteGraph, schedule, sparse
from gnnrec.ops import tuning
from gnnrec.ops._launch import launch
from gnnrec.ops.bpr_loss import reference


@pytest.fixture(params=[4, 64])
def run(request):
    """Sorted entries that are added up at once."""
    with ExitStack() as stack:
        for operator in ("index_scatter", "bpr_loss"):
            stack.enter_context(tuning.forced(operator, {**tuning.CANDIDATES[operator][0], "run": request.param}))
        yield request.param


@pytest.mark.parametrize(("dim", "dtype"), [(64, torch.float32), (160, torch.float32), (33, torch.bfloat16)])
def test_rows_of_a_propagation_are_those_of_the_whole(dim, dtype, monkeypatch):
    for module in (schedule, sparse):
        monkeypatch.setattr(module, "GPU_LONG", 16)
    monkeypatch.setattr(schedule, "GPU_SHORT", 4)
    rng = np.random.default_rng(0)
    graph = BipartiteGraph.from_edges(rng.integers(40, size=350), rng.zipf(1.5, 350) % 20, 40, 20)
    x, matrix = torch.randn(60, dim, generator=torch.Generator().manual_seed(0)).to(dtype), graph.norm_adjacency()
    assert min(map(len, (matrix.short, matrix.medium, matrix.long))) > 2
    rows = torch.cat([torch.from_numpy(rng.integers(60, size=20)), matrix.long[:, 0], matrix.long[:1, 0]])
    for layers in range(3):
        whole = ops.lightgcn_propagate(matrix, x, num_layers=layers)
        assert torch.equal(ops.lightgcn_propagate(matrix, x, num_layers=layers, rows=rows), whole[rows])
        none = ops.lightgcn_propagate(matrix, x, num_layers=layers, rows=rows[:0])
        assert none.shape == (0, dim)


def skewed(size, count, seed=0):
    """Numbers of which one comes in half of the places, others often, once and never."""
    rng = np.random.default_rng(seed)
    index = rng.zipf(1.4, count) % size
    index[rng.random(count) < 0.5] = min(3, size - 1)
    return torch.from_numpy(index)


@pytest.mark.parametrize(("size", "count", "dim"), [(20, 300, 3), (1, 9, 64), (5, 0, 7), (90, 40, 130), (7, 64, 1)])
def test_sums_over_an_index(size, count, dim, run):
    index = skewed(size, count)
    src = torch.randint(-9, 10, (count, dim), generator=torch.Generator().manual_seed(0)).float()
    expected = torch.zeros(size, dim).index_add_(0, index, src)  # of whole numbers, exact in any order
    for deterministic in (True, False):
        for dtype in (torch.float32, torch.float64, torch.float16):
            given = src.to(dtype).requires_grad_()
            found = ops.index_scatter(given, index.int(), size, deterministic=deterministic)
            assert torch.equal(found, expected.to(dtype))
            upstream = torch.randn(size, dim).to(dtype)
            assert torch.equal(torch.autograd.grad(found, given, upstream)[0], upstream[index])


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(
    ("dim", "reg", "negatives", "hardest"), [(64, 0.1, 1, False), (33, 0.0, 3, False), (300, 0.5, 3, True)]
)
def test_gradients_of_nodes_that_come_often(dim, reg, negatives, hardest, deterministic, run):
    triples = skewed(30, (2 + negatives) * 120).view(2 + negatives, 120)
    results = []
    for function, dtype in ((ops.bpr_loss, torch.float32), (reference.bpr_loss, torch.float64)):
        final, ego = (torch.randn(30, dim, generator=torch.Generator().manual_seed(s)).to(dtype) for s in (0, 1))
        inputs = [final.requires_grad_(), ego.requires_grad_()]
        option = {"deterministic": deterministic} if function is ops.bpr_loss else {}
        loss = function(*inputs, triples, reg, hardest=hardest, **option)
        results.append([loss, *torch.autograd.grad(loss, inputs, materialize_grads=True)])
    bound = 2e-6 if deterministic else 1e-5  # atomics add hundreds of numbers one by one
    for ours, exact in zip(*results, strict=True):
        assert (ours.detach().double() - exact).abs().max() <= bound * exact.abs().max()


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 3, 1, 0]])
def test_the_hardest_negative_of_equal_and_unknown_scores(order):
    final = torch.tensor([[1.0], [2.0], [5.0], [5.0], [3.0], [-torch.inf]])
    nodes = torch.tensor([4, 2, 3, 5])[order]
    ego = torch.ones_like(final).requires_grad_()
    triples = torch.cat([torch.tensor([0, 1]), nodes])[:, None]
    loss = ops.bpr_loss(final, ego, triples, 1.0, hardest=True)
    assert loss.item() == pytest.approx(float(np.logaddexp(0, 3)) + 1.5, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, ego)
    first = next(node for node in nodes.tolist() if node in (2, 3))
    assert sorted(gradient.flatten().nonzero().flatten().tolist()) == [0, 1, first]
    final[4] = torch.nan
    assert ops.bpr_loss(final, ego, triples, 1.0, hardest=True).isnan()


def test_losses_of_margins_that_are_large():
    """Where 1 + exp(-margin) is 1, and where exp overflows."""
    margins = torch.tensor([-200.0, -40.0, -17.0, -1e-8, 0.0, 1e-8, 20.0, 100.0, 1000.0])
    for margin in margins:
        final = torch.tensor([[1.0], [0.0], [margin]], requires_grad=True)
        loss = ops.bpr_loss(final, final.detach(), torch.tensor([[0], [1], [2]]))
        exact = margin.double().clamp(min=0) + (-margin.double().abs()).exp().log1p()
        assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
        (gradient,) = torch.autograd.grad(loss, final)
        assert gradient[2].item() == pytest.approx(margin.double().sigmoid().item(), rel=1e-5, abs=1e-38)


@pytest.mark.parametrize("always", [False, True])
def test_atomics_only_where_they_are_allowed(always, monkeypatch):
    launched = []

    def note(kernel, *args, **constants):
        launched.append(kernel.fn.__name__)
        launch(kernel, *args, **constants)

    for name in ("segment", "bpr_loss"):
        monkeypatch.setattr(import_module(f"gnnrec.ops.{name}.cuda"), "launch", note)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: always)
    x = torch.ones(4, 8, requires_grad=True)
    for deterministic in (True, False):
        launched.clear()
        ops.index_scatter(x, torch.arange(4), 5, deterministic=deterministic)
        ops.bpr_loss(x, x.detach(), torch.arange(3)[:, None], deterministic=deterministic).backward()
        atomic = {"_add", "_add_gradients"} & set(launched)
        assert atomic == (set() if deterministic or always else {"_add", "_add_gradients"})
