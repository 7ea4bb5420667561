"""What operators do around their kernels, on a GPU that is pretended."""

import pytest
import torch
from pretend_gpu import WithoutWaiting, pretended
from walk import check, on_device, sample

from gnnrec import ops
from gnnrec.graph import SparseMatrix
from gnnrec.ops._operator import Case

# They group indices that are new in every call, or take the positives of new rows: how many there are has to be known.
WAITING = {"segment_reduce", "gather_segment_reduce", "index_scatter", "softmax_loss"}


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
