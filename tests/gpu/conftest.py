"""The Triton kernels on a GPU: `make test-gpu`."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU on this machine"))
