"""Our side of the table: the operators by name, their options, and the calls that are more than one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
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
    seen = w.graph.user_item()
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


def on_pattern(**options: Any) -> Callable[[Workload], dict[str, Any]]:
    return lambda w: {"matrix": w.pattern, **options}


def on_adjacency(**options: Any) -> Callable[[Workload], dict[str, Any]]:
    return lambda w: {"matrix": w.adjacency, **options}
