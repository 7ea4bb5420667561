"""bpr_loss: Bayesian personalised ranking with its gathers, regulariser and the scatter of its gradients."""

from __future__ import annotations

from typing import Any

import torch

from gnnrec import device as devices
from gnnrec.ops import _arguments
from gnnrec.ops._operator import Operator
from gnnrec.ops.bpr_loss import cpu, reference

__all__ = ["OP", "bpr_loss"]


def bpr_loss(
    final: torch.Tensor,
    ego: torch.Tensor,
    triples: torch.Tensor,
    reg: float = 0.0,
    *,
    hardest: bool = False,
    deterministic: bool = True,
) -> torch.Tensor:
    """Bayesian personalised ranking with L2 on the ego embeddings of the batch.

    mean over the batch of softplus(s(u, n) - s(u, p)) + reg / 2 * (|e_u|^2 + |e_p|^2 + |e_n|^2), with s the dot product
    of final embeddings and e the ego embeddings; of several negatives n, the mean over them of what stands there of n.
    Nothing of the batch is kept for the backward pass, which groups the batch by node and writes every row of the
    gradients once. A pair's user and positive are read once for all of its negatives. The loss and its gradients are
    bit-equal for any number of threads. On a GPU nothing waits for it, the check of `triples` included: there, numbers
    outside the nodes end the process's work on that GPU with torch's assertion.

    Args:
        final: propagated embeddings, float32, float64, bfloat16 or float16 [nodes, dim].
        ego: embeddings before propagation, of the same dtype [nodes, ego_dim].
        triples: int64 [2 + n, batch], n >= 1: numbers of the nodes user, positive and n negatives.
        reg: weight of the L2 term.
        hardest: of a pair's negatives only that with the highest s(u, n) - s(u, p) counts, the first of equal ones, and
            the backward pass reads no row of the others.
        deterministic: False lets the backward pass on a GPU add in any order, with atomics and without a sort, unless
            torch.use_deterministic_algorithms is on; on a CPU it changes nothing.

    Returns:
        A scalar, float32 for halves.

    Raises:
        ValueError: another type, dtype, device or shape, an empty batch, numbers outside the nodes.

    Source: Rendle et al. 2009; the L2 term as in the code of He et al. 2020; `hardest`: Zhang et al. 2013, "Optimizing
    top-N collaborative filtering via dynamic negative item sampling".
    """
    _arguments.check_dense("bpr_loss", "final", final)
    _arguments.check_dense("bpr_loss", "ego", ego, final.shape[0], dtypes=(final.dtype,))
    _arguments.check_indices("bpr_loss", "triples", triples)
    if triples.dim() != 2 or len(triples) < 3 or triples.shape[1] == 0:
        got = f"{triples.dtype} {list(triples.shape)}"
        raise ValueError(f"bpr_loss: triples must be int64 [2 + n, batch] with n, batch >= 1, got {got}")
    _arguments.check_device("bpr_loss", final, ego=ego, triples=triples)
    result: torch.Tensor = _loss(final, ego, triples, float(reg), hardest, deterministic)
    return result


@torch.library.custom_op("gnnrec::bpr_loss", mutates_args=())
def _loss(
    final: torch.Tensor, ego: torch.Tensor, triples: torch.Tensor, reg: float, hardest: bool, deterministic: bool
) -> torch.Tensor:
    low, high = triples.aminmax()
    dtype = _arguments.compute_dtype(final.dtype)
    if devices.on_gpu(final):
        from gnnrec.ops.bpr_loss import cuda

        torch._assert_async((low >= 0) & (high < len(final)), "bpr_loss: triples must lie within the nodes")
        out = final.new_empty((), dtype=dtype)
        cuda.loss(final, ego, triples, reg, hardest, out)
        return out
    if low < 0 or high >= len(final):
        raise ValueError(f"bpr_loss: triples must lie within 0 and {len(final) - 1}, got {int(low)} to {int(high)}")
    loss = cpu.loss(_arguments.array(final), _arguments.array(ego), _arguments.array(triples), reg, hardest)
    return torch.tensor(loss, dtype=dtype)


@_loss.register_fake
def _(
    final: torch.Tensor, ego: torch.Tensor, triples: torch.Tensor, reg: float, hardest: bool, deterministic: bool
) -> torch.Tensor:
    return final.new_empty((), dtype=_arguments.compute_dtype(final.dtype))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    final, ego, triples, *ctx.options = inputs
    ctx.save_for_backward(final, ego, triples)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    grad_final, grad_ego = _loss_backward(grad, *ctx.saved_tensors, *ctx.options)
    return grad_final, grad_ego if ctx.options[0] else None, None, None, None, None


_loss.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("gnnrec::bpr_loss_backward", mutates_args=())
def _loss_backward(
    grad: torch.Tensor,
    final: torch.Tensor,
    ego: torch.Tensor,
    triples: torch.Tensor,
    reg: float,
    hardest: bool,
    deterministic: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    grad_final = devices.empty(final, final.shape, "the gradient of the final embeddings")
    grad_ego = devices.empty(ego, ego.shape if reg else (0, ego.shape[1]), "the gradient of the ego embeddings")
    if devices.on_gpu(final):
        from gnnrec.ops.bpr_loss import cuda

        order = deterministic or torch.are_deterministic_algorithms_enabled()
        cuda.loss_backward(grad, final, ego, triples, reg, hardest, order, grad_final, grad_ego if reg else None)
        return grad_final, grad_ego
    inputs = _arguments.array(final), _arguments.array(ego), _arguments.array(triples)
    cpu.loss_backward(float(grad), *inputs, reg, hardest, _arguments.array(grad_final), _arguments.array(grad_ego))
    return grad_final, grad_ego


@_loss_backward.register_fake
def _(
    grad: torch.Tensor,
    final: torch.Tensor,
    ego: torch.Tensor,
    triples: torch.Tensor,
    reg: float,
    hardest: bool,
    deterministic: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return final.new_empty(final.shape), ego.new_empty(ego.shape if reg else (0, ego.shape[1]))


OP = Operator(
    "bpr_loss",
    bpr_loss,
    reference.bpr_loss,
    reference.cases,
    reference.bytes_moved,
    twice_differentiable=lambda case: False,
)
