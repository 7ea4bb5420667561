"""Settings that follow from the size of the data."""

import math

import numpy as np
import pytest

from gnnrec.config import BPRConfig, SoftmaxConfig, TrainerConfig
from gnnrec.training.scaling import scaled

OPEN = TrainerConfig(epochs=None, batch_size=None)


class Sizes:
    """As much of a graph as is looked at."""

    def __init__(self, interactions: int, num_items: int) -> None:
        self.user_degrees, self.num_items = np.array([interactions - 1, 1]), num_items


@pytest.mark.parametrize(
    ("interactions", "items", "batch", "epochs"),
    [(2, 3, 1, 24), (80_000, 1682, 1250, 23), (810_128, 40_981, 12_659, 23), (200_000_000, 5_000_000, 3_125_000, 23)],
)
def test_batch_epochs_and_temperature_follow_from_the_data(interactions, items, batch, epochs):
    trainer, loss = scaled(OPEN, SoftmaxConfig(temperature=None), Sizes(interactions, items))
    assert (trainer.batch_size, trainer.epochs) == (batch, epochs)
    assert loss.temperature == pytest.approx(1.27 / math.log(items), abs=1e-4)


def test_what_is_given_stays():
    given = TrainerConfig(epochs=5, batch_size=77)
    assert scaled(given, SoftmaxConfig(), Sizes(1000, 100)) == (given, SoftmaxConfig())
    assert scaled(OPEN, BPRConfig(), Sizes(1000, 100))[1] == BPRConfig()


@pytest.mark.parametrize(("items", "drawn"), [(100, None), (101, 100)])
def test_a_softmax_takes_all_items_where_its_negatives_would_be_as_many(items, drawn):
    given = SoftmaxConfig(negatives=100, popularity=0.5)
    assert scaled(OPEN, given, Sizes(1000, items))[1].negatives == drawn
    uncorrected = SoftmaxConfig(negatives=100, correction=False)  # another loss, which is left alone
    assert scaled(OPEN, uncorrected, Sizes(1000, items))[1] == uncorrected
