"""Optimisers by name."""

from __future__ import annotations

import torch
from torch import nn

from gnnrec.config import OptimizerConfig


def build(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of the model's parameters. Fused: one pass over parameter, gradient and state."""
    return torch.optim.Adam(model.parameters(), lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
