"""A step of LightGCN never makes the CPU wait for the GPU, so that a CUDA graph can hold it.

As far as this can be told without a GPU: every call into torch, those in the bodies of operators included, is looked
at, and fails where its result, or the size of its result, has to be known on the CPU. What happens in a launch is left
out, since the interpreter computes with numpy.
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor

from gnnrec import ops
from gnnrec.graph import BipartiteGraph, schedule, sparse

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.nonzero,
    aten.masked_select,
    aten.bincount,
    aten.histc,
    aten._unique,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim,
}
READERS = ("numpy", "__array__", "cpu", "item", "tolist")  # what reads a tensor without a call that could be seen


class NoWaiting(TorchDispatchMode):
    """Raises at a call that waits; goes into the bodies of the project's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.seen.add(str(func))
        if func.namespace == "gnnrec":
            with self:
                return OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
        packet = func.overloadpacket
        sized = packet is aten.repeat_interleave and kwargs.get("output_size") is None
        masked = packet in (aten.index, aten.index_put, aten.index_put_) and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        # Numbers that are written from the CPU are copied from there, and what follows waits for that copy.
        copied = packet in (aten.lift_fresh, aten.lift_fresh_copy, aten._pin_memory)
        moved = "device" in kwargs and any(isinstance(x, torch.Tensor) for x in tree_leaves(args))
        waits = packet in WAITING or sized or masked or copied or (moved and packet is aten._to_copy)
        assert not waits, str(func)
        return func(*args, **kwargs)


@contextmanager
def no_waiting(on_host: list[torch.Tensor]):
    """Nothing may wait; only tensors that lie on the CPU anyway are read."""
    pointers = {x.data_ptr() for x in on_host}
    with pytest.MonkeyPatch.context() as patch:
        for name in READERS:
            real = getattr(torch.Tensor, name)

            def reader(self, *given, real=real, name=name):
                assert self.data_ptr() in pointers, f"Tensor.{name} of {list(self.shape)}"
                return real(self, *given)

            patch.setattr(torch.Tensor, name, reader)
        run = GridExecutor.__call__

        def launched(self, *args, **kwargs):
            with _disable_current_modes(), pytest.MonkeyPatch.context() as inner:
                for name in READERS:
                    inner.setattr(torch.Tensor, name, originals[name])
                return run(self, *args, **kwargs)

        patch.setattr(GridExecutor, "__call__", launched)
        with NoWaiting() as mode:
            yield mode


originals = {name: getattr(torch.Tensor, name) for name in READERS}


@pytest.fixture
def matrix(monkeypatch):
    """With short, medium and long rows."""
    for module in (schedule, sparse):
        monkeypatch.setattr(module, "GPU_LONG", 16)
    monkeypatch.setattr(schedule, "GPU_SHORT", 4)
    rng = np.random.default_rng(0)
    graph = BipartiteGraph.from_edges(rng.integers(60, size=700), rng.zipf(1.5, 700) % 50, 60, 50)
    result = graph.norm_adjacency()
    assert all(map(len, (result.short, result.medium, result.long)))
    return result


@pytest.fixture
def triples():
    rng = np.random.default_rng(1)
    return torch.from_numpy(np.stack([rng.integers(60, size=40), *(60 + rng.integers(50, size=(4, 40)))]))


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(
    ("layers", "negatives", "hardest"), [(0, 1, False), (3, 1, False), (3, 3, False), (3, 3, True)]
)
def test_a_step(matrix, triples, layers, negatives, hardest, deterministic):
    embedding = torch.nn.Parameter(torch.randn(110, 16))
    optimizer = torch.optim.Adam([embedding], lr=0.01, fused=True)

    def step():
        final = ops.lightgcn_propagate(matrix, embedding, num_layers=layers)
        options = {"hardest": hardest, "deterministic": deterministic}
        loss = ops.bpr_loss(final, embedding, triples[: 2 + negatives], 1e-4, **options)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    before = step()  # makes the optimiser's state
    with no_waiting([matrix.histogram]) as mode:
        after = step()
    assert after < before
    assert {"gnnrec.bpr_loss.default", "gnnrec.bpr_loss_backward.default", "aten._fused_adam_.default"} <= mode.seen
    assert ("aten.sort.stable" in mode.seen) is deterministic


def test_layers_for_the_rows_of_a_batch(matrix):
    x = torch.randn(110, 16, requires_grad=True)
    rows = torch.tensor([3, 70, 3, 109, int(matrix.long[0, 0])])
    with no_waiting([matrix.histogram]) as mode:
        out = ops.lightgcn_propagate(matrix, x, num_layers=2, rows=rows)
        (gradient,) = torch.autograd.grad(out, x, torch.ones_like(out))
    assert "gnnrec.index_sum.default" in mode.seen
    whole = ops.lightgcn_propagate(matrix, x, num_layers=2)[rows]
    torch.testing.assert_close(gradient, torch.autograd.grad(whole, x, torch.ones_like(out))[0])


def test_numbers_outside_the_nodes_end_the_work_on_a_gpu(matrix, triples):
    """By torch._assert_async, which raises at once on a CPU."""
    x = torch.randn(110, 16)
    with pytest.raises(RuntimeError, match="triples must lie within the nodes"):
        ops.bpr_loss(x, x, triples + 60)
    with pytest.raises(RuntimeError, match="rows must lie within the nodes"):
        ops.lightgcn_propagate(matrix, x, rows=torch.tensor([-1]))


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: torch.repeat_interleave(x, (x > 0).long()),
        lambda x: x.long().unique(),
        lambda x: torch.tensor([1.0]),
    ],
)
def test_what_waits_is_noticed(waits):
    with no_waiting([]), pytest.raises(AssertionError):
        waits(torch.ones(4))
