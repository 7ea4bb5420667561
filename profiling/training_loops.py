"""Training loops: ours and those of the public codes, from one start, on the same batches.

Ours draws its batches within the step. The others are given theirs, drawn beforehand by our sampler and numbered as
they number users and items: what their samplers take is not counted. Their optimiser is torch.optim.Adam as those codes
make it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracles
import scipy.sparse
import torch
import torch.nn.functional as F
from contender import Missing, Step, require
from layer_peers import fill, layers_of, recbole_layer
from peers import Product, bpr, three_products, torch_coo, torch_csr
from torch import nn
from workload import Tensors, Workload

from gnnrec import models, ops
from gnnrec.config import SoftmaxConfig, TrainConfig
from gnnrec.training.scaling import scaled
from gnnrec.training.trainer import Trainer

Parameters = Mapping[str, Sequence[torch.Tensor]]
Loss = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Loop:
    """A training loop that is ready for its next step.

    Args:
        step: takes the next step and gives its loss.
        parameters: by the names that the start has; where the loop keeps users and items apart, both.
        lr: of its Adam; None where parameters stay as they are.
    """

    step: Callable[[], torch.Tensor]
    parameters: Parameters
    lr: float | None = None


class Setting:
    """What the loops of a contest share.

    Args:
        w: the graph.
        config: the recipe.

    Attributes:
        trainer: ours, before its first step.
        start: its parameters: x are the embeddings, w1_0 a weight of NGCF's first layer.
        batches: of an epoch but for the last, which may be smaller; every loop goes through them again and again.
        loss: the recipe's, nothing of it open.
        lr, reg, layers: of the recipe.
    """

    def __init__(self, w: Workload, config: TrainConfig) -> None:
        assert config.trainer is not None
        assert config.loss is not None
        assert config.optimizer is not None
        model = models.build(config.model, w.graph, config.seed)
        assert not isinstance(model, models.GFCF)
        self.w, self.config, self.lr = w, config, config.optimizer.lr
        self.trainer = Trainer(model, config.trainer, config.loss, config.optimizer, seed=config.seed)
        self.leaves = {
            "x" if name == "embedding" else name.replace(".", "_"): leaf for name, leaf in model.named_parameters()
        }
        self.start: Tensors = {name: leaf.detach().clone() for name, leaf in self.leaves.items()}
        self.batches = [self.trainer.sampler.batch(step) for step in range(self.steps)]
        _, self.loss = scaled(config.trainer, config.loss, w.graph)
        self.reg = getattr(config.loss, "reg", 0.0)
        self.layers: int = config.model.layers  # type: ignore[union-attr]

    @property
    def steps(self) -> int:
        """Steps before the batches come again."""
        return max(1, self.trainer.sampler.steps_per_epoch - 1)

    def triples(self) -> list[torch.Tensor]:
        """The batches as node numbers."""
        return [triples for (triples,) in self.batches]

    def users_and_items(self) -> list[torch.Tensor]:
        """The batches with items numbered from 0."""
        first = torch.tensor([[0], [self.w.graph.num_users], [self.w.graph.num_users]])
        return [triples - first for triples in self.triples()]

    def parts(self) -> list[torch.Tensor]:
        """The start of users and of items."""
        users, items = self.start["x"].split([self.w.graph.num_users, self.w.graph.num_items])
        return [users.clone(), items.clone()]


def adam(loss: Loss, batches: Sequence[torch.Tensor], parameters: Parameters, lr: float) -> Loop:
    """The usual loop: loss, gradients, Adam."""
    optimizer = torch.optim.Adam([part for parts in parameters.values() for part in parts], lr=lr)
    turn = itertools.cycle(batches)

    def step() -> torch.Tensor:
        value = loss(next(turn))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return value.detach()

    return Loop(step, parameters, lr)


def ours(s: Setting) -> Loop:
    """gnnrec's trainer and its sampler."""
    turn = itertools.cycle(range(s.steps))
    compute, sampler = s.trainer.learner.compute, s.trainer.sampler
    return Loop(lambda: compute(*sampler.batch(next(turn))), {name: [leaf] for name, leaf in s.leaves.items()}, s.lr)


