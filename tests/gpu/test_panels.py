import pytest
from panels_walk import *  # noqa: F403


@pytest.fixture
def device():
    return "cuda"
