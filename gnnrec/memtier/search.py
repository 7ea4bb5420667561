"""The cheapest placement that fits, by branch and bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

PRICE_STEPS = 100
ROUNDING = 1e-12  # of a plan's seconds: what is shorter by less is no better


def place(
    sizes: Sequence[int], costs: Sequence[Mapping[str, float]], room: Mapping[str, float]
) -> tuple[list[str], float] | None:
    """The cheapest assignment of tensors to tiers that fits, by branch and bound: exact.

    Args:
        sizes: bytes of each tensor.
        costs: of each tensor, seconds by the tiers it may lie in.
        room: bytes by tier.

    Returns:
        The tier of each tensor and the sum of costs, or None where nothing fits.
    """
    # First tensors without a choice, then those for which a wrong tier costs most; cheap tiers first: good plans come
    # early and cut off the rest.
    order = sorted(
        range(len(sizes)), key=lambda i: (len(costs[i]) > 1, min(costs[i].values()) - max(costs[i].values()))
    )
    prices = _prices(sizes, costs, room)
    lower = [0.0]  # of the tensors from a position on, if room were sold at these prices
    for i in reversed(order):
        lower.append(lower[-1] + min(cost + prices[tier] * sizes[i] for tier, cost in costs[i].items()))
    lower.reverse()
    left, chosen = dict(room), [""] * len(sizes)
    best: list[str] | None = None
    lowest = inf
    seen: dict[tuple[int, tuple[float, ...]], float] = {}  # costs so far, by what is left to do and to fill

    def hopeless(position: int, cost: float) -> bool:
        sold = sum(price * left[tier] for tier, price in prices.items() if price)
        return cost + lower[position] - sold >= lowest * (1 - ROUNDING)

    def search(position: int, cost: float) -> None:
        nonlocal best, lowest
        state = position, tuple(left.values())
        if cost >= seen.get(state, inf) or hopeless(position, cost):
            return
        seen[state] = cost
        if position == len(order):
            if cost < lowest:
                best, lowest = list(chosen), cost
            return
        i = order[position]
        for tier, more in sorted(costs[i].items(), key=lambda item: item[1]):
            if sizes[i] <= left[tier]:
                left[tier] -= sizes[i]
                chosen[i] = tier
                search(position + 1, cost + more)
                left[tier] += sizes[i]

    search(0, 0.0)
    return None if best is None else (best, lowest)


def _prices(sizes: Sequence[int], costs: Sequence[Mapping[str, float]], room: Mapping[str, float]) -> dict[str, float]:
    """Seconds a byte of each tier such that, if tensors paid them, few would want more than there is room: multipliers
    of the capacities, by subgradient steps. Any prices of at least 0 give a lower bound of all plans.

    Source: Fisher 1981, "The Lagrangian relaxation method for solving integer programming problems".
    """
    prices = dict.fromkeys(room, 0.0)
    spread = max((max(cost.values()) - min(cost.values()) for cost in costs), default=0.0)
    step = spread / max(sum(sizes), 1)
    best, highest = prices, -inf
    for number in range(PRICE_STEPS):
        wanted = dict.fromkeys(room, 0)
        bound = -sum(price * room[tier] for tier, price in prices.items() if price)
        for size, cost in zip(sizes, costs, strict=True):
            tier = min(cost, key=lambda name: cost[name] + prices[name] * size)
            bound += cost[tier] + prices[tier] * size
            wanted[tier] += size
        if bound > highest:
            best, highest = prices, bound
        if number == 0 and all(wanted[tier] <= room[tier] for tier in room):
            return prices  # each has what it wants
        excess = {tier: (wanted[tier] - room[tier]) / max(sum(sizes), 1) for tier in room if room[tier] < inf}
        prices = {
            tier: max(0.0, price + step / (1 + number / 10) * excess.get(tier, 0.0)) for tier, price in prices.items()
        }
    return best
