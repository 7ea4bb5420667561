"""What the results are checked against: float64, plain torch and scipy, gradients by torch's autograd.

Inputs come as float64, on the workload's device. What is linear in the neighbours' features is written with a sparse
product, so that a whole graph fits into memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import scipy.sparse
import torch
import torch.nn.functional as F
from contender import Step
from layer_peers import SLOPE, layers_of, ngcf_loss
from peers import REG, SCORE_BLOCK, K
from workload import RELATIONS, Tensors, Workload

BLOCK = 1 << 22  # entries of a product on a GPU at a time


@dataclass(frozen=True)
class Constant:
    """A sparse matrix without a gradient: rows and cols int64 [nnz], values float64 [nnz]."""

    rows: torch.Tensor
    cols: torch.Tensor
    values: torch.Tensor
    shape: tuple[int, int]

    @cached_property
    def _csr(self) -> Any:
        places = self.rows.numpy(), self.cols.numpy()
        return scipy.sparse.csr_array((self.values.numpy(), places), shape=self.shape)

    def times(self, x: torch.Tensor, transposed: bool = False) -> torch.Tensor:
        """The matrix, or its transpose, times x."""
        if not x.is_cuda:
            return torch.from_numpy((self._csr.T if transposed else self._csr) @ x.numpy())
        rows, cols = (self.cols, self.rows) if transposed else (self.rows, self.cols)
        out = x.new_zeros(self.shape[transposed], x.shape[1])
        for row, col, value in zip(*(each.split(BLOCK) for each in (rows, cols, self.values))):
            out.index_add_(0, row, value[:, None] * x[col])
        return out


class _Product(torch.autograd.Function):
    """A constant sparse matrix times x."""

    @staticmethod
    def forward(ctx: Any, matrix: Constant, x: torch.Tensor) -> torch.Tensor:
        ctx.matrix = matrix
        return matrix.times(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, ctx.matrix.times(grad, transposed=True)


def product(matrix: Constant, x: torch.Tensor) -> torch.Tensor:
    """matrix @ x."""
    result: torch.Tensor = _Product.apply(matrix, x)  # type: ignore[no-untyped-call]
    return result


def adjacent(w: Workload, values: torch.Tensor) -> Constant:
    """The adjacency with the given values."""
    return Constant(w.rows, w.cols, values.double(), w.adjacency.shape)


def normalised(w: Workload) -> Constant:
    """The normalised adjacency; its scales are float32, their products are not rounded."""
    return adjacent(w, w.scale.double()[w.rows] * w.scale.double()[w.cols])


def incidence(rows: torch.Tensor, cols: torch.Tensor, shape: tuple[int, int]) -> Constant:
    """Ones at the given places."""
    return Constant(rows, cols, torch.ones_like(rows, dtype=torch.float64), shape)


def spmm(w: Workload, t: Tensors) -> Step:
    matrix = normalised(w)
    return Step(lambda: product(matrix, t["x"]), t)


def lightgcn(w: Workload, t: Tensors, layers: int = 3) -> Step:
    matrix = normalised(w)

    def forward() -> torch.Tensor:
        outputs = [t["x"]]
        for _ in range(layers):
            outputs.append(product(matrix, outputs[-1]))
        return torch.stack(outputs).mean(dim=0)

    return Step(forward, t)


def ngcf_per_edge(w: Workload, t: Tensors) -> Step:
    """Every edge adds both biases, every node W1 x and its bias once more."""
    layer = _ngcf_layer_per_edge(w, t)

    def forward() -> torch.Tensor:
        outputs = [t["x"]]
        for number in range(layers_of(t)):
            outputs.append(layer(outputs[-1], number))
        return ngcf_loss(w, outputs)

    return Step(forward, t)


def ngcf_layer(w: Workload, t: Tensors) -> Step:
    """The first layer of it."""
    layer = _ngcf_layer_per_edge(w, t)
    return Step(lambda: layer(t["x"], 0), t)


def _ngcf_layer_per_edge(w: Workload, t: Tensors) -> Callable[[torch.Tensor, int], torch.Tensor]:
    matrix = normalised(w)
    degree = matrix.times(t["x"].new_ones(w.nodes, 1))

    def layer(h: torch.Tensor, number: int) -> torch.Tensor:
        w1, b1, w2, b2 = (t[f"{name}_{number}"] for name in ("w1", "b1", "w2", "b2"))
        s = product(matrix, h)
        return F.normalize(F.leaky_relu((h + s) @ w1.T + (h * s) @ w2.T + b1 + degree * (b1 + b2), SLOPE))

    return layer


def ngcf_once(w: Workload, t: Tensors) -> Step:
    """Both biases once for every node."""
    layers = ngcf_layers_once(w, t)
    return Step(lambda: ngcf_loss(w, layers()), t)


def ngcf_layers_once(w: Workload, t: Tensors) -> Callable[[], list[torch.Tensor]]:
    """The embeddings and the outputs of such layers."""
    matrix = normalised(w)

    def forward() -> list[torch.Tensor]:
        outputs = [t["x"]]
        for number in range(layers_of(t)):
            w1, b1, w2, b2 = (t[f"{name}_{number}"] for name in ("w1", "b1", "w2", "b2"))
            h = outputs[-1]
            s = product(matrix, h)
            outputs.append(F.normalize(F.leaky_relu((h + s) @ w1.T + b1 + (h * s) @ w2.T + b2, SLOPE)))
        return outputs

    return forward


def _softmax(w: Workload, logits: torch.Tensor) -> torch.Tensor:
    """Over the entries of a row, for every column of logits [nnz, heads]."""
    spread = w.rows[:, None].expand_as(logits)
    top = logits.new_full((w.nodes, logits.shape[1]), -torch.inf)
    top = top.scatter_reduce(0, spread, logits.detach(), "amax")
    weights = (logits - top[w.rows]).exp()
    return weights / weights.new_zeros(top.shape).index_add(0, w.rows, weights)[w.rows]


def gat(w: Workload, t: Tensors) -> Step:
    heads, width = t["attn_row"].shape

    def forward() -> torch.Tensor:
        h = (t["x"] @ t["weight"].T).view(-1, heads, width)
        logits = (h * t["attn_row"]).sum(dim=2)[w.rows] + (h * t["attn_col"]).sum(dim=2)[w.cols]
        weights = _softmax(w, F.leaky_relu(logits, SLOPE))
        # a head at a time: [nnz, width] is what memory bears
        parts = [h.new_zeros(w.nodes, width) for _ in range(heads)]
        for head in range(heads):
            messages = weights[:, head, None] * h[:, head][w.cols]
            parts[head] = parts[head].index_add(0, w.rows, messages)
        return torch.cat(parts, dim=1)

    return Step(forward, t)


def edge_conv(w: Workload, t: Tensors) -> Step:
    def forward() -> torch.Tensor:
        message = (t["x"] @ t["theta"].T)[w.cols]
        out = message.new_full((w.nodes, message.shape[1]), -torch.inf)
        out = out.scatter_reduce(0, w.rows[:, None].expand_as(message), message, "amax")
        some = (w.adjacency.indptr.diff() > 0)[:, None]
        return torch.where(some, out + t["x"] @ (t["phi"] - t["theta"]).T, 0)

    return Step(forward, t)


def gmm(w: Workload, t: Tensors) -> Step:
    def forward() -> torch.Tensor:
        out = t["x"].new_zeros(w.nodes, t["weight"].shape[1])
        for mu, inv_sigma, weight in zip(t["mu"], t["inv_sigma"], t["weight"]):
            gaussian = torch.exp(-0.5 * ((t["pseudo"] - mu) * inv_sigma).square().sum(dim=1))
            out = out.index_add(0, w.rows, gaussian[:, None] * (t["x"] @ weight.T)[w.cols])
        return out

    return Step(forward, t)


def rgcn(w: Workload, t: Tensors) -> Step:
    matrices = []
    for relation in range(RELATIONS):
        mine = (w.edge_types == relation).double()
        degrees = torch.bincount(w.rows, mine, minlength=w.nodes)
        matrices.append(adjacent(w, mine / degrees.clamp(min=1)[w.rows]))

    def forward() -> torch.Tensor:
        out = t["x"] @ t["root"].T
        for matrix, weight in zip(matrices, t["weights"]):
            out = out + product(matrix, t["x"] @ weight.T)
        return out

    return Step(forward, t)


def sddmm(w: Workload, t: Tensors) -> Step:
    scale = w.scale.double()
    return Step(lambda: (t["a"][w.rows] * t["b"][w.cols]).sum(dim=1) * scale[w.rows] * scale[w.cols], t)


def edge_softmax(w: Workload, t: Tensors) -> Step:
    return Step(lambda: _softmax(w, t["logits"]), t)


def segment_reduce(w: Workload, t: Tensors) -> Step:
    matrix = incidence(w.rows, torch.arange(len(w.rows), device=w.device), (w.nodes, len(w.rows)))
    return Step(lambda: product(matrix, t["x"]), t)


def gather_segment_reduce(w: Workload, t: Tensors) -> Step:
    matrix = incidence(w.rows, w.cols, (w.nodes, w.nodes))
    return Step(lambda: product(matrix, t["x"]), t)


def index_scatter(w: Workload, t: Tensors) -> Step:
    matrix = incidence(w.shuffled, torch.arange(len(w.shuffled), device=w.device), (w.nodes, len(w.shuffled)))
    return Step(lambda: product(matrix, t["src"]), t)


def lightgcn_step(w: Workload, t: Tensors) -> Step:
    """The loss of a step, without a gradient."""
    matrix, triples = normalised(w), w.triples(w.step_batch)

    def forward() -> torch.Tensor:
        total = layer = t["x"]
        for _ in range(3):
            layer = matrix.times(layer)
            total = total + layer
        return step_loss(total[triples] / 4, t["x"][triples])

    return Step(forward)


def ngcf_step(w: Workload, t: Tensors) -> Step:
    """The same for NGCF with both biases once, a block of nodes at a time."""
    matrix, triples = normalised(w), w.triples(w.step_batch)

    def forward() -> torch.Tensor:
        h, batch = t["x"], [t["x"][triples]]
        for number in range(layers_of(t)):
            w1, b1, w2, b2 = (t[f"{name}_{number}"] for name in ("w1", "b1", "w2", "b2"))
            out = torch.empty_like(h)
            for own, s, into in zip(*(each.split(BLOCK // 4) for each in (h, matrix.times(h), out))):
                pre = (own + s) @ w1.T + b1 + (own * s) @ w2.T + b2
                into.copy_(F.normalize(F.leaky_relu(pre, SLOPE)))
            h = out
            batch.append(h[triples])
        final = torch.cat(batch, dim=2)
        return step_loss(final, final)

    return Step(forward)


def step_loss(final: torch.Tensor, ego: torch.Tensor, reg: float = REG) -> torch.Tensor:
    """BPR of [3, batch, dim]: users, positives, negatives."""
    margin = (final[0] * (final[1] - final[2])).sum(dim=1)
    return (-F.logsigmoid(margin).sum() + reg / 2 * ego.square().sum()) / len(margin)


def bpr(w: Workload, t: Tensors) -> Step:
    user, positive, negative = w.triples(w.bpr_batch)

    def forward() -> torch.Tensor:
        final, ego = t["final"], t["ego"]
        margin = (final[user] * (final[positive] - final[negative])).sum(dim=1)
        norms = sum(ego[nodes].square().sum() for nodes in (user, positive, negative))
        return (-F.logsigmoid(margin).sum() + REG / 2 * norms) / len(user)

    return Step(forward, t)


def topk(w: Workload, t: Tensors) -> Step:
    """The best scores of every user, best first."""
    seen = w.seen

    def forward() -> torch.Tensor:
        best = []
        for start in range(0, len(t["users"]), 2048):
            scores = t["users"][start : start + 2048] @ t["items"].T
            pointers = seen.indptr[start : start + len(scores) + 1]
            rows = torch.repeat_interleave(torch.arange(len(scores), device=w.device), pointers.diff())
            scores[rows, seen.indices[pointers[0] : pointers[-1]].long()] = -torch.inf
            best.append(scores.topk(K).values)
        return torch.cat(best)

    return Step(forward)


def gemm(w: Workload, t: Tensors) -> Step:
    """The scores of the last block of users."""
    return Step(lambda: t["users"].split(SCORE_BLOCK)[-1] @ t["items"].T)


def scores_of(w: Workload, inputs: Tensors, result: Tensors) -> Tensors:
    """What lists of items are worth: their exact scores, best first; -inf for one that is masked or there twice."""
    users, items = inputs["users"].double(), inputs["items"].double()
    seen, chosen = w.seen, result["out"].long()
    scores = (users[:, None] * items[chosen]).sum(dim=2)
    each = torch.arange(len(users), device=w.device)
    masked = torch.repeat_interleave(each, seen.indptr.diff()) * len(items) + seen.indices
    ordered, order = chosen.sort(dim=1)
    twice = torch.zeros_like(chosen, dtype=torch.bool).scatter(1, order[:, 1:], ordered.diff(dim=1) == 0)
    wrong = torch.isin(each[:, None] * len(items) + chosen, masked) | twice
    return {"out": scores.masked_fill(wrong, -torch.inf)}
