"""An operator's forms with techniques left out: messages by edge whose sums are `segment_reduce`'s, the package's
operators one by one, and these with a backward pass that computes them again. The last one of each is the operator
itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import inputs
import layer_peers
import oracles
import torch
import torch.nn.functional as F
from contender import Build, Step
from operations import Check
from torch.utils.checkpoint import checkpoint
from workload import Tensors, Workload

from gnnrec import ops


@dataclass(frozen=True)
class Form:
    """Which techniques it has; recomputed is None where nothing would be kept."""

    build: Build
    reorganised: bool
    fused: bool
    recomputed: bool | None


@dataclass(frozen=True)
class Operator:
    """Its inputs, what results are compared with, and its forms."""

    inputs: Callable[[Workload], Tensors]
    check: Check
    forms: tuple[Form, ...]


def recomputed(build: Build) -> Build:
    """A form of which nothing is kept but its inputs."""

    def again(w: Workload, t: Tensors) -> Step:
        forward = build(w, t).forward
        return Step(lambda: checkpoint(lambda *_: forward(), *t.values(), use_reentrant=False), t)

    return again


def ngcf_by_edge(w: Workload, t: Tensors) -> Step:
    """Messages as the paper writes them: two linear layers for every edge."""
    w1, b1, w2, b2 = (t[f"{name}_0"] for name in ("w1", "b1", "w2", "b2"))

    def forward() -> torch.Tensor:
        source = t["x"][w.cols]
        messages = w.values[:, None] * (F.linear(source, w1, b1) + F.linear(source * t["x"][w.rows], w2, b2))
        both = F.linear(t["x"], w1, b1) + ops.segment_reduce(messages, w.adjacency.indptr)
        return F.normalize(F.leaky_relu(both, layer_peers.SLOPE))

    return Step(forward, t)


def ngcf_unfused(w: Workload, t: Tensors) -> Step:
    """One aggregation for both terms, weights on nodes."""
    w1, b1, w2, b2 = (t[f"{name}_0"] for name in ("w1", "b1", "w2", "b2"))
    degree = ops.spmm(w.adjacency, t["x"].new_ones(w.nodes, 1))

    def forward() -> torch.Tensor:
        s = ops.spmm(w.adjacency, t["x"])
        both = F.linear(t["x"] + s, w1) + F.linear(t["x"] * s, w2)
        return F.normalize(F.leaky_relu(both + b1 + degree * (b1 + b2), layer_peers.SLOPE))

    return Step(forward, t)


def ngcf_fused(*, keep_aggregate: bool) -> Build:
    """The operator; an implementation by messages adds biases once for every edge."""

    def build(w: Workload, t: Tensors) -> Step:
        weights = [t[f"{name}_0"] for name in ("w1", "b1", "w2", "b2")]
        options = {"negative_slope": layer_peers.SLOPE, "bias": "edge", "keep_aggregate": keep_aggregate}
        return Step(lambda: ops.ngcf_layer(w.adjacency, t["x"], *weights, **options), t)

    return build


def gat_by_edge(w: Workload, t: Tensors) -> Step:
    """Both ends of an edge are multiplied with the weight, and their scores and the message made of that."""
    heads, width = t["attn_row"].shape

    def forward() -> torch.Tensor:
        own, other = (F.linear(t["x"][ends], t["weight"]).view(-1, heads, width) for ends in (w.rows, w.cols))
        logits = F.leaky_relu((own * t["attn_row"]).sum(2) + (other * t["attn_col"]).sum(2), layer_peers.SLOPE)
        index = w.rows[:, None].expand_as(logits)
        most = logits.new_full((w.nodes, heads), -torch.inf).scatter_reduce(0, index, logits.detach(), "amax")
        weights = (logits - most[w.rows]).exp()
        weights = weights / ops.segment_reduce(weights, w.pattern.indptr)[w.rows]
        return ops.segment_reduce((weights[:, :, None] * other).flatten(1), w.pattern.indptr)

    return Step(forward, t)


def gat_unfused(w: Workload, t: Tensors) -> Step:
    """The weight and the scores' halves on nodes; logits, attention and its gradient are a number an edge and head."""
    heads, width = t["attn_row"].shape

    def forward() -> torch.Tensor:
        h = F.linear(t["x"], t["weight"]).view(-1, heads, width)
        logits = (h * t["attn_row"]).sum(2)[w.rows] + (h * t["attn_col"]).sum(2)[w.cols]
        weights = ops.edge_softmax(w.pattern, F.leaky_relu(logits, layer_peers.SLOPE))
        parts = [ops.spmm(w.pattern, h[:, head], weights[:, head]) for head in range(heads)]
        return torch.cat(parts, dim=1)

    return Step(forward, t)


def gat_fused(w: Workload, t: Tensors) -> Step:
    return Step(lambda: ops.gat_conv(w.pattern, **t, negative_slope=layer_peers.SLOPE), t)


def lightgcn_by_edge(w: Workload, t: Tensors) -> Step:
    """A scaled row for every edge."""

    def forward() -> torch.Tensor:
        layers = [t["x"]]
        for _ in range(inputs.LAYERS):
            messages = w.values[:, None] * layers[-1][w.cols]
            layers.append(ops.segment_reduce(messages, w.adjacency.indptr))
        return torch.stack(layers).mean(0)

    return Step(forward, t)


def lightgcn_unfused(w: Workload, t: Tensors) -> Step:
    """Scales of nodes; layers one by one, then their mean."""

    def forward() -> torch.Tensor:
        layers = [t["x"]]
        for _ in range(inputs.LAYERS):
            layers.append(ops.spmm(w.adjacency, layers[-1]))
        return torch.stack(layers).mean(0)

    return Step(forward, t)


def lightgcn_fused(w: Workload, t: Tensors) -> Step:
    return Step(lambda: ops.lightgcn_propagate(w.adjacency, t["x"], num_layers=inputs.LAYERS), t)


OPERATORS = {
    "ngcf_layer": Operator(
        inputs.ngcf_layer_inputs,
        Check(oracles.ngcf_layer, kinks=True),
        (
            Form(ngcf_by_edge, False, False, False),
            Form(recomputed(ngcf_by_edge), False, False, True),
            Form(ngcf_unfused, True, False, False),
            Form(recomputed(ngcf_unfused), True, False, True),
            Form(ngcf_fused(keep_aggregate=True), True, True, False),
            Form(ngcf_fused(keep_aggregate=False), True, True, True),
        ),
    ),
    "gat_conv": Operator(
        inputs.gat_inputs,
        Check(oracles.gat, kinks=True),
        (
            Form(gat_by_edge, False, False, False),
            Form(recomputed(gat_by_edge), False, False, True),
            Form(gat_unfused, True, False, False),
            Form(recomputed(gat_unfused), True, False, True),
            Form(gat_fused, True, True, True),
        ),
    ),
    "lightgcn_propagate": Operator(
        inputs.features,
        Check(oracles.lightgcn),
        (
            Form(lightgcn_by_edge, False, False, False),
            Form(recomputed(lightgcn_by_edge), False, False, True),
            Form(lightgcn_unfused, True, False, None),
            Form(lightgcn_fused, True, True, None),
        ),
    ),
}
