"""What the walks over gnnrec.ops.OPS share, on whichever device: drawn arguments, the error bar, memory layouts."""

from __future__ import annotations

import torch

from gnnrec.graph import SparseMatrix

EPS = {d: torch.finfo(d).eps for d in (torch.float32, torch.float64, torch.bfloat16, torch.float16)}
FLOOR = 4  # roundings: a handful of products and sums, however few terms there are


def width(case):
    return next(iter(case.tensors.values()))[-1]


def sample(op, widths=(33, 64, 300)):
    """The first case of each of a few widths: for what needs a kernel of its own but not every case."""
    first = {width(case): case for case in reversed(op.cases())}
    return [first[w] for w in widths]


WIDTHS = {torch.float64: (33,), torch.bfloat16: (33,), torch.float16: (64,)}


def dtypes(op, case):
    """float32 on all cases, the others at one width: every dtype and width is a kernel to compile."""
    few = {dtype for dtype, widths in WIDTHS.items() if any(case.name == one.name for one in sample(op, widths))}
    return [dtype for dtype in op.dtypes if dtype == torch.float32 or dtype in few]


def draw(shape, seed, dtype):
    """Normal numbers that float32 holds exactly, so that every precision computes with the same ones."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def on_device(option, device):
    """An option of a case, or the matrices and tensors in it, on a device; a seed stays on the CPU."""
    if isinstance(option, list):
        return [on_device(part, device) for part in option]
    moved = isinstance(option, SparseMatrix) or (isinstance(option, torch.Tensor) and option.dim() > 0)
    return option.to(device) if moved else option


def evaluate(op, function, case, dtype, layout=lambda x: x, drawn=torch.float32, device="cpu"):
    """Outputs of a call, and for each dense argument the gradient of the float outputs against random ones, on the CPU.

    The numbers are those that dtype `drawn` can hold.
    """

    def argument(shape, seed):
        x = draw(shape, seed, drawn).to(device, dtype)
        return layout(x) if shape else x

    tensors = {
        name: argument(shape, seed).requires_grad_(op.differentiable)
        for seed, (name, shape) in enumerate(case.tensors.items())
    }
    options = {name: on_device(option, device) for name, option in case.options.items()}
    outputs = function(**options, **tensors)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    if not op.differentiable:
        return [out.cpu() for out in outputs]
    upstream = [argument(out.shape, 99).to(out.dtype) for out in outputs]
    gradients = torch.autograd.grad(outputs, list(tensors.values()), upstream, materialize_grads=True)
    return [x.detach().cpu() for x in (*outputs, *gradients)]


def check(op, case, dtype, device="cpu"):
    """Outputs and gradients stay within twice the error of the reference in the same precision.

    The error is measured against the reference in float64. How far float64 itself is off is read from the float32 run,
    in units of its eps. The floor is a few roundings of the largest magnitude: the result with all signs made positive,
    or the result where that is larger (softmax of positive logits may have no gradient).
    Halves are computed with in float32 and only the results are rounded to halves.
    """
    drawn = dtype if dtype.itemsize < 4 else torch.float32
    got = evaluate(op, op.function, case, dtype, drawn=drawn, device=device)
    oracle = evaluate(op, op.reference, case, torch.float64, drawn=drawn)
    same = evaluate(op, op.reference, case, torch.float32, drawn=drawn)
    magnitudes = evaluate(op, op.reference, case, torch.float64, layout=torch.abs, drawn=drawn)
    computed_eps = min(EPS[dtype], EPS[torch.float32])
    for ours, theirs, exact, magnitude in zip(got, same, oracle, magnitudes, strict=True):
        assert ours.shape == exact.shape
        if not exact.is_floating_point():
            assert torch.equal(ours, exact)
            continue
        # A loss over halves is no half.
        assert ours.dtype == (dtype if ours.dim() or dtype.itemsize >= 4 else torch.float32)
        finite = exact.isfinite()
        assert torch.equal(ours[~finite].double(), exact[~finite])
        if not finite.any():
            continue
        reference_error = (theirs.double() - exact)[finite].abs().max() / EPS[torch.float32]
        floor = FLOOR * max(magnitude[magnitude.isfinite()].abs().max(), exact[finite].abs().max())
        error = (ours.double() - exact)[finite].abs().max()
        assert error <= computed_eps * 2 * reference_error + EPS[ours.dtype] * floor


def assert_bit_equal(results, expected):
    assert len(results) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(results, expected))


def columns_first(x):
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def every_other_row(x):
    wide = x.new_full((2 * len(x), *x.shape[1:]), torch.nan)
    wide[::2] = x
    return wide[::2]


def inner_columns(x):
    wide = x.new_full((*x.shape[:-1], x.shape[-1] + 4), torch.nan)
    wide[..., 1:-3] = x
    return wide[..., 1:-3]
