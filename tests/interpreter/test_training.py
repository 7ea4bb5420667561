import pytest
from pretend_gpu import WithoutWaiting, pretended
from training_walk import *  # noqa: F403


@pytest.fixture(autouse=True, scope="module")
def gpu():
    with pretended() as device:
        yield device


@pytest.fixture
def without_waiting():
    return WithoutWaiting()
