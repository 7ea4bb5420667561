"""The Triton kernels, interpreted on CPU tensors: a process of its own, since a kernel is bound to the interpreter when
it is decorated. `pytest tests/interpreter`."""

import os

os.environ["TRITON_INTERPRET"] = "1"

import quick_interpreter

from gnnrec import device

device.on_gpu = lambda x: True
quick_interpreter.install()


def pytest_addoption(parser):
    parser.addoption("--operator", help="only the tests of this operator of gnnrec.ops")


def pytest_collection_modifyitems(config, items):
    if wanted := config.getoption("--operator"):
        items[:] = [item for item in items if getattr(item.callspec.params.get("op"), "name", None) == wanted]
