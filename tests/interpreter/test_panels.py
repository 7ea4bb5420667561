"""Panels of columns on a GPU, interpreted: the bits of all columns at once."""

import pytest
from panels_walk import *  # noqa: F403


@pytest.fixture
def device():
    return "cpu"
