"""Settings that are left open, from the size of the data: batch, epochs and temperature."""

from __future__ import annotations

import math
from dataclasses import replace

from gnnrec.config import LossConfig, SoftmaxConfig, TrainerConfig
from gnnrec.graph.bipartite import BipartiteGraph

STEPS = 64  # in an epoch, where the batch is open
TOTAL_STEPS, FEWEST_EPOCHS, MOST_EPOCHS = 1500, 3, 24
COLDEST = 1.27  # the temperature times the logarithm of the number of items


def scaled(trainer: TrainerConfig, loss: LossConfig, graph: BipartiteGraph) -> tuple[TrainerConfig, LossConfig]:
    """Both with numbers in place of what is None, and a softmax over all items where its negatives would be as many.

    batch_size: the interactions divided by STEPS: a data set of any size is learnt in about as many steps, each of
    which costs one propagation over the whole graph. epochs: as many as make TOTAL_STEPS, within FEWEST_EPOCHS and
    MOST_EPOCHS. temperature of a softmax: COLDEST / log(items), since a cosine of 1 must outweigh the sum over all of
    them. negatives of a softmax whose scores are corrected for being drawn: they stand for the sum over all items,
    which is itself taken where it has no more terms.
    """
    interactions = max(int(graph.user_degrees.sum()), 1)
    batch = trainer.batch_size or max(math.ceil(interactions / STEPS), 1)
    epochs = trainer.epochs or min(max(round(TOTAL_STEPS * batch / interactions), FEWEST_EPOCHS), MOST_EPOCHS)
    if isinstance(loss, SoftmaxConfig):
        if loss.temperature is None:
            loss = replace(loss, temperature=round(COLDEST / math.log(max(graph.num_items, 3)), 4))
        if (loss.negatives or 0) >= graph.num_items and loss.correction is not False:
            loss = replace(loss, negatives=None, popularity=None, correction=None)
    return replace(trainer, batch_size=batch, epochs=epochs), loss
