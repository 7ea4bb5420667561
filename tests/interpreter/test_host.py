"""What operators do around their kernels, on a GPU that is pretended."""

import pytest
import torch
from pretend_gpu import WithoutWaiting, pretended
from walk import check, on_device, sample

from gnnrec import ops
from gnnrec.graph import SparseMatrix
from gnnrec.ops._operator import Case

# It takes the positives of new rows: how many there are has to be known.
WAITING = {"softmax_loss"}


@pytest.fixture(autouse=True, scope="module")
def gpu():
    with pretended() as device:
        yield device


def fresh(option):
    """An option whose matrices are made for the CPU: those of the cases were made under the conftest's on_gpu."""
    if isinstance(option, list):
        return [fresh(part) for part in option]
    if not isinstance(option, SparseMatrix):
        return option
    given = option.row_scale, option.col_scale, option.values, option.symmetric
    return SparseMatrix(option.indptr, option.indices, option.shape, *given)


def cases(op):
    chosen = [*sample(op, widths=(33,)), *[case for case in op.cases() if "rows" in case.options][:1]]
    return [Case(case.name, case.tensors, {name: fresh(x) for name, x in case.options.items()}) for case in chosen]


@pytest.mark.parametrize("op", [pytest.param(op, id=op.name) for op in ops.OPS])
def test_cpu_and_gpu_stay_apart_and_nothing_waits(op, gpu):
    """Nothing does once matrices and transposes are made, so that a CUDA graph can capture it."""
    for case in cases(op):
        check(op, case, torch.float32, gpu)
        if not op.differentiable or op.name in WAITING:
            continue
        options = {name: on_device(option, gpu) for name, option in case.options.items()}
        tensors = {name: torch.randn(shape).to(gpu).requires_grad_() for name, shape in case.tensors.items()}
        with WithoutWaiting():
            outputs = op.function(**options, **tensors)
            outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
            upstream = [torch.ones_like(out) for out in outputs]
            torch.autograd.grad(outputs, list(tensors.values()), upstream, materialize_grads=True)


def test_numbers_of_a_step_may_lie_on_the_gpu(gpu):
    """Adam's learning rate and number of the step, as a CUDA graph holds them."""
    given = [torch.randn(5, 33, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    given[3].abs_()
    options = {"betas": (0.5, 0.9), "weight_decay": 0.1, "decoupled": True}
    expected, found = ([x.clone().to(gpu) for x in given] for _ in range(2))
    ops.adam_step(*expected, lr=0.03, step=3, **options)
    rate, step = torch.tensor(0.03, dtype=torch.float64).to(gpu), torch.tensor(3.0).to(gpu)
    with WithoutWaiting():
        ops.adam_step(*found, lr=rate, step=step, **options)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.cpu(), theirs.cpu())
