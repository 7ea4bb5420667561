import pytest
import torch
from streamed_walk import *  # noqa: F403
from streamed_walk import Sizes


@pytest.fixture(autouse=True, scope="module")
def gpu():
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="module")
def sizes():
    """About a fifth of Gowalla, blocks of 1 MiB."""
    return Sizes(6000, 8000, 160_000, 128, 2048, 1 << 20, ((16, 0), (64, 0), (64, 1 << 23), (128, 1 << 25)))