def our_propagation(s: Setting) -> Loop:
    """What a step of LightGCN cannot do without: propagation and its backward pass."""
    adjacency, x = s.w.adjacency, s.start["x"].clone().requires_grad_()
    upstream = s.w.normal(9, *x.shape)  # as runner.upstream_of draws it

    def step() -> torch.Tensor:
        x.grad = None
        final = ops.lightgcn_propagate(adjacency, x, num_layers=s.layers)
        final.backward(upstream)
        return final.detach()

    return Loop(step, {"x": [x]})


# LightGCN.


def public_pytorch(s: Setting) -> Loop:
    """The model and loop of the authors' PyTorch code: all layers are kept and stacked, users and items have tables of
    their own."""
    users, items = (nn.Embedding.from_pretrained(part, freeze=False) for part in s.parts())
    sizes, matrix = [users.num_embeddings, items.num_embeddings], torch_coo(s.w)

    def loss(batch: torch.Tensor) -> torch.Tensor:
        layers = [torch.cat([users.weight, items.weight])]
        for _ in range(s.layers):
            layers.append(torch.sparse.mm(matrix, layers[-1]))
        final_users, final_items = torch.stack(layers, dim=1).mean(dim=1).split(sizes)
        user, positive, negative = batch
        chosen = final_users[user]
        scores = [(chosen * final_items[item]).sum(dim=1) for item in (positive, negative)]
        ego = users(user), items(positive), items(negative)
        norms = sum(rows.norm(2).pow(2) for rows in ego) / len(user) / 2
        return F.softplus(scores[1] - scores[0]).mean() + s.reg * norms

    return adam(loss, s.users_and_items(), {"x": [users.weight, items.weight]}, s.lr)


def pyg_csr(s: Setting) -> Loop:
    """torch_geometric's model on a normalised torch CSR matrix. Its example gives every node of a batch once to the
    regulariser; here as often as it is there, as the others count it."""
    pyg = require("torch_geometric.nn.models")
    model = pyg.LightGCN(s.w.nodes, s.w.dim, s.layers, normalize=False)
    matrix = torch_csr(s.w)

    def loss(triples: torch.Tensor) -> torch.Tensor:
        user, positive, negative = triples
        pairs = torch.stack([torch.cat([user, user]), torch.cat([positive, negative])])
        ranks = model(matrix, pairs).chunk(2)
        value: torch.Tensor = model.recommendation_loss(*ranks, node_id=triples.flatten(), lambda_reg=s.reg / 2)
        return value

    return adam(loss, s.triples(), {"x": [fill(model.embedding.weight, s.start["x"])]}, s.lr)


