"""The walk over gnnrec.ops.OPS through the Triton kernels, for tests/interpreter (on CPU tensors) and tests/gpu."""

from __future__ import annotations

import pytest
import torch
from walk import (
    assert_bit_equal,
    check,
    columns_first,
    draw,
    dtypes,
    evaluate,
    every_other_row,
    inner_columns,
    on_device,
    sample,
    width,
)

from gnnrec import ops
from gnnrec.graph import schedule, sparse
from gnnrec.ops import tuning
from gnnrec.ops._operator import Case

WALK = [pytest.param(op, case, id=f"{op.name}-{case.name}") for op in ops.OPS for case in op.cases()]
SAMPLE = [pytest.param(op, case, id=f"{op.name}-{case.name}") for op in ops.OPS for case in sample(op, (33,))]
LAYOUTS = {columns_first: 33, every_other_row: 64, inner_columns: 33}
PIECES = [pytest.param(op, case, id=f"{op.name}-{case.name}") for op in ops.OPS for case in sample(op, (64, 300))]
SHAPED = [
    pytest.param(op, shape, id=f"{op.name}-{'-'.join(map(str, shape.values()))}")
    for op in ops.OPS
    for shape in tuning.CANDIDATES.get(op.name, ())
]


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(("op", "case"), WALK)
def test_against_the_reference(op, case, device):
    for dtype in dtypes(op, case) if width(case) <= 64 else op.dtypes[:1]:  # a wide one takes half a minute
        check(op, case, dtype, device)


@pytest.mark.parametrize(("op", "case"), SAMPLE)
def test_fresh_memory_is_not_trusted(op, case, device, poison, monkeypatch):
    result = evaluate(op, op.function, case, torch.float32, device=device)
    assert poison
    monkeypatch.undo()
    assert_bit_equal(result, evaluate(op, op.function, case, torch.float32, device=device))


@pytest.mark.parametrize("op", [pytest.param(op, id=op.name) for op in ops.OPS])
def test_any_strides(op, device):
    """Within rounding: a GPU's threads share a row in another way where it does not begin at a multiple of 16 bytes."""
    cases = {width(case): case for case in sample(op, (33, 64))}
    contiguous = {w: evaluate(op, op.function, case, torch.float32, device=device) for w, case in cases.items()}
    for layout, w in LAYOUTS.items():
        strided = evaluate(op, op.function, cases[w], torch.float32, layout=layout, device=device)
        for x, expected in zip(strided, contiguous[w], strict=True):
            scale = float(expected.abs().nan_to_num(posinf=0).max()) if expected.numel() else 0.0
            torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize(("op", "shape"), SHAPED)
def test_every_launch_shape(op, shape, device):
    (case,) = sample(op, widths=(64,))
    with tuning.forced(op.name, shape):
        check(op, case, torch.float32, device)


def rebuilt(case: Case) -> Case:
    """The case with matrices made anew, under the schedule's limits as they are now."""

    def again(option):
        if isinstance(option, list):
            return [again(part) for part in option]
        if not isinstance(option, sparse.SparseMatrix):
            return option
        given = option.row_scale, option.col_scale, option.values, option.symmetric
        return sparse.SparseMatrix(option.indptr, option.indices, option.shape, *given)

    return Case(case.name, case.tensors, {name: again(option) for name, option in case.options.items()})


@pytest.mark.parametrize(("op", "case"), PIECES)
def test_rows_in_pieces_and_rows_of_their_own(op, case, device, monkeypatch):
    for module in (schedule, sparse):
        monkeypatch.setattr(module, "GPU_LONG", 8, raising=False)
    monkeypatch.setattr(schedule, "GPU_SHORT", 2)
    again = rebuilt(case)
    for option in again.options.values():
        if isinstance(option, sparse.SparseMatrix) and option.nnz > 50:
            assert len(schedule.long_rows(option.indptr, 8)[1])
    check(op, again, torch.float32, device)


@pytest.mark.parametrize("op", [pytest.param(op, id=op.name) for op in ops.OPS if op.differentiable])
def test_second_derivatives(op, device):
    """Of the cases that have them, against the reference's in float64."""
    for case in [case for case in op.cases() if op.twice_differentiable(case)][:1]:
        results = []
        for function in (op.function, op.reference):
            where = device if function is op.function else "cpu"
            tensors = [draw(shape, seed, torch.float64).to(where) for seed, shape in enumerate(case.tensors.values())]
            tensors = [x.requires_grad_() for x in tensors]
            options = {name: on_device(option, where) for name, option in case.options.items()}
            y = function(**options, **dict(zip(case.tensors, tensors)))
            gradients = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
            loss = sum(gradient.square().sum() for gradient in gradients)
            results.append([x.cpu() for x in torch.autograd.grad(loss, tensors, materialize_grads=True)])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.abs().max() + 1))


def only(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("op", [pytest.param(op, id=op.name) for op in ops.OPS if op.name == name])


@only("lightgcn_propagate")
def test_rows_that_are_every_other_number(op, device):
    matrix = op.cases()[0].options["matrix"].to(device)
    x, rows = draw((51, 16), 0, torch.float32).to(device), torch.arange(20, device=device)[::2]
    assert torch.equal(op.function(matrix, x, rows=rows), op.function(matrix, x)[rows])


@only("spmm")
def test_gradients_of_values_that_lie_column_after_column(op, device):
    (case,) = (case for case in op.cases() if case.name == "square-33-max-wide")
    got = evaluate(op, op.function, case, torch.float32, layout=columns_first, device=device)
    for ours, theirs in zip(got, evaluate(op, op.reference, case, torch.float32), strict=True):
        torch.testing.assert_close(ours, theirs)


@only("index_scatter")
@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_an_index_of_any_integers(op, kind, device):
    src = draw((5, 8), 0, torch.float32).to(device).requires_grad_()
    index = torch.tensor([3, 0, 3, 1, 3], dtype=kind, device=device)
    out = op.function(src, index, 4)
    assert torch.equal(torch.autograd.grad(out, src, out)[0], out.detach()[index.long()])


@only("index_scatter")
@pytest.mark.parametrize(("kind", "size"), [(torch.int8, 200), (torch.uint8, 256), (torch.int16, 40_000)])
def test_more_results_than_the_type_of_an_index_counts(op, kind, size, device):
    src, index = torch.ones(3, 2, device=device), torch.tensor([0, 100, 120], dtype=kind, device=device)
    out = op.function(src, index, size)
    assert out.shape == (size, 2)
    assert out.sum(dim=1).nonzero().flatten().tolist() == [0, 100, 120]
