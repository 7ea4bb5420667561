"""The learning rate of every step: scaled with the batch, warmed up in samples, decayed towards the end."""

from __future__ import annotations

import math

from gnnrec.config import TrainerConfig

BASE_BATCH = 2048  # of the published LightGCN
SCALINGS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}  # powers of batch / base batch


def learning_rate(config: TrainerConfig, lr: float, step: int, steps: int) -> float:
    """The learning rate of a step.

    Args:
        config: the trainer's settings.
        lr: of a batch of `lr_base_batch`, by default BASE_BATCH.
        step: from 0; steps: of the whole training.

    Source: linear scaling and warm-up as in Goyal et al. 2017, square root as in Krizhevsky 2014, cosine decay as in
    Loshchilov and Hutter 2017.
    """
    assert config.batch_size is not None
    lr *= (config.batch_size / (config.lr_base_batch or BASE_BATCH)) ** SCALINGS[config.lr_scaling]
    samples = (step + 1) * config.batch_size
    if samples < config.warmup_samples:
        lr *= samples / config.warmup_samples
    progress = step / steps
    if config.lr_decay == "cosine":
        lr *= 0.5 * (1 + math.cos(math.pi * progress))
    elif config.lr_decay == "linear":
        lr *= 1 - progress
    return lr
