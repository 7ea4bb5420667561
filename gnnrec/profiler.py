"""Kernels that are no operators of torch.library are recorded as if they were, while a recording goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol

WAITING = "waiting for transfers"


class Recording(Protocol):
    """What wants to know of such kernels."""

    def kernel(self, name: str, arguments: tuple[Any, ...]) -> AbstractContextManager[None]:
        """Around a kernel, with the arguments that an operator of this name has."""
        ...


_recording: ContextVar[Recording | None] = ContextVar("_recording", default=None)  # of this thread


def kernel(name: str, *arguments: Any) -> AbstractContextManager[None]:
    """Around what computes without an operator of its own, or waits. Costs nothing while nobody records.

    Args:
        name: in a profile; that of the operator whose work it does, where there is one.
        arguments: of that operator, as far as its bytes and operations follow from them; None for the others.
    """
    recording = _recording.get()
    return nullcontext() if recording is None else recording.kernel(name, arguments)


def recording() -> bool:
    """Whether somebody does: for arguments that take time to find."""
    return _recording.get() is not None


@contextmanager
def told(recording: Recording) -> Iterator[None]:
    """While it lasts, a recording is told of this thread's kernels."""
    before = _recording.set(recording)
    try:
        yield
    finally:
        _recording.reset(before)
