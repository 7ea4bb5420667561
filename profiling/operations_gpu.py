"""The table of a GPU: that of a CPU without what only processors run, with a GPU's peers and targets; and training
steps, also on a graph that is far larger than an L2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import inputs
import layer_peers
import operations
import oracles
import our_calls
import peers
from operations import BEST, COPY, FORWARD, STEP, TRAINING, Check, Operation, Peer, Target

HALF = "spmm, bfloat16, 4.8 M edges"  # on the large graph here
CPU_OPERATIONS = (HALF, "spmm, all threads")
CPU_PEERS = (
    "C++ limit",
    "scipy CSR",
    "faiss IndexFlatIP, filtered",
    "PyG FastRGCNConv",  # a matrix for every edge
    "ours, one spmm forward",
)
PEERS: Mapping[str, tuple[Peer, ...]] = {
    "spmm": (Peer("torch CSR, int32", peers.one_product(peers.int32_csr_product)),),
    "lightgcn_propagate": (Peer("torch CSR, int32 x 3", peers.three_products(peers.int32_csr_product)),),
    "NGCF step, bias per edge": (Peer("edge-wise", layer_peers.edge_ngcf),),
}
TARGETS: Mapping[str, Mapping[str, tuple[Target, ...]]] = {
    "spmm": {FORWARD: (Target("torch CSR", 2),), TRAINING: (Target("torch CSR", 3),)},
    "gat_conv": {TRAINING: (Target(BEST, 2.7), Target(BEST, 7.7, "bytes"))},
}
CAPTURED = "ours, captured"
LIMIT = 2e-3  # seconds
LARGE_PEERS = "ours", "torch CSR,"


def on_gpu(operation: Operation) -> Operation:
    """A CPU's row of the table as a GPU has it."""
    kept = tuple(peer for peer in operation.peers if peer.name not in CPU_PEERS)
    extra = PEERS.get(operation.name, ())
    return replace(operation, peers=(*kept, *extra), targets=TARGETS.get(operation.name, {}))


NGCF_LAYER = Operation(
    "ngcf_layer",
    "ngcf_layer",
    inputs.ngcf_layer_inputs,
    Check(oracles.ngcf_layer, kinks=True),
    (Peer("edge-wise", layer_peers.edge_ngcf_layer),),
    {TRAINING: (Target("edge-wise", 4), Target("edge-wise", 8, "bytes"))},
    ours=our_calls.our_ngcf_layer,
)
LIGHTGCN_STEP = Operation(
    "LightGCN",
    "lightgcn_propagate",
    inputs.embeddings,
    Check(oracles.lightgcn_step),
    (
        Peer("torch CSR", peers.lightgcn_step(peers.csr_product)),
        Peer("torch CSR, int32", peers.lightgcn_step(peers.int32_csr_product)),
        Peer("PyG LGConv", peers.lightgcn_step(peers.pyg_gather_scatter_product)),
        Peer(CAPTURED, our_calls.our_lightgcn_step, captured=True),
    ),
    {STEP: (Target("ours", LIMIT, "limit"), Target(CAPTURED, LIMIT, "limit"))},
    ours=our_calls.our_lightgcn_step,
    modes=(STEP,),
)
NGCF_STEP = Operation(
    "NGCF",
    "ngcf_layer",
    inputs.ngcf_inputs,
    Check(oracles.ngcf_step, tolerance=1e-3),
    (
        Peer("torch CSR, as RecBole", layer_peers.torch_ngcf_step),
        Peer(CAPTURED, our_calls.our_ngcf_step, captured=True),
    ),
    ours=our_calls.our_ngcf_step,
    modes=(STEP,),
)


def large(operation: Operation) -> Operation:
    """The same on the large graph, with ours and cuSPARSE at its best; the memory holds one contender at a time."""
    kept = tuple(peer for peer in operation.peers if peer.name.startswith(LARGE_PEERS))
    targets = {FORWARD: (Target(COPY, 0.7, "bandwidth"),)} if operation.name == "spmm" else {}
    name = f"{operation.name}, large graph"
    return replace(operation, name=name, peers=kept, targets=targets, large=True, together=False)


USUAL = {each.name: on_gpu(each) for each in operations.OPERATIONS}
OPERATIONS = (
    *(each for name, each in USUAL.items() if name not in CPU_OPERATIONS),
    NGCF_LAYER,
    LIGHTGCN_STEP,
    NGCF_STEP,
    *map(large, (USUAL["spmm"], replace(USUAL[HALF], name="spmm, bfloat16", wide=False), LIGHTGCN_STEP, NGCF_STEP)),
)
