"""Shared by the tests of checkpoints and of storage: a small checkpoint, damage, and work in another process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import torch

from gnnrec.training.checkpoint import Checkpoint


class Crash(BaseException):
    """What no code expects."""


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def example(step: int) -> dict[str, torch.Tensor]:
    """Tensors to save under a step; the state that goes with them is {"step": step}."""
    generator = torch.Generator().manual_seed(step)
    return {
        "model.embedding": torch.randn(37, 8, generator=generator),
        "optimizer.m": torch.randn(37, 8, generator=generator).to(torch.bfloat16),
        "optimizer.step": torch.tensor(step),
    }


def assert_is(found: Checkpoint, step: int) -> None:
    expected = example(step)
    assert found.step == step
    assert found.state == {"step": step}
    assert found.tensors.keys() == expected.keys()
    assert all(bits(found.tensors[name]) == bits(tensor) for name, tensor in expected.items())


def in_child(work: Callable[[], str]) -> tuple[int, str]:
    """Run `work` in a forked process: its wait status, and the text it returned ("" where it raised).

    Only small torch operators may run in it: those that start threads wait for ever after a fork.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)  # so that it ends whatever happens
            os.write(writer, work().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    return os.waitpid(pid, 0)[1], text
