"""The table: each operator with our call, the peers' calls, the oracle and the targets. A GPU's: operations_gpu.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import inputs
import layer_peers
import oracles
import our_calls
import peers
from contender import Build, Step
from workload import Tensors, Workload

from gnnrec import ops
from gnnrec.ops._operator import Case

FORWARD, TRAINING = "forward", "forward + backward"
STEP = "training step"  # whose oracle gives the loss
BEST = "best peer"  # of those that compute the same, in the target's own measure
COPY = "copy bandwidth"


@dataclass(frozen=True)
class Target:
    """peer / ours is to be at least `least`; below 1 it bounds ours from above by 1 / least peers.

    Args:
        peer: a contender, the best of several where their names go on after it with a comma, or BEST.
        least: the ratio.
        of: "seconds"; "bytes": peak memory; "bandwidth": ours is to have at least that share of the copy bandwidth;
            "limit": the peer, which may be ours, is to take less than `least` seconds.
    """

    peer: str
    least: float
    of: str = "seconds"

    def __str__(self) -> str:
        if self.of == "limit":
            return f"time of {self.peer} < {1e3 * self.least:.3g} ms"
        if self.of == "bandwidth":
            return f"at least {self.least:.0%} of the {self.peer}"
        what = {"seconds": "time", "bytes": "peak memory"}[self.of]
        if self.least < 1:
            return f"{what}: ours <= {1 / self.least:.3g} x {self.peer}"
        return f"{what}: {self.peer} >= {self.least:.3g} x ours"


Read = Callable[[Workload, Tensors, Tensors], Tensors]


def as_it_is(w: Workload, given: Tensors, result: Tensors) -> Tensors:
    return result


@dataclass(frozen=True)
class Check:
    """What a result is compared with, and how it is read for that: read(workload, given, result)."""

    oracle: Build
    read: Read = as_it_is
    tolerance: float = 1e-4  # of float32 sums over thousands of terms; a lost or doubled edge shows as 1e-3 or more
    kinks: bool = False  # gradients are compared in norm


@dataclass(frozen=True)
class Peer:
    """A contender beside ours.

    Args:
        name: as the table and the targets call it.
        build: makes it.
        check: its own where it computes something else, which then only stands beside ours for a target.
        differentiable: whether it has a backward pass.
        captured: whether its training step is replayed as a CUDA graph.
    """

    name: str
    build: Build
    check: Check | None = None
    differentiable: bool = True
    captured: bool = False


@dataclass(frozen=True)
class Operation:
    """A row of the table.

    Args:
        name: of the row.
        op: in gnnrec.ops.
        inputs: dense arguments, float32; gradients are taken of all of them.
        check: for ours and the peers.
        peers: in the order in which they take their turn after ours.
        targets: for forward and for forward + backward.
        options: the operator's other arguments.
        ours: builds our call where it is more than one call of the operator with inputs and options.
        modes: what is measured.
        wide, large: whether the graph is one of the synthetic ones.
        together: whether contenders take turns; else one after the other is built, measured and forgotten.
        itemsize: bytes of a number as ours stores it.
    """

    name: str
    op: str
    inputs: Callable[[Workload], Tensors]
    check: Check
    peers: tuple[Peer, ...]
    targets: Mapping[str, tuple[Target, ...]] = field(default_factory=dict)
    options: Callable[[Workload], dict[str, Any]] = lambda w: {}
    ours: Build | None = None
    modes: tuple[str, ...] = (FORWARD, TRAINING)
    wide: bool = False
    large: bool = False
    together: bool = True
    itemsize: int = 4

    def build_ours(self, w: Workload, t: Tensors) -> Step:
        """Our contender. Raises Missing where this version does not have it."""
        function = our_calls.operator(self.op)
        if self.ours is not None:
            return self.ours(w, t)
        options = self.options(w)
        return Step(lambda: function(**options, **t), t)

    def bytes_moved(self, w: Workload, tensors: Tensors) -> int | None:
        """What a forward call of ours moves by the operator's own count; None for what is not one call."""
        record = next((record for record in ops.OPS if record.name == self.op), None)
        options = self.options(w)
        if record is None or not options:
            return None
        shapes = {name: tuple(x.shape) for name, x in tensors.items()}
        return int(record.bytes_moved(Case(self.name, shapes, options), self.itemsize))


SPMM = Check(oracles.spmm)
NGCF = Check(oracles.ngcf_once, kinks=True)
LAYER_TARGETS = {TRAINING: (Target(BEST, 3), Target(BEST, 5, "bytes"))}
SEGMENT_TARGETS = (Target("torch.segment_reduce", 3), Target("torch index_add", 3))

