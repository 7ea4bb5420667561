"""Peers of whole layers and training steps: NGCF, GAT, EdgeConv, MoNet and R-GCN in DGL, torch_geometric and torch.

The inputs' weights are copied into the peers' modules, so that their results can be checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from contender import Missing, Step, require
from peers import REG, bpr, dgl_graph, edge_index, torch_coo, torch_csr
from workload import RELATIONS, Tensors, Workload

SLOPE = 0.2  # of LeakyReLU


def fill(parameter: torch.nn.Parameter, value: torch.Tensor) -> torch.nn.Parameter:
    """Copy a weight into a module's parameter."""
    with torch.no_grad():
        parameter.copy_(value)
    return parameter


def layers_of(t: Tensors) -> int:
    """Number of layers of an NGCF step's inputs."""
    return sum(name.startswith("w1") for name in t)


def ngcf_loss(w: Workload, outputs: list[torch.Tensor]) -> torch.Tensor:
    """BPR on the concatenated layers."""
    final = torch.cat(outputs, dim=1)
    return bpr(final, final, w.triples(w.step_batch), REG)


def dgl_ngcf(w: Workload, t: Tensors) -> Step:
    """A step as DGL's example takes it: a heterograph with self-loops, a message computed for every edge."""
    dgl, fn = require("dgl"), require("dgl.function")
    graph, users = w.graph, w.graph.num_users
    counts = {"user": graph.num_users, "item": graph.num_items}
    edges = graph.num_edges
    owner, item = w.rows[:edges], w.cols[:edges] - users
    everyone = {kind: torch.arange(count, device=w.device) for kind, count in counts.items()}
    relations = {("user", "bought", "item"): (owner, item), ("item", "bought_by", "user"): (item, owner)}
    loops = {(kind, f"{kind}_self", kind): (each, each) for kind, each in everyone.items()}
    hetero = dgl.heterograph(relations | loops, num_nodes_dict=counts)
    norm = w.values[:edges, None]  # the same for both directions

    def layer(h: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
        w1, b1, w2, b2 = (t[f"{name}_{number}"] for name in ("w1", "b1", "w2", "b2"))
        updates = {}
        for source, relation, target in hetero.canonical_etypes:
            if source == target:
                hetero.nodes[source].data[relation] = F.linear(h[source], w1, b1)
                updates[relation] = fn.copy_u(relation, "m"), fn.sum("m", "h")
                continue
            src, dst = hetero.edges(etype=relation)
            # the example gathers the source twice, for both terms
            message = norm * (F.linear(h[source][src], w1, b1) + F.linear(h[source][src] * h[target][dst], w2, b2))
            hetero.edges[relation].data["message"] = message
            updates[relation] = fn.copy_e("message", "m"), fn.sum("m", "h")
        hetero.multi_update_all(updates, "sum")
        return {kind: F.normalize(F.leaky_relu(hetero.nodes[kind].data.pop("h"), SLOPE)) for kind in counts}

    def forward() -> torch.Tensor:
        with hetero.local_scope():
            h = {"user": t["x"][:users], "item": t["x"][users:]}
            outputs = [t["x"]]
            for number in range(layers_of(t)):
                h = layer(h, number)
                outputs.append(torch.cat([h["user"], h["item"]]))
            return ngcf_loss(w, outputs)

    return Step(forward, t)


def torch_ngcf(w: Workload, t: Tensors) -> Step:
    """A step as RecBole takes it: a sparse COO product, both linear layers on nodes."""
    matrix = torch_coo(w)

    def forward() -> torch.Tensor:
        outputs = [t["x"]]
        for number in range(layers_of(t)):
            outputs.append(recbole_layer(matrix, outputs[-1], t, number))
        return ngcf_loss(w, outputs)

    return Step(forward, t)


def edge_ngcf_layer(w: Workload, t: Tensors) -> Step:
    """The first layer by messages, as the paper writes it: two linear layers for every edge."""
    layer = _edge_layer(w, t)
    return Step(lambda: layer(t["x"], 0), t)


def edge_ngcf(w: Workload, t: Tensors) -> Step:
    """A step with such layers."""
    layer = _edge_layer(w, t)

    def forward() -> torch.Tensor:
        outputs = [t["x"]]
        for number in range(layers_of(t)):
            outputs.append(layer(outputs[-1], number))
        return ngcf_loss(w, outputs)

    return Step(forward, t)


def _edge_layer(w: Workload, t: Tensors) -> Callable[[torch.Tensor, int], torch.Tensor]:
    norm = w.values[:, None]

    def layer(h: torch.Tensor, number: int) -> torch.Tensor:
        w1, b1, w2, b2 = (t[f"{name}_{number}"] for name in ("w1", "b1", "w2", "b2"))
        source = h[w.cols]
        message = norm * (F.linear(source, w1, b1) + F.linear(source * h[w.rows], w2, b2))
        return F.normalize(F.leaky_relu(F.linear(h, w1, b1).index_add(0, w.rows, message), SLOPE))

    return layer


def torch_ngcf_step(w: Workload, t: Tensors) -> Step:
    """The loss of a training step with layers as RecBole's, put together for the batch alone."""
    matrix, triples = torch_csr(w, torch.int32), w.triples(w.step_batch)
    places = torch.arange(triples.numel(), device=w.device).view_as(triples)

    def forward() -> torch.Tensor:
        outputs = [t["x"]]
        for number in range(layers_of(t)):
            outputs.append(recbole_layer(matrix, outputs[-1], t, number))
        final = torch.cat([F.embedding(triples.flatten(), output) for output in outputs], dim=1)
        return bpr(final, final, places, REG)

    return Step(forward, t)


def recbole_layer(matrix: torch.Tensor, h: torch.Tensor, t: Tensors, number: int) -> torch.Tensor:
    """Layer `number` of NGCF with a sparse product and two linear layers on nodes."""
    s = torch.sparse.mm(matrix, h)
    first = F.linear(h + s, t[f"w1_{number}"], t[f"b1_{number}"])
    second = F.linear(s * h, t[f"w2_{number}"], t[f"b2_{number}"])
    return F.normalize(F.leaky_relu(first + second, SLOPE))


def _heads(attention: torch.nn.Parameter) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda gradient: gradient.view(attention.shape[1:])


def dgl_gat(w: Workload, t: Tensors) -> Step:
    nn, graph = require("dgl.nn.pytorch"), dgl_graph(w)
    heads, width = t["attn_row"].shape
    conv = nn.GATConv(w.dim, width, heads, negative_slope=SLOPE, bias=False, allow_zero_in_degree=True).to(w.device)
    leaves = {
        "x": t["x"],
        "weight": fill(conv.fc.weight, t["weight"]),
        "attn_row": fill(conv.attn_r, t["attn_row"]),
        "attn_col": fill(conv.attn_l, t["attn_col"]),
    }
    layout = {"attn_row": _heads(conv.attn_r), "attn_col": _heads(conv.attn_l)}
    return Step(lambda: conv(graph, t["x"]).flatten(1), leaves, layout)


def pyg_gat(w: Workload, t: Tensors) -> Step:
    nn, index = require("torch_geometric.nn"), edge_index(w)
    heads, width = t["attn_row"].shape
    conv = nn.GATConv(w.dim, width, heads, negative_slope=SLOPE, add_self_loops=False, bias=False).to(w.device)
    leaves = {
        "x": t["x"],
        "weight": fill(conv.lin.weight, t["weight"]),
        "attn_row": fill(conv.att_dst, t["attn_row"]),
        "attn_col": fill(conv.att_src, t["attn_col"]),
    }
    layout = {"attn_row": _heads(conv.att_dst), "attn_col": _heads(conv.att_src)}
    return Step(lambda: conv(t["x"], index), leaves, layout)


def dgl_edge_conv(w: Workload, t: Tensors) -> Step:
    """DGL's difference is x_i - x_j, the paper's x_j - x_i: theta changes its sign."""
    nn, graph = require("dgl.nn.pytorch"), dgl_graph(w)
    conv = nn.EdgeConv(w.dim, w.dim, allow_zero_in_degree=True).to(w.device)
    theta, phi = fill(conv.theta.weight, -t["theta"]), fill(conv.phi.weight, t["phi"])
    for bias in (conv.theta.bias, conv.phi.bias):
        fill(bias, torch.zeros(w.dim)).requires_grad_(False)
    leaves = {"x": t["x"], "theta": theta, "phi": phi}
    return Step(lambda: conv(graph, t["x"]), leaves, {"theta": torch.neg})


def pyg_edge_conv(w: Workload, t: Tensors) -> Step:
    """EdgeConv, which is DynamicEdgeConv's message step on a graph that is there already."""
    nn, index = require("torch_geometric.nn"), edge_index(w)

    def message(pairs: torch.Tensor) -> torch.Tensor:
        return F.linear(pairs, torch.cat([t["phi"], t["theta"]], dim=1))

    conv = nn.EdgeConv(message, aggr="max")
    return Step(lambda: conv(t["x"], index), t)


def dgl_gmm(w: Workload, t: Tensors) -> Step:
    nn, graph = require("dgl.nn.pytorch"), dgl_graph(w)
    kernels, out, into = t["weight"].shape
    sizes = into, out, t["mu"].shape[1], kernels
    conv = nn.GMMConv(*sizes, "sum", bias=False, allow_zero_in_degree=True).to(w.device)
    leaves = {
        "x": t["x"],
        "pseudo": t["pseudo"],
        "mu": fill(conv.mu, t["mu"]),
        "inv_sigma": fill(conv.inv_sigma, t["inv_sigma"]),
        "weight": fill(conv.fc.weight, t["weight"].flatten(0, 1)),
    }
    return Step(lambda: conv(graph, t["x"], t["pseudo"]), leaves, {"weight": lambda g: g.view(kernels, out, into)})


def pyg_gmm(w: Workload, t: Tensors) -> Step:
    nn, index = require("torch_geometric.nn"), edge_index(w)
    kernels, out, into = t["weight"].shape
    sizes = into, out, t["mu"].shape[1], kernels
    conv = nn.GMMConv(*sizes, aggr="add", root_weight=False, bias=False).to(w.device)
    conv.root = None  # the layer asks for it without the option, too
    sigma = fill(conv.sigma, 1 / t["inv_sigma"])
    leaves = {
        "x": t["x"],
        "pseudo": t["pseudo"],
        "mu": fill(conv.mu, t["mu"]),
        "inv_sigma": sigma,
        "weight": fill(conv.g, t["weight"].flatten(0, 1).T),
    }
    layout = {
        "inv_sigma": lambda gradient: -gradient * sigma.detach() ** 2,
        "weight": lambda gradient: gradient.T.view(kernels, out, into),
    }
    return Step(lambda: conv(t["x"], index, t["pseudo"]), leaves, layout)


def _transposed(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.transpose(-1, -2)


def dgl_rgcn(w: Workload, t: Tensors) -> Step:
    """Edges sorted by relation, which spares DGL a sort in every call."""
    dgl, nn = require("dgl"), require("dgl.nn.pytorch")
    order = torch.sort(w.edge_types, stable=True).indices
    graph, types = dgl.graph((w.cols[order], w.rows[order]), num_nodes=w.nodes), w.edge_types[order]
    degrees = torch.bincount(w.rows * RELATIONS + w.edge_types, minlength=w.nodes * RELATIONS)
    norm = 1 / degrees[w.rows[order] * RELATIONS + types].float()[:, None]
    conv = nn.RelGraphConv(w.dim, w.dim, RELATIONS, bias=False).to(w.device)
    leaves = {
        "x": t["x"],
        "weights": fill(conv.linear_r.W, _transposed(t["weights"])),
        "root": fill(conv.loop_weight, t["root"].T),
    }
    layout = {"weights": _transposed, "root": _transposed}
    return Step(lambda: conv(graph, t["x"], types, norm, presorted=True), leaves, layout)


def pyg_rgcn(w: Workload, t: Tensors) -> Step:
    return _pyg_rgcn("RGCNConv", w, t)


def pyg_fast_rgcn(w: Workload, t: Tensors) -> Step:
    """It makes a weight matrix for every edge."""
    needed = 2 * 4 * w.adjacency.nnz * w.dim**2 if t["x"].requires_grad else 4 * w.adjacency.nnz * w.dim**2
    free = psutil.virtual_memory().available
    if needed > free:
        raise Missing(f"it needs {needed / 2**30:.0f} GiB for a matrix per edge, {free / 2**30:.0f} are free")
    return _pyg_rgcn("FastRGCNConv", w, t)


def _pyg_rgcn(name: str, w: Workload, t: Tensors) -> Step:
    nn, index = require("torch_geometric.nn"), edge_index(w)
    conv: Any = getattr(nn, name)(w.dim, w.dim, RELATIONS, aggr="mean", bias=False).to(w.device)
    leaves = {
        "x": t["x"],
        "weights": fill(conv.weight, _transposed(t["weights"])),
        "root": fill(conv.root, t["root"].T),
    }
    layout = {"weights": _transposed, "root": _transposed}
    return Step(lambda: conv(t["x"], index, w.edge_types), leaves, layout)
