"""Our side of the table: the operators by name, their options, and the calls that are more than one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from contender import Build, Missing, Step
from inputs import LAYERS
from layer_peers import SLOPE
from peers import REG, K
from workload import Tensors, Workload

from gnnrec import ops


def operator(name: str) -> Callable[..., Any]:
    """A public operator. Raises Missing where this version has none of that name."""
    function: Callable[..., Any] | None = getattr(ops, name, None)
    if function is None:
        raise Missing("not in this version")
    return function


def our_spmm(w: Workload, t: Tensors) -> Step:
    return Step(lambda: ops.spmm(w.adjacency, t["x"]), t)


def our_spmm_on_one_thread(w: Workload, t: Tensors) -> Step:
    def forward() -> torch.Tensor:
        ops.set_num_threads(1)
        try:
            return ops.spmm(w.adjacency, t["x"])
        finally:
            ops.set_num_threads(w.threads)

    return Step(forward, t)


def our_bfloat16_spmm(w: Workload, t: Tensors) -> Step:
    if torch.bfloat16 not in next(record for record in ops.OPS if record.name == "spmm").dtypes:
        raise Missing("no bfloat16 in this version")
    x = t["x"].bfloat16()
    return Step(lambda: ops.spmm(w.adjacency, x))


def our_topk(w: Workload, t: Tensors) -> Step:
    seen = w.seen
    return Step(lambda: ops.topk_scores(t["users"], t["items"], k=K, seen=seen)[0])


def our_ngcf(bias: str, keep_aggregate: bool = False) -> Build:
    """A step with the package's layer and loss."""

    def build(w: Workload, t: Tensors) -> Step:
        layer, triples = operator("ngcf_layer"), w.triples(w.step_batch)
        options: dict[str, Any] = {"negative_slope": SLOPE, "bias": bias, "keep_aggregate": keep_aggregate}

        def forward() -> torch.Tensor:
            outputs = [t["x"]]
            for number in range(LAYERS):
                weights = (t[f"{name}_{number}"] for name in ("w1", "b1", "w2", "b2"))
                outputs.append(layer(w.adjacency, outputs[-1], *weights, **options))
            final = torch.cat(outputs, dim=1)
            return ops.bpr_loss(final, final, triples, REG)

        return Step(forward, t)

    return build


def our_ngcf_layer(w: Workload, t: Tensors) -> Step:
    weights = [t[f"{name}_0"] for name in ("w1", "b1", "w2", "b2")]
    options: dict[str, Any] = {"negative_slope": SLOPE, "bias": "edge"}
    return Step(lambda: ops.ngcf_layer(w.adjacency, t["x"], *weights, **options), t)


def our_lightgcn_step(w: Workload, t: Tensors) -> Step:
    """The loss of a training step."""
    triples = w.triples(w.step_batch)

    def forward() -> torch.Tensor:
        final = ops.lightgcn_propagate(w.adjacency, t["x"], num_layers=LAYERS)
        return ops.bpr_loss(final, t["x"], triples, REG)

    return Step(forward, t)


def our_ngcf_step(w: Workload, t: Tensors) -> Step:
    """The same for NGCF; layers are put together for the batch alone."""
    triples = w.triples(w.step_batch)
    places = torch.arange(triples.numel(), device=w.device).view_as(triples)

    def forward() -> torch.Tensor:
        outputs = [t["x"]]
        for number in range(LAYERS):
            weights = (t[f"{name}_{number}"] for name in ("w1", "b1", "w2", "b2"))
            outputs.append(ops.ngcf_layer(w.adjacency, outputs[-1], *weights, negative_slope=SLOPE))
        final = torch.cat([F.embedding(triples.flatten(), output) for output in outputs], dim=1)
        return ops.bpr_loss(final, final, places, REG)

    return Step(forward, t)


def on_pattern(**options: Any) -> Callable[[Workload], dict[str, Any]]:
    return lambda w: {"matrix": w.pattern, **options}


def on_adjacency(**options: Any) -> Callable[[Workload], dict[str, Any]]:
    return lambda w: {"matrix": w.adjacency, **options}
