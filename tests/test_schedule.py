"""The learning rate of every step."""

import pytest

from gnnrec.config import TrainerConfig
from gnnrec.training.schedule import learning_rate


def rates(steps=10, **options):
    config = TrainerConfig(batch_size=400, **options)
    return [learning_rate(config, 0.1, step, steps) for step in range(steps)]


def test_it_is_constant_unless_told_otherwise():
    assert rates() == [0.1] * 10


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1), ("sqrt", 2), ("linear", 4)])
def test_scaled_with_the_batch(scaling, factor):
    assert rates(lr_scaling=scaling, lr_base_batch=100) == pytest.approx([0.1 * factor] * 10)


def test_warmed_up_in_samples():
    assert rates(warmup_samples=1600) == pytest.approx([0.025, 0.05, 0.075, *[0.1] * 7])


@pytest.mark.parametrize(("decay", "middle"), [("linear", 0.05), ("cosine", 0.05)])
def test_decayed_to_the_last_step(decay, middle):
    found = rates(lr_decay=decay)
    assert (found[0], found[5]) == pytest.approx((0.1, middle))
    assert 0 < found[-1] < 0.02
    assert sorted(found, reverse=True) == found