def recbole(s: Setting) -> Loop:
    """RecBole's model, squares in the regulariser as in the public code. It is given the normalised matrix, which its
    own way to make one needs an older scipy for, as the coordinates that it would be: not marked as coalesced."""
    package = require("recbole.model.general_recommender.lightgcn")
    graph = s.w.graph
    coordinates = torch.stack([s.w.rows, s.w.cols]), s.w.values, s.w.adjacency.shape

    class Data:
        """What the model asks of a data set."""

        def num(self, field: str) -> int:
            return graph.num_users if field == "user" else graph.num_items

        def inter_matrix(self, form: str) -> Any:
            return scipy.sparse.coo_array((graph.num_users, graph.num_items), dtype=np.float32)

    class Model(package.LightGCN):  # type: ignore[misc, name-defined]
        def get_norm_adj_mat(self) -> torch.Tensor:
            return torch.sparse_coo_tensor(*coordinates)

    settings = {"embedding_size": s.w.dim, "n_layers": s.layers, "reg_weight": s.reg, "require_pow": True}
    fields = {"USER_ID_FIELD": "user", "ITEM_ID_FIELD": "item", "NEG_PREFIX": "negative_"}
    model = Model(settings | fields | {"device": torch.device("cpu")}, Data())
    tables = [fill(table.weight, part) for table, part in zip((model.user_embedding, model.item_embedding), s.parts())]

    def loss(batch: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = model.calculate_loss(dict(zip(("user", "item", "negative_item"), batch)))
        return value.sum()  # of one number

    return adam(loss, s.users_and_items(), {"x": tables}, s.lr)


def lightgcn_with(product: Callable[[Workload], Product]) -> Callable[[Setting], Loop]:
    """A plain loop around a library's sparse product."""

    def build(s: Setting) -> Loop:
        x = s.start["x"].clone().requires_grad_()
        if s.layers != 3:
            raise Missing("it has three layers")
        propagate = three_products(product)(s.w, {"x": x}).forward
        return adam(lambda triples: bpr(propagate(), x, triples, s.reg), s.triples(), {"x": [x]}, s.lr)

    return build


# NGCF.


def ngcf_with(matrix_of: Callable[[Workload], torch.Tensor]) -> Callable[[Setting], Loop]:
    """A plain loop of torch operators: a sparse product and two linear layers on nodes a layer, layers side by side."""

    def build(s: Setting) -> Loop:
        t = {name: x.clone().requires_grad_() for name, x in s.start.items()}
        matrix = matrix_of(s.w)

        def loss(triples: torch.Tensor) -> torch.Tensor:
            outputs = [t["x"]]
            for number in range(layers_of(t)):
                outputs.append(recbole_layer(matrix, outputs[-1], t, number))
            return bpr(torch.cat(outputs, dim=1), t["x"], triples, s.reg)

        return adam(loss, s.triples(), {name: [x] for name, x in t.items()}, s.lr)

    return build


# What the first step is checked against, in float64: its loss.


def lightgcn_loss(s: Setting, t: Tensors) -> Step:
    """BPR of the first batch."""
    propagated, triples = oracles.lightgcn(s.w, t, s.layers).forward, s.triples()[0]
    return Step(lambda: oracles.step_loss(propagated()[triples], t["x"][triples], s.reg), t)


def ngcf_loss(s: Setting, t: Tensors) -> Step:
    """The same for NGCF."""
    layers, triples = oracles.ngcf_layers_once(s.w, t), s.triples()[0]
    return Step(lambda: oracles.step_loss(torch.cat(layers(), dim=1)[triples], t["x"][triples], s.reg), t)


def propagated(s: Setting, t: Tensors) -> Step:
    """Final embeddings."""
    return oracles.lightgcn(s.w, t, s.layers)


def softmax_loss(s: Setting, t: Tensors) -> Step:
    """Softmax over all items, or the batch's negatives, but a user's other ones, for every positive of its users, by
    cosines."""
    final, config, graph = oracles.lightgcn(s.w, t, s.layers).forward, s.loss, s.w.graph
    assert isinstance(config, SoftmaxConfig)
    assert config.temperature is not None
    temperature, popular = config.temperature, torch.from_numpy(graph.item_degrees).clamp(min=1).double().log()
    users, *drawn = s.batches[0]
    negatives, log_counts = drawn or (torch.arange(graph.num_items), 0.0)
    part = graph.user_item().select_rows(users)
    degrees, items = part.indptr.diff(), part.indices.long()
    rows = torch.repeat_interleave(torch.arange(len(users)), degrees)

    def forward() -> torch.Tensor:
        queries, keys = F.normalize(final()).split([graph.num_users, graph.num_items])
        scores = queries[users] @ keys.T / temperature + config.prior * (popular - popular.mean())
        positive = scores[rows, items]
        others = scores.index_put((rows, items), scores.new_tensor(-torch.inf))[:, negatives] - log_counts
        others = others.logsumexp(dim=1)
        weights = degrees[rows].double() ** (config.user_power - 1)
        return (weights * (torch.logaddexp(positive, others[rows]) - positive)).sum() / weights.sum()

    return Step(forward, t)
