"""A tier of a user's own package, which `memory.custom.path` names: where streamed matrices lie instead of files.

What it names is called with run=..., whom the tier's content belongs to, and `memory.custom.options`, and makes a
context manager, which is entered before all else, and then gives what has

    alignment                       bytes: offsets and lengths of transfers are multiples of it; buffers begin on a page
    capacity, free                  bytes, None where nobody knows
    create(name, size)              a store of so many bytes, reserved: whoever writes later finds room
    read_gb_per_s, write_gb_per_s   10^9 bytes a second of two threads; it may leave them out, and is measured then

A store has

    read(offset, buffer), write(offset, buffer)   fill or take all of a uint8 array, and return how many bytes that
                                    were; the array belongs to the caller again once they return
    flush()                         wait until all that was written is where it is to stay
    close()                         give the store up, and its room

Several threads read and write at once, different parts. What a write has taken the next read finds, flushed or not:
training never flushes, rates are measured through it.

It is no checkpoint: whatever lies there is gone at the end, and what a killed run leaves is for the tier to remove. An
OSError of it ends a run as that of a disk does; what else it raises keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from math import inf
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gnnrec import extensions
from gnnrec.config.memory import CustomTierConfig
from gnnrec.errors import ConfigError, GnnrecError, StorageError
from gnnrec.memtier import sysfs
from gnnrec.memtier.files import REMEDIES, Access, Direction
from gnnrec.memtier.layout import BLOCK_BYTES
from gnnrec.memtier.tiers import CUSTOM, Rate, Tier

NEEDED = ("__enter__", "__exit__")
ENTERED = ("create", "alignment", "capacity", "free")  # what it must have once it is entered
OF_STORES = ("read", "write", "flush", "close")

_RATES = {"read": "read_gb_per_s", "write": "write_gb_per_s"}
_THREADS = 2  # that declared rates are of


class CustomStore:
    """A store of a user's tier, whose errors are those of a file; a context manager that closes it.

    Args:
        where: its name, for messages.
        made: what the tier has made.
    """

    def __init__(self, where: str, made: Any) -> None:
        self.where, self._made = where, made

    def __enter__(self) -> Self:
        """As it is."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What fails on the way out must not hide what failed before.
        with suppress(*([StorageError] if error else [])):
            self.close()

    def read(self, offset: int, buffer: npt.NDArray[Any]) -> None:
        """Fill a contiguous array with the bytes from `offset` on.

        Raises:
            StorageError: the tier fails, or has read less.
        """
        self._transfer("read", offset, buffer)

    def write(self, offset: int, buffer: npt.NDArray[Any]) -> None:
        """Write a contiguous array from `offset` on.

        Raises:
            StorageError: as `read`.
        """
        self._transfer("write", offset, buffer)

    def flush(self) -> None:
        """Wait until all that was written is where it is to stay."""
        with _storage_errors(self.where, "flush"):
            self._made.flush()

    def close(self) -> None:
        """Give it up."""
        with _storage_errors(self.where, "close"):
            self._made.close()

    def _transfer(self, direction: Direction, offset: int, buffer: npt.NDArray[Any]) -> None:
        doing = f"{direction} at byte {offset}"
        with _storage_errors(self.where, doing):
            moved = getattr(self._made, direction)(offset, buffer)
        if moved != buffer.nbytes:
            found = f"{doing}: {moved} of {buffer.nbytes} bytes were moved"
            remedy = f"Its {direction} must move all of a buffer, and return how many bytes that were"
            raise StorageError(found, where=self.where, remedy=remedy)


