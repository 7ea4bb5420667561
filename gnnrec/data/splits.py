"""Splits of an interaction log into train, validation and test parts.

Every split is the same two steps: put the rows into an order (random, or by time), all of them or within each user, and
cut each group of rows at given ranks. Both are vectorised, cost O(n log n), and depend on the log and the seed alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gnnrec.data.interactions import Interactions
from gnnrec.errors import DataError

Int64Array = npt.NDArray[np.int64]

STRATEGIES = ("random", "per_user", "leave_one_out", "temporal", "per_user_temporal", "per_user_order")


def split(
    log: Interactions, by: str = "random", ratios: Sequence[float] = (0.8, 0.1, 0.1), seed: int = 0
) -> tuple[Interactions, ...]:
    """Splits a log into train, valid and test, or into train and test.

    Args:
        log: distinct (user, item) pairs.
        by: how to split.
            `random`: at random over all interactions; a user may be left with none in train.
            `per_user`: at random within each user, who keeps at least one interaction in train. A ratio that asks for a
            fraction of an interaction is rounded up or down at random, so that the parts have the wanted sizes even
            where each user has only a few.
            `leave_one_out`: each user's last interaction by time (a random one where the log has no timestamps) is
            test, the one before it valid; users with fewer interactions than there are parts stay in train.
            `temporal`: the earliest interactions are train, the latest test, cut at the same rows for all users.
            `per_user_temporal`: as `per_user`, in each user's order of time.
            `per_user_order`: as `per_user`, in the order of each user's rows, where that is the order of time.
            Interactions of the same time are ordered by their row.
        ratios: shares of (train, valid, test) or (train, test), which sum to 1. `leave_one_out` takes from them only
            whether there are three parts or two.
        seed: seed of the random choices, 0 or more.

    Returns:
        The parts, in the order of `ratios`. Together they hold each row of the log once; they share its id maps, and
        their rows keep the log's order.

    Raises:
        DataError: unknown `by`, ratios that are no shares, no timestamps where they are needed, a repeated (user, item)
            pair (it could land in train and in test, and leak), or a part that would be empty.
    """
    names = ("train", "test") if len(ratios) == 2 else ("train", "valid", "test")
    if len(ratios) != len(names):
        raise DataError(f"{len(ratios)} ratios", where="split", remedy="Give two (train, test) or three, with valid")
    return _cut(log, by, dict(zip(names, ratios)), seed)


def carve_valid(
    train: Interactions, ratio: float, seed: int = 0, by: str = "per_user"
) -> tuple[Interactions, Interactions]:
    """Takes a validation part out of the train part of a data set whose files have none.

    Args:
        train: distinct (user, item) pairs.
        ratio: share of the interactions for validation, in (0, 1).
        seed: seed of the choice, 0 or more.
        by: how they are chosen, as in `split`: by default at random within each user, who keeps at least one
            interaction in train. It should be how the test part was: a validation part at random does not show what a
            model makes of later interactions.

    Returns:
        (train, valid).

    Raises:
        DataError: as `split`.
    """
    kept, valid = _cut(train, by, {"train": 1 - ratio, "valid": ratio}, seed)
    return kept, valid


def _cut(log: Interactions, by: str, ratios: Mapping[str, float], seed: int) -> tuple[Interactions, ...]:
    """The parts of `log`, by name of the part."""
    _check(log, by, ratios, seed)
    rng = np.random.Generator(np.random.Philox(seed))
    times = _times(log, by)
    order = rng.permutation(len(log)) if times is None else np.argsort(times, kind="stable")
    shares = np.cumsum(list(ratios.values()))[:-1, None]
    if by in ("random", "temporal"):
        sizes = np.array([len(log)])
        cuts = np.floor(shares * sizes + 0.5)
    else:
        order = _group_by_user(log.users, order)
        sizes = np.bincount(log.users, minlength=log.num_users)
        if by == "leave_one_out":
            cuts = np.where(sizes >= len(ratios), sizes - np.arange(len(shares), 0, -1)[:, None], sizes)
        else:
            cuts = np.maximum(np.floor(shares * sizes + rng.random(len(sizes))), 1)
    rank = np.arange(len(log)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    part = np.empty(len(log), dtype=np.int8)
    part[order] = sum((rank >= np.repeat(cut.astype(np.int64), sizes)).astype(np.int8) for cut in cuts)
    return tuple(_part(log, np.flatnonzero(part == p), name, by, ratios) for p, name in enumerate(ratios))


def _times(log: Interactions, by: str) -> npt.NDArray[Any] | None:
    """The times that the split goes by; None where it goes by chance."""
    if by in ("random", "per_user") or (by == "leave_one_out" and log.timestamps is None):
        return None
    if by == "per_user_order":
        return np.arange(len(log))
    if log.timestamps is None:
        raise DataError(
            f"no timestamps, which by={by!r} needs",
            where=log.name,
            remedy="Name the column of the timestamps when reading, or use by='random' or by='per_user'",
        )
    missing = np.count_nonzero(np.isnan(log.timestamps))
    if missing:
        raise DataError(f"{missing} timestamps are nan", where=log.name, remedy="Drop those rows, or use by='random'")
    return log.timestamps


def _group_by_user(users: npt.NDArray[np.int32], order: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The rows of `order`, grouped by user."""
    # (user, place in order) sorted as one integer: faster than a stable argsort, and there are no ties
    keys = (users[order].astype(np.int64) << 32) | np.arange(len(order))
    keys.sort()
    keys &= 0xFFFFFFFF
    return np.asarray(order[keys])


def _part(log: Interactions, rows: Int64Array, name: str, by: str, ratios: Mapping[str, float]) -> Interactions:
    if not len(rows):
        remedy = "Use two parts, or by='random'" if by == "leave_one_out" else f"Raise its ratio, now {ratios[name]:g}"
        raise DataError(
            f"the {name} part of a {by} split of {len(log)} interactions of {log.num_users} users would be empty",
            where=log.name,
            remedy=f"{remedy}, or use a log with more interactions per user",
        )
    return log.take(rows, name=f"{log.name}/{name}")


def _check(log: Interactions, by: str, ratios: Mapping[str, float], seed: int) -> None:
    if by not in STRATEGIES:
        close = difflib.get_close_matches(by, STRATEGIES, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise DataError(f"unknown split {by!r}", where="by", remedy=f"{hint}Known: {', '.join(STRATEGIES)}")
    shown = ", ".join(f"{name} {ratio:g}" for name, ratio in ratios.items())
    if not all(ratio > 0 for ratio in ratios.values()):
        raise DataError(f"ratios {shown}: each must be above 0", where="ratios", remedy="For no valid part, give two")
    if abs(sum(ratios.values()) - 1) > 1e-6:
        raise DataError(f"ratios {shown} sum to {sum(ratios.values()):g}", where="ratios", remedy="Make them sum to 1")
    if seed < 0:
        raise DataError(f"seed is {seed}", where="seed", remedy="Use 0 or more")
    pairs = log.users.astype(np.int64) * log.num_items + log.items
    pairs.sort()
    repeated = int(np.count_nonzero(pairs[1:] == pairs[:-1]))
    if repeated:
        raise DataError(
            f"{repeated} of {len(log)} rows repeat a (user, item) pair, which could land in train and in test",
            where=log.name,
            remedy="Call deduplicate() on the log before the split",
        )