OPERATIONS = (
    Operation(
        "spmm",
        "spmm",
        inputs.features,
        SPMM,
        (
            Peer("C++ limit", peers.cpp_limit, differentiable=False),
            Peer("torch CSR", peers.one_product(peers.csr_product)),
            Peer("torch COO", peers.one_product(peers.coo_product)),
            Peer("DGL copy_u_sum, weights folded", peers.one_product(peers.dgl_folded_product)),
            Peer("DGL u_mul_e_sum", peers.one_product(peers.dgl_weighted_product)),
            Peer("PyG EdgeIndex", peers.one_product(peers.pyg_edge_index_product)),
            Peer("PyG LGConv, edge_index", peers.one_product(peers.pyg_gather_scatter_product)),
            Peer("scipy CSR", peers.scipy_csr, differentiable=False),
        ),
        {
            FORWARD: (
                Target("C++ limit", 1 / 1.15),
                Target("torch CSR", 3),
                Target("DGL copy_u_sum, weights folded", 1.6),
                Target("scipy CSR", 4.5),
                Target("PyG LGConv, edge_index", 50),
            ),
            TRAINING: (
                Target("torch CSR", 10),
                Target("DGL copy_u_sum, weights folded", 1.8),
                Target("PyG EdgeIndex", 6),
            ),
        },
        options=our_calls.on_adjacency(),
    ),
    Operation(
        "spmm, bfloat16, 4.8 M edges",
        "spmm",
        inputs.bfloat16_features,
        Check(oracles.spmm, tolerance=2e-2),  # the result is rounded to 8 bits
        (Peer("ours, float32", our_calls.our_spmm, SPMM),),
        {FORWARD: (Target("ours, float32", 1.7),)},
        options=our_calls.on_adjacency(),
        ours=our_calls.our_bfloat16_spmm,
        modes=(FORWARD,),
        wide=True,
        itemsize=2,
    ),
    Operation(
        "spmm, all threads",
        "spmm",
        inputs.features,
        SPMM,
        (Peer("ours, 1 thread", our_calls.our_spmm_on_one_thread),),
        {FORWARD: (Target("ours, 1 thread", 1.8),)},
        options=our_calls.on_adjacency(),
        modes=(FORWARD,),
    ),
    Operation(
        "lightgcn_propagate",
        "lightgcn_propagate",
        inputs.features,
        Check(oracles.lightgcn),
        (
            Peer("ours, one spmm forward", our_calls.our_spmm, SPMM, differentiable=False),
            Peer("torch CSR x 3", peers.three_products(peers.csr_product)),
            Peer("DGL copy_u_sum x 3", peers.three_products(peers.dgl_folded_product)),
            Peer("PyG LGConv x 3", peers.three_products(peers.pyg_gather_scatter_product)),
        ),
        {TRAINING: (Target("ours, one spmm forward", 1 / 6.3),)},
        options=our_calls.on_adjacency(num_layers=inputs.LAYERS),
    ),
    Operation(
        "NGCF step, bias per edge",
        "ngcf_layer",
        inputs.ngcf_inputs,
        Check(oracles.ngcf_per_edge, kinks=True),
        (Peer("DGL example", layer_peers.dgl_ngcf),),
        {TRAINING: (Target("DGL example", 60), Target("DGL example", 12, "bytes"))},
        ours=our_calls.our_ngcf("edge"),
        modes=(TRAINING,),
    ),
    Operation(
        "NGCF step, bias once",
        "ngcf_layer",
        inputs.ngcf_inputs,
        NGCF,
        (
            Peer("torch, as RecBole", layer_peers.torch_ngcf),
            Peer("ours, aggregates kept", our_calls.our_ngcf("once", keep_aggregate=True), NGCF),
        ),
        {TRAINING: (Target("torch, as RecBole", 8),)},
        ours=our_calls.our_ngcf("once"),
        modes=(TRAINING,),
    ),
    Operation(
        "gat_conv",
        "gat_conv",
        inputs.gat_inputs,
        Check(oracles.gat, kinks=True),
        (Peer("DGL GATConv", layer_peers.dgl_gat), Peer("PyG GATConv", layer_peers.pyg_gat)),
        LAYER_TARGETS,
        options=our_calls.on_pattern(negative_slope=layer_peers.SLOPE),
    ),
    Operation(
        "edge_conv",
        "edge_conv",
        inputs.edge_conv_inputs,
        Check(oracles.edge_conv, kinks=True),
        (Peer("DGL EdgeConv", layer_peers.dgl_edge_conv), Peer("PyG EdgeConv", layer_peers.pyg_edge_conv)),
        LAYER_TARGETS,
        options=our_calls.on_pattern(reduce="max"),
    ),
    Operation(
        "gmm_conv",
        "gmm_conv",
        inputs.gmm_inputs,
        Check(oracles.gmm),
        (Peer("DGL GMMConv", layer_peers.dgl_gmm), Peer("PyG GMMConv", layer_peers.pyg_gmm)),
        LAYER_TARGETS,
        options=our_calls.on_pattern(reduce="sum"),
    ),
    Operation(
        "rgcn_conv",
        "rgcn_conv",
        inputs.rgcn_inputs,
        Check(oracles.rgcn),
        (
            Peer("DGL RelGraphConv", layer_peers.dgl_rgcn),
            Peer("PyG RGCNConv", layer_peers.pyg_rgcn),
            Peer("PyG FastRGCNConv", layer_peers.pyg_fast_rgcn),
        ),
        LAYER_TARGETS,
        options=lambda w: {"matrices": w.relations, "reduce": "mean"},
    ),
    Operation(
        "sddmm",
        "sddmm",
        inputs.two_features("a", "b"),
        Check(oracles.sddmm),
        (Peer("torch gather, multiply, sum", peers.torch_sddmm), Peer("DGL u_dot_v", peers.dgl_sddmm)),
        options=our_calls.on_adjacency(op="dot"),
    ),
    Operation(
        "edge_softmax",
        "edge_softmax",
        lambda w: {"logits": w.normal(0, w.adjacency.nnz, inputs.HEADS)},
        Check(oracles.edge_softmax),
        (Peer("DGL edge_softmax", peers.dgl_edge_softmax), Peer("PyG softmax", peers.pyg_softmax)),
        options=our_calls.on_pattern(),
    ),
    Operation(
        "segment_reduce",
        "segment_reduce",
        inputs.edge_rows("x"),
        Check(oracles.segment_reduce),
        (
            Peer("torch.segment_reduce", peers.torch_segment_reduce),
            Peer("torch index_add", peers.torch_index_add),
            Peer("PyG segment", peers.pyg_segment),
            Peer("PyG scatter", peers.pyg_scatter),
            Peer("DGL segment_reduce", peers.dgl_segment_reduce),
        ),
        {FORWARD: SEGMENT_TARGETS, TRAINING: SEGMENT_TARGETS},
        options=lambda w: {"indptr": w.adjacency.indptr},
    ),
    Operation(
        "gather_segment_reduce",
        "gather_segment_reduce",
        inputs.features,
        Check(oracles.gather_segment_reduce),
        (
            Peer("torch embedding_bag", peers.torch_embedding_bag),
            Peer("torch gather, index_add", peers.torch_gather_index_add),
            Peer("DGL copy_u_sum", peers.dgl_copy_u_sum),
        ),
        options=lambda w: {"indices": w.adjacency.indices, "indptr": w.adjacency.indptr},
    ),
    Operation(
        "index_scatter",
        "index_scatter",
        inputs.edge_rows("src"),
        Check(oracles.index_scatter),
        (
            Peer("torch index_add", peers.unsorted_index_add),
            Peer("torch scatter_add", peers.unsorted_scatter_add),
            Peer("PyG scatter", peers.unsorted_pyg_scatter),
        ),
        options=lambda w: {"index": w.shuffled, "size": w.nodes},
    ),
    Operation(
        "bpr_loss",
        "bpr_loss",
        inputs.two_features("final", "ego"),
        Check(oracles.bpr, kinks=True),
        (Peer("torch operators", peers.torch_bpr),),
        {TRAINING: (Target("torch operators", 4),)},
        options=lambda w: {"triples": w.triples(w.bpr_batch), "reg": peers.REG},
        modes=(TRAINING,),
    ),
    Operation(
        "topk_scores",
        "topk_scores",
        inputs.users_and_items,
        Check(oracles.topk, oracles.scores_of),
        (
            Peer("torch matmul, mask, topk", peers.torch_topk),
            Peer("faiss IndexFlatIP, filtered", peers.faiss_topk),
            Peer("torch matmul alone", peers.torch_gemm, Check(oracles.gemm)),
        ),
        {FORWARD: (Target("torch matmul, mask, topk", 2), Target("faiss IndexFlatIP, filtered", 1.2))},
        ours=our_calls.our_topk,
        modes=(FORWARD,),
    ),
)