class CustomTier:
    """The tier that a config names; a context manager, of which stores are closed before the tier itself is left.

    Args:
        config: names it.
        run: whom its content belongs to, such as the run directory.

    Attributes:
        access: of all stores.
    """

    def __init__(self, config: CustomTierConfig, *, run: str = "") -> None:
        assert config.path is not None
        self.name, self._config, self._run = config.path, config, run
        self.access = Access(1)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Make the tier ready.

        Raises:
            ConfigError: it is not allowed, not there, or no such tier.
            StorageError: it fails.
        """
        with ExitStack() as stack, _storage_errors(self.name, "open"):
            made = extensions.make("memory.custom", self.name, (), self._config.options, run=self._run)
            _check(self.name, made, NEEDED)
            self._made = stack.enter_context(made)
            _check(f"__enter__ of {self.name}", self._made, ENTERED)
            alignment = self._made.alignment
            if not isinstance(alignment, int | np.integer) or not 1 <= alignment <= BLOCK_BYTES:
                raise self._wrong("alignment", alignment, f"bytes, 1 to {BLOCK_BYTES}")
            self.access = Access(int(alignment))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What fails on the way out must not hide what failed before.
        with suppress(*([OSError] if error else [])), _storage_errors(self.name, "close"):
            self._stack.close()

    def create(self, name: str, size: int) -> CustomStore:
        """A new store, closed with the tier.

        Raises:
            ConfigError: it lacks a method.
            StorageError: the tier fails, as without room.
        """
        store = self.store(name, size)
        self._stack.callback(store.close)
        return store

    def store(self, name: str, size: int) -> CustomStore:
        """As `create`, for whoever closes it."""
        where, size = f"{self.name}, {name}", -(-size // self.access.alignment) * self.access.alignment
        with _storage_errors(where, f"create of {size} bytes"):
            made = self._made.create(name, size)
        store = CustomStore(where, made)
        with ExitStack() as failed:
            if hasattr(made, "close"):
                failed.push(store)
            _check(f"create of {self.name}", made, OF_STORES)
            failed.pop_all()
        return store

    def tier(self) -> Tier:
        """What it says of itself; without rates where it declares none.

        Raises:
            ConfigError: a figure that cannot be one.
            StorageError: it fails.
        """
        with _storage_errors(self.name, "open"):
            sizes = {name: getattr(self._made, name) for name in ("capacity", "free")}
            speeds = {way: getattr(self._made, name, None) for way, name in _RATES.items()}
        for name, size in sizes.items():
            if size is not None and (not isinstance(size, int | np.integer) or size < 0):
                raise self._wrong(name, size, "bytes, or None")
        declared = any(speed is not None for speed in speeds.values())
        for way, speed in speeds.items():
            if declared and not (isinstance(speed, int | float | np.integer | np.floating) and 0 < speed < inf):
                raise self._wrong(_RATES[way], speed, "above 0, as the other rate is, and finite, or both left out")
        capacity, free = (None if size is None else int(size) for size in sizes.values())
        return Tier(
            self.name,
            CUSTOM,
            capacity,
            free,
            self.access.alignment,
            direct=False,
            provenance="declared" if declared else "prior",
            rates=tuple(
                Rate(way, float(speed), threads=_THREADS, source=self.name) for way, speed in speeds.items() if speed
            ),
        )

    def _wrong(self, name: str, value: Any, wanted: str) -> ConfigError:
        found = f"{self.name} has {value!r} for {name}"
        return ConfigError(found, where="memory.custom.path", remedy=f"Let it be {wanted}")


def _check(who: str, made: Any, names: tuple[str, ...]) -> None:
    """Raise a ConfigError where what somebody has made lacks attributes."""
    if missing := [name for name in names if not hasattr(made, name)]:
        found = f"{who} makes a {type(made).__name__} without {', '.join(missing)}"
        raise ConfigError(
            found, where="memory.custom.path", remedy="See gnnrec/memtier/custom.py for what it must have"
        )


@contextmanager
def _storage_errors(where: str, doing: str) -> Iterator[None]:
    """Turn an OSError of a user's code into a StorageError about `where`; its errors that say all pass as they are."""
    try:
        yield
    except GnnrecError:
        raise
    except OSError as error:
        why = sysfs.why(error) if error.errno else str(error) or type(error).__name__
        why += f", {error.filename}" if error.filename else ""
        remedy = REMEDIES.get(
            error.errno or 0, "It is the tier that memory.custom.path names: see to what is behind it"
        )
        raise StorageError(f"{doing} failed: {why}", where=where, remedy=remedy) from error
