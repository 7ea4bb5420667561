"""Training: sampler, loop, evaluation, checkpoints, run directory."""
