"""How long transfers and computation take that go on beside each other."""

from __future__ import annotations


def streamed_seconds(
    compute: float, update: float, transfer: float, hidden: float, graph: tuple[float, float] = (0.0, 0.0)
) -> float:
    """A step in panels: propagation, then what is done with the blocks of the ring as they come.

    Args:
        compute: seconds of everything else.
        update: seconds of the optimizer and of the layer that is computed together with it.
        transfer: seconds that the files of embeddings and state take.
        hidden: the share of it that may go on beside `compute`, at the most.
        graph: seconds that the file of the graph takes, of propagation and of the layer that is computed with the
            optimizer. It is read while these go on, and before anything else.
    """
    propagation = max(compute, graph[0])
    return propagation + max(update, transfer - min(propagation - graph[0], hidden * transfer) + graph[1])


def hidden_share(ring: int, panel: int, read_gb_per_s: float, write_gb_per_s: float) -> float:
    """The share of a panel's transfers, `panel` bytes each way, that a ring lets go on beside propagation.

    Propagation finds the ring full of blocks to be written, and leaves it full of blocks that were read: twice the
    ring, all where it holds a panel. Where a device writes faster than it reads, some were written before: while the
    last `panel - ring` bytes of the panel were read.
    """
    ring = min(ring, panel)
    ahead = max(0.0, write_gb_per_s / read_gb_per_s - 1) * (panel - ring)
    return (ring + max(0.0, ring - ahead)) / (2 * panel)
