"""Optimisers by name."""

from __future__ import annotations

import torch
from torch import nn

from gnnrec.config import OptimizerConfig


def build(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of the model's parameters, where they lie now.

    Fused: one pass over parameter, gradient and state. On a GPU a step may be captured in a CUDA graph.
    """
    parameters = list(model.parameters())
    captured = any(parameter.is_cuda for parameter in parameters)
    return torch.optim.Adam(
        parameters, lr=config.lr, betas=config.betas, eps=config.eps, fused=True, capturable=captured
    )
