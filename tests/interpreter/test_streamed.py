import pytest
from pretend_gpu import pretended
from streamed_walk import *  # noqa: F403
from streamed_walk import Sizes


@pytest.fixture(autouse=True, scope="module")
def gpu():
    with pretended() as device:
        yield device


@pytest.fixture(scope="module")
def sizes():
    return Sizes(20, 16, 120, 32, 40, 1 << 10, ((16, 0), (32, 1 << 14)))
