"""Streams of blocks: the same numbers as in memory whatever the ring, what is handed back is written, errors arrive."""

from __future__ import annotations

import errno
import os
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.errors import StorageError
from gnnrec.memtier.files import TierFolder
from gnnrec.memtier.layout import Layout
from gnnrec.memtier.matrices import PanelMatrix
from gnnrec.memtier.ring import FEWEST, Ring, buffer_count
from gnnrec.memtier.stream import Stream

RINGS = (
    Ring(0, 1, 1),
    Ring(0, 1, 1, phased=True),
    Ring(1 << 17),
    Ring(1 << 30, 3, 2),
    Ring(1 << 17, 2, 2, phased=True),
)


@pytest.fixture
def folder(tmp_path):
    with TierFolder(tmp_path / "tier") as opened:
        yield opened


def matrices(folder, layout, count=2):
    made = [PanelMatrix(folder, f"m{number}", layout) for number in range(count)]
    values = [torch.randn(layout.rows, layout.columns) for _ in made]
    for matrix, content in zip(made, values):
        matrix.fill_from(lambda rows, content=content: content[rows])
    return made, values


def content(matrix):
    return torch.cat([matrix.rows(block) for block in range(matrix.layout.blocks)])


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 5000), st.integers(1, 6), st.integers(1, 5), st.sampled_from([512, 4096]), st.integers(1, 1 << 18)
)
def test_blocks_cover_every_row_once_at_aligned_places(rows, groups, panels, alignment, block_bytes):
    width = 16 * groups
    layout = Layout.of(rows, width * panels, width, alignment, block_bytes)
    covered, end = 0, 0
    for panel in range(panels):
        for block in range(layout.blocks):
            offset, length = layout.place(panel, block)
            part = layout.rows_of(block)
            assert offset % alignment == length % alignment == 0
            assert offset >= end
            assert 0 < (part.stop - part.start) * width * 4 <= length <= layout.block_bytes
            covered, end = covered + part.stop - part.start, offset + length
    assert covered == rows * panels
    assert end <= layout.file_bytes


@pytest.mark.parametrize("rows", [1, 63, 64, 1000])
@pytest.mark.parametrize("width", [16, 48])
def test_a_matrix_comes_back_as_it_was_written(folder, rows, width):
    layout = Layout.of(rows, 96, width, 4096, 1 << 12)
    (matrix, other), (values, _) = matrices(folder, layout)
    assert torch.equal(content(matrix), values)
    other.copy_from(matrix)
    assert torch.equal(content(other), values)
    panel = torch.empty(rows, width)
    matrix.read_panel(1, panel)
    assert torch.equal(panel, values[:, width : 2 * width])


@pytest.mark.parametrize("ring", RINGS, ids=str)
@pytest.mark.parametrize("rows", [1, 700])
def test_rounds_of_changes_are_those_in_memory(folder, ring, rows):
    layout = Layout.of(rows, 64, 32, 4096, 1 << 13)
    made, (a, b) = matrices(folder, layout)
    with Stream(made, ring) as stream:
        for number in range(5):
            for panel in range(2):
                for block in stream.panel(panel):
                    x, y = block.tensors
                    x.add_(number * y)
                    y.mul_(0.5)
            a, b = a + number * b, b * 0.5
            if number == 2:
                stream.drain()
                assert torch.equal(content(made[0]), a)
    assert torch.equal(content(made[0]), a)
    assert torch.equal(content(made[1]), b)
    moved = stream.moved["m0"]
    assert moved.write_bytes == 5 * 2 * sum(layout.place(0, k)[1] for k in range(layout.blocks))
    assert moved.read_bytes == moved.write_bytes  # what was read ahead was never taken


def test_a_closed_stream_begins_again(folder):
    made, (a, _) = matrices(folder, Layout.of(300, 32, 32, 4096, 1 << 12))
    stream = Stream(made, Ring(0))
    for _ in range(3):
        for block in stream.panel(0):
            block.tensors[0].add_(1)
        stream.close()
        assert not any(t.name.startswith("gnnrec-io") for t in threading.enumerate())
        made[1].copy_from(made[0])  # others may write now
    assert torch.equal(content(made[1]), a + 1 + 1 + 1)


def test_reading_goes_ahead_no_further_than_the_ring(folder, monkeypatch):
    layout = Layout.of(4096, 64, 16, 4096, 1 << 12)
    made, _ = matrices(folder, layout)
    ring = Ring(FEWEST * 2 * layout.block_bytes, 2, 2)
    assert buffer_count(2 * layout.block_bytes, layout.blocks, ring.buffer_bytes) == FEWEST < layout.blocks
    real, read = os.preadv, list[int]()
    monkeypatch.setattr(os, "preadv", lambda *arguments: read.append(real(*arguments)) or read[-1])
    with Stream(made, ring) as stream:
        blocks = stream.panel(0)
        next(blocks)
        threading.Event().wait(0.2)
        assert sum(read) == FEWEST * 2 * layout.block_bytes
        assert stream.moved["m0"].read_bytes == layout.block_bytes
        assert stream.moved["m0"].write_bytes == 0
        blocks.close()  # given up in the middle: it is not written, and closing does not wait for it


@pytest.mark.parametrize("way", ["preadv", "pwritev"])
def test_an_error_of_a_thread_arrives_where_the_computation_is(folder, monkeypatch, way):
    made, _ = matrices(folder, Layout.of(3000, 64, 16, 4096, 1 << 12))
    real, calls = getattr(os, way), []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) > 5:
            raise OSError(errno.EIO, "made up")
        return real(*arguments)

    monkeypatch.setattr(os, way, failing)
    stream = Stream(made, Ring(0))
    with pytest.raises(StorageError, match=r"m\d\.bin: (read|write) at byte \d+ failed: .* \(EIO\)"):
        [block for panel in range(4) for block in stream.panel(panel)]
    stream.close(drain=False)


def test_panels_come_in_their_order(folder):
    made, _ = matrices(folder, Layout.of(10, 64, 16, 4096))
    with Stream(made, Ring(0)) as stream:
        for _ in stream.panel(0):
            pass
        with pytest.raises(AssertionError, match="in their order"):
            next(stream.panel(2))


def test_a_phased_stream_never_reads_and_writes_at_once(folder, monkeypatch):
    made, _ = matrices(folder, Layout.of(3000, 64, 16, 4096, 1 << 12))
    active, both, lock = {"r": 0, "w": 0}, [], threading.Lock()

    def watched(kind, real):
        def call(*arguments):
            with lock:
                active[kind] += 1
                both.append(active["r"] and active["w"])
            try:
                return real(*arguments)
            finally:
                with lock:
                    active[kind] -= 1

        return call

    monkeypatch.setattr(os, "preadv", watched("r", os.preadv))
    monkeypatch.setattr(os, "pwritev", watched("w", os.pwritev))
    with Stream(made, Ring(1 << 16, 2, 2, phased=True)) as stream:
        for _ in range(3):
            for panel in range(4):
                for block in stream.panel(panel):
                    block.tensors[0].add_(1)
    assert len(both) > 100
    assert not any(both)
