"""SimGCL and XSimGCL: LightGCN beside which views of noisy layers are contrasted."""

from __future__ import annotations

import torch

from gnnrec import ops
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.models.draws import step_seeds
from gnnrec.models.lightgcn import LightGCN


class SimGCL(LightGCN):
    """LightGCN with a contrastive term between two views whose layers are perturbed (Yu et al. 2022).

    Final embeddings are the mean of the layers 1 to L, without the embeddings themselves, as in the authors' code. A
    view is the same with noise of length eps added to every row of every layer, see `ops.perturb`. What recommends has
    no noise. Noise follows torch.manual_seed, or after `start_step` the step.

    Args:
        graph: the training graph.
        dim: width of the embeddings.
        layers: number of propagation layers, at least 1.
        eps: length of the noise, at least 0.
        contrast_weight, contrast_temperature: of the contrastive term, for the loss.
        contrast_nodes: how many users, and how many items, take part in it in a step at the most.
        init_std, similarity, popularity: as for LightGCN; by default Xavier's embeddings, as in the authors' code.
        seed: of the initial embeddings, and of noise after `start_step`.
    """

    def __init__(
        self,
        graph: BipartiteGraph,
        dim: int = 64,
        layers: int = 2,
        eps: float = 0.1,
        contrast_weight: float = 0.5,
        contrast_temperature: float = 0.2,
        contrast_nodes: int = 8192,
        init_std: float | None = None,
        similarity: str = "dot",
        popularity: float = 0.0,
        seed: int = 0,
    ) -> None:
        weights = [0.0] + [1 / layers] * layers
        super().__init__(graph, dim, layers, weights, "normal", init_std, similarity, popularity, seed)
        self.eps, self.seed = eps, seed
        self.contrast_weight, self.contrast_temperature = contrast_weight, contrast_temperature
        self.contrast_nodes = contrast_nodes
        self._seeds: list[torch.Tensor] | None = None

    def start_step(self, step: int) -> None:
        """Let noise be a function of (seed, step) from now on, so that training can go on from any step."""
        self._seeds = list(step_seeds(self.seed, step, 2 * self.layers))

    def views(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Two views of this step, each like the final embeddings."""
        one, other = (sum_of(self._perturbed(view)) / self.layers for view in range(2))
        return one, other

    def _perturbed(self, view: int) -> list[torch.Tensor]:
        """The layers 1 to L with noise, each made from the one before with its noise."""
        adjacency = self.graph.norm_adjacency().to(self.embedding.device)
        layers: list[torch.Tensor] = []
        for layer in range(self.layers):
            clean = ops.spmm(adjacency, layers[-1] if layers else self.embedding)
            seed = None if self._seeds is None else self._seeds[view * self.layers + layer]
            layers.append(ops.perturb(clean, self.eps, seed=seed))
        return layers


class XSimGCL(SimGCL):
    """SimGCL in a single pass (Yu et al. 2023): in training mode the final embeddings have noise themselves, and are
    contrasted with one of the layers that they are the mean of.

    Args:
        contrast_layer: that layer, within 1 and layers.
        graph, dim, layers, eps, contrast_weight, contrast_temperature, contrast_nodes, init_std, similarity,
            popularity, seed: as for SimGCL.
    """

    def __init__(
        self,
        graph: BipartiteGraph,
        dim: int = 64,
        layers: int = 2,
        eps: float = 0.2,
        contrast_weight: float = 0.2,
        contrast_temperature: float = 0.15,
        contrast_layer: int = 1,
        contrast_nodes: int = 8192,
        init_std: float | None = None,
        similarity: str = "dot",
        popularity: float = 0.0,
        seed: int = 0,
    ) -> None:
        contrast = contrast_weight, contrast_temperature, contrast_nodes
        super().__init__(graph, dim, layers, eps, *contrast, init_std, similarity, popularity, seed)
        if not 1 <= contrast_layer <= layers:
            raise ValueError(f"contrast_layer must lie within 1 and {layers}, got {contrast_layer}")
        self.contrast_layer = contrast_layer
        self._made: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self) -> torch.Tensor:
        """Final embeddings [num_users + num_items, dim] of users, then items; with noise in training mode."""
        if not self.training:
            return self._propagated()
        layers = self._perturbed(0)
        self._made = sum_of(layers) / self.layers, layers[self.contrast_layer - 1]
        return self._made[0]

    def views(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The final embeddings of the last call in training mode and the layer they are contrasted with, once."""
        assert self._made is not None, "views are those of a call in training mode, which comes first"
        made, self._made = self._made, None
        return made


def sum_of(layers: list[torch.Tensor]) -> torch.Tensor:
    """Left to right."""
    total = layers[0]
    for layer in layers[1:]:
        total = total + layer
    return total
