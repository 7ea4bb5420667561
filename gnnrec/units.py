"""Bytes, rates and seconds: read from text, written in words. 1 GiB is 2^30 bytes, 1 GB/s is 10^9 bytes a second."""

from __future__ import annotations

import re

from gnnrec.errors import ConfigError

_FACTORS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_FACTORS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([KMGT]?I?B)?\s*", re.IGNORECASE)


def parse_bytes(where: str, text: str | int | float) -> int:
    """The number of bytes in "6GiB", "500 MB" or a plain number.

    Args:
        where: the config field, for the message.

    Raises:
        ConfigError: no size, or one below a byte.
    """
    match = _SIZE.fullmatch(str(text))
    size = int(float(match[1]) * _FACTORS[(match[2] or "").upper()]) if match else 0
    if size < 1:
        raise ConfigError(f"is {text!r}", where=where, remedy='Give a size such as "6GiB" or "500MB"')
    return size


def in_bytes(count: float) -> str:
    """Bytes in words: "1.50 GiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.2f} {unit}"
        count /= 1024
    return f"{count:.2f} TiB"


def in_seconds(seconds: float) -> str:
    """Seconds in words: "3.20 ms"."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if abs(seconds) * factor >= 1:
            return f"{seconds * factor:.2f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def in_clock(seconds: float) -> str:
    """Seconds as a clock has them: "0:07", "1:02:03"."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
