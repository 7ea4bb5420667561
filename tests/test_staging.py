"""Blocks on their way to a GPU and back: what is computed on is there, and nothing is overwritten before it is back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gnnrec.errors import StorageError
from gnnrec.memtier import staging
from gnnrec.memtier.copies import CopiesInOrder, pinned
from gnnrec.memtier.files import TierFile, TierFolder
from gnnrec.memtier.layout import Layout
from gnnrec.memtier.matrices import PanelMatrix
from gnnrec.memtier.ring import FEWEST, Ring
from gnnrec.memtier.staging import Held, HostMatrix, Staged, host_layout
from gnnrec.memtier.stream import Stream

CPU = torch.device("cpu")
ROWS, COLUMNS, WIDTH = 1000, 48, 16


class Task:
    """A copy that waits for another one and, as an event, for being needed."""

    def __init__(self, targets, sources, after=None):
        self.pairs, self.after, self.done = list(zip(targets, sources, strict=True)), after, False

    def query(self):
        return self.done

    def synchronize(self):
        if not self.done:
            if self.after is not None:
                self.after.synchronize()
            for target, source in self.pairs:
                target.copy_(source)
            self.done = True


class Lazy:
    """Copies that happen as late as events allow, or with `eager` those to the GPU as early."""

    def __init__(self, eager):
        self.eager, self.before = eager, {"read": None, "write": None}

    def read(self, targets, sources, after):
        task = self._in_order("read", Task(targets, sources, after))
        if self.eager:
            task.synchronize()
        return task

    def write(self, targets, sources):
        return self._in_order("write", Task(targets, sources))

    def wait(self, event):
        event.synchronize()

    def settle(self):
        return {"read": 0.5, "write": 0.25}, 0.125

    def _in_order(self, way, task):
        """After those before it the same way."""
        before, after = self.before[way], task.after

        class Both:
            def synchronize(self):
                for one in (before, after):
                    if one is not None:
                        one.synchronize()

        task.after, self.before[way] = Both(), task
        return task


@pytest.fixture(params=["late", "early", "in order"])
def copies(request, monkeypatch):
    made = {"late": lambda: Lazy(False), "early": lambda: Lazy(True), "in order": CopiesInOrder}[request.param]
    monkeypatch.setattr(staging, "copies", lambda device: made())


def matrices(folder, block_bytes):
    """Three of them with their content, in DRAM or in a folder."""
    alignment = 64 if folder is None else folder.access.alignment
    layout = Layout.of(ROWS, COLUMNS, WIDTH, alignment, block_bytes)
    made = []
    for number in range(3):
        name = f"m{number}"
        matrix = HostMatrix(name, layout, CPU) if folder is None else PanelMatrix(folder, name, layout)
        content = torch.from_numpy(np.random.default_rng(number).random((ROWS, COLUMNS), np.float32))
        matrix.fill_from(lambda rows, content=content: content[rows])
        made.append((matrix, content))
    return [matrix for matrix, _ in made], [content for _, content in made]


def whole(matrix):
    return torch.cat([matrix.rows(block) for block in range(matrix.layout.blocks)])


def go_over(stream, rounds=1):
    """Rounds in which nothing changes."""
    for panel in [*range(stream.layout.panels)] * rounds:
        for _ in stream.panel(panel):
            pass


def staged(made, buffer_bytes, ring=0):
    source = Held(made) if isinstance(made[0], HostMatrix) else Stream(made, Ring(ring))
    return Staged(source, [matrix.name for matrix in made], CPU, buffer_bytes)


@pytest.mark.parametrize("files", [False, True], ids=["dram", "files"])
@pytest.mark.parametrize("buffer_bytes", [0, 1 << 16, 1 << 26])
def test_rounds_of_a_computation(copies, tmp_path, files, buffer_bytes):
    with TierFolder(tmp_path) as folder:
        made, (a, b, c) = matrices(folder if files else None, 1 << 12)
        stream = staged(made, buffer_bytes, ring=1 << 16)
        assert min(FEWEST, stream.source.buffers) <= stream.buffers <= stream.source.buffers
        for _ in range(3):
            for panel in range(made[0].layout.panels):
                for block in stream.panel(panel):
                    x, y, z = block.tensors
                    assert len(x) == block.rows.stop - block.rows.start
                    x += y
                    y *= z
                    z -= x
            a, b = a + b, b * c
            c = c - a
        stream.drain()
        for matrix, expected in zip(made, (a, b, c)):
            assert torch.equal(whole(matrix), expected)
        stream.close()
        for block in stream.panel(0):  # from the start again
            block.tensors[0].zero_()
        stream.close()
        a = a.clone()
        a[:, :WIDTH] = 0
        assert torch.equal(whole(made[0]), a)


def test_what_was_moved_is_counted(monkeypatch):
    monkeypatch.setattr(staging, "copies", lambda device: Lazy(False))
    made, _ = matrices(None, 1 << 12)
    stream = staged(made, 0)
    go_over(stream)
    stream.drain()
    assert stream.spent() == (0.5, 0.125)
    size = 4 * ROWS * COLUMNS
    for moved in stream.moved.values():
        assert moved.write_bytes == size
        assert size <= moved.read_bytes <= 1.1 * size + stream.buffers * made[0].layout.block_bytes
        assert (moved.read_seconds, moved.write_seconds) == pytest.approx((0.5 / 3, 0.25 / 3))
    stream.close()


def test_panels_come_in_their_order():
    made, _ = matrices(None, 1 << 12)
    stream = staged(made, 0)
    with pytest.raises(AssertionError, match="panels must be taken in their order"):
        next(stream.panel(1))


def test_an_error_of_a_file_is_raised_where_blocks_are_taken(tmp_path, monkeypatch):
    def fail(self, offset, buffer):
        raise StorageError("is broken", where="disk")

    with TierFolder(tmp_path) as folder:
        made, _ = matrices(folder, 1 << 12)
        stream = staged(made, 0)
        monkeypatch.setattr(TierFile, "write", fail)
        with pytest.raises(StorageError, match="is broken"):
            go_over(stream, rounds=3)
        stream.close(drain=False)


def test_matrices_in_dram(tmp_path):
    made, contents = matrices(None, 1 << 12)
    made[0].copy_from(made[1])
    assert torch.equal(whole(made[0]), contents[1])
    panel = torch.empty(ROWS, WIDTH)
    made[2].read_panel(1, panel)
    assert torch.equal(panel, contents[2][:, WIDTH : 2 * WIDTH])


def test_blocks_in_dram_are_a_part_of_a_panel():
    for rows in (1, 100, 10**6, 10**8):
        layout = host_layout(rows, 64, 16)
        assert layout.block_bytes <= max(16 << 20, 64)
        assert FEWEST * layout.block_bytes <= max(rows * 16 * 4 / 2, FEWEST * 64)


def test_memory_of_nothing_is_not_pinned():
    assert pinned(0, torch.device("cuda")).nbytes == 0
