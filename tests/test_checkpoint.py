"""Checkpoints: what goes in comes out, and damage is found."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoint_cases import assert_is, bits, example, flip, names
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.errors import CheckpointError, StorageError
from gnnrec.training import checkpoint
from gnnrec.training.checkpoint import latest, load, load_latest, save

# --- round trip -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", checkpoint._DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5, 3)])
def test_round_trip_keeps_every_bit(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (*shape, dtype.itemsize), dtype=torch.uint8)
    tensor = raw.view(dtype).reshape(shape)  # any bits: NaN payloads and denormals among them
    found = load(save(tmp_path, 7, {"model.x": tensor}, {})).tensors["model.x"]
    assert (found.dtype, found.shape, bits(found)) == (tensor.dtype, tensor.shape, bits(tensor))


def test_groups_become_files_that_the_library_reads(tmp_path: Path) -> None:
    path = save(tmp_path, 1234, example(3), {})
    assert path == tmp_path / "step-00001234"
    names = sorted(entry.name for entry in path.iterdir())
    assert names == ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    assert safetensors.torch.load_file(path / "model.safetensors").keys() == {"embedding"}
    optimizer = safetensors.torch.load_file(path / "optimizer.safetensors")
    assert optimizer.keys() == {"m", "step"}
    assert torch.equal(optimizer["m"], example(3)["optimizer.m"])


def test_header_is_aligned_and_data_is_aligned_to_its_type(tmp_path: Path) -> None:
    tensors = {"model.a": torch.ones(3, dtype=torch.uint8), "model.b": torch.ones(5, dtype=torch.float64)}
    data = (save(tmp_path, 0, tensors, {}) / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert header["b"]["data_offsets"] == [0, 40]
    assert header["a"]["data_offsets"] == [40, 43]


def test_strided_shared_and_learnable_tensors(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "model.transposed": base.T,
        "model.columns": base[:, ::2],
        "model.expanded": torch.ones(1).expand(5),
        "model.parameter": torch.nn.Parameter(base),
    }
    found = load(save(tmp_path, 0, tensors, {})).tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert not found["model.parameter"].requires_grad


def test_loaded_tensors_do_not_hang_on_the_file(tmp_path: Path) -> None:
    path = save(tmp_path, 5, example(5), {"step": 5})
    found = load(path)
    (path / "model.safetensors").write_bytes(b"\xff" * (path / "model.safetensors").stat().st_size)
    assert_is(found, 5)


def test_no_tensors_and_unicode_names(tmp_path: Path) -> None:
    assert load(save(tmp_path, 0, {}, {"a": 1})).tensors == {}
    assert load(save(tmp_path, 1, {"model.größe.0": torch.ones(2)}, {})).tensors.keys() == {"model.größe.0"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None)
@given(state=st.dictionaries(st.text(), json_values, max_size=4))
def test_state_round_trip(state: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert load(save(folder, 1, {}, state)).state == state


def test_state_that_json_cannot_hold_touches_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save(tmp_path / "new", 1, {}, {"x": object()})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("weight", torch.ones(1)),
        ("../up.weight", torch.ones(1)),
        ("model.", torch.ones(1)),
        ("model.x", torch.ones(1, dtype=torch.complex64)),
        ("model.x", torch.eye(2).to_sparse()),
    ],
)
def test_tensors_that_cannot_be_saved(tmp_path: Path, name: str, tensor: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        save(tmp_path / "new", 1, {name: tensor}, {})
    assert not (tmp_path / "new").exists()


# --- which ones are kept ----------------------------------------------------------------------------------------------


def test_one_earlier_checkpoint_is_kept_by_default(tmp_path: Path) -> None:
    assert latest(tmp_path / "none") is None
    assert latest(tmp_path) is None
    for step in (9, 10, 200_000_000):
        save(tmp_path, step, example(step), {"step": step})
    assert names(tmp_path) == ["step-00000010", "step-200000000"]
    assert latest(tmp_path) == tmp_path / "step-200000000"


@pytest.mark.parametrize("keep", [0, 2])
def test_keep(tmp_path: Path, keep: int) -> None:
    for step in range(5):
        save(tmp_path, step, {}, {}, keep=keep)
    assert names(tmp_path) == [f"step-{step:08d}" for step in range(4 - keep, 5)]


def test_there_are_never_more_than_room_was_found_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after saves that were killed before they removed the oldest."""
    counts = []

    def count_them(*_: object, **__: object) -> None:
        counts.append(checkpoint.count(tmp_path))
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_verify", count_them)
    for step in range(6):
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, step, {}, {})
    assert counts == [1, 2, 3, 3, 3, 3]


def test_saving_a_step_again_never_overwrites(tmp_path: Path) -> None:
    save(tmp_path, 5, example(5), {"step": 5})
    first = save(tmp_path, 6, {}, {})
    second = save(tmp_path, 6, example(6), {"step": 6})
    assert names(tmp_path) == ["step-00000006", "step-00000006-1"]
    assert (first, second) == (tmp_path / "step-00000006", latest(tmp_path))
    assert_is(load_latest(tmp_path)[0], 6)


def test_steps_that_a_resume_fell_back_behind_are_removed(tmp_path: Path) -> None:
    for step in (10, 20):
        save(tmp_path, step, example(step), {"step": step})
    (tmp_path / "step-00000020" / "state.json").unlink()
    save(tmp_path, 15, example(15), {"step": 15})
    assert names(tmp_path) == ["step-00000010", "step-00000015"]


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    (tmp_path / "step-1").mkdir()
    (tmp_path / ".tmp-notes").write_text("mine")
    for step in range(4):
        save(tmp_path, step, {}, {}, keep=0)
    assert names(tmp_path) == [".tmp-notes", "best", "step-00000003", "step-1"]


# --- damage -----------------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def edit_manifest(**changes: Any) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


DAMAGE = [
    ("model.safetensors", truncate, "bytes where the manifest has"),
    ("model.safetensors", flip, "has the SHA-256 [0-9a-f]{64} where the manifest has [0-9a-f]{64}"),
    ("model.safetensors", Path.unlink, "cannot be read: No such file"),
    ("state.json", truncate, "has 11 bytes where the manifest has 12"),
    ("state.json", flip, "SHA-256"),
    ("state.json", Path.unlink, "cannot be read"),
    ("manifest.json", Path.unlink, "cannot be read: No such file"),
    ("manifest.json", truncate, "not the manifest"),
    ("manifest.json", lambda path: path.write_bytes(b"\x00\xff"), "not the manifest"),
    ("manifest.json", lambda path: path.write_text("[]"), "not the manifest"),
    ("manifest.json", edit_manifest(files=[]), "not the manifest"),
    ("manifest.json", edit_manifest(files={}), r"does not list state\.json"),
    (
        "manifest.json",
        edit_manifest(version=3),
        "gnnrec-checkpoint version 3, and this gnnrec reads .* versions 1 and 2",
    ),
    ("manifest.json", edit_manifest(format="other"), "is other version 1"),
    ("manifest.json", edit_manifest(step=21), "is of step 21, in the folder step-00000020"),
]


@pytest.mark.parametrize(("name", "damage", "found"), DAMAGE)
def test_damage_is_found_and_the_previous_one_is_used(
    tmp_path: Path, name: str, damage: Callable[[Path], object], found: str
) -> None:
    save(tmp_path, 10, example(10), {"step": 10})
    newest = save(tmp_path, 20, example(20), {"step": 20})
    damage(newest / name)
    with pytest.raises(CheckpointError, match=found) as caught:
        load(newest)
    assert caught.value.where == str(newest / name)
    assert caught.value.remedy
    previous, warnings = load_latest(tmp_path)
    assert_is(previous, 10)
    assert len(warnings) == 1
    assert str(newest / name) in warnings[0]
    assert "step-00000010" in warnings[0]


def test_a_flipped_bit_in_any_byte_is_harmless_or_found(tmp_path: Path) -> None:
    path = save(tmp_path, 3, {"model.x": torch.arange(3.0)}, {"step": 3})
    for file in path.iterdir():
        data = file.read_bytes()
        for byte in range(len(data)):
            damaged = bytearray(data)
            damaged[byte] ^= 1 << byte % 8
            file.write_bytes(damaged)
            try:
                found = load(path)
            except CheckpointError:
                continue
            # The manifest's own white space may change; nothing that is loaded may.
            assert file.name == "manifest.json"
            assert (found.step, found.state) == (3, {"step": 3})
            assert torch.equal(found.tensors["model.x"], torch.arange(3.0))
        file.write_bytes(data)


def test_nothing_that_verifies(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_latest(tmp_path)
    for step in (10, 20):
        flip(save(tmp_path, step, example(step), {}) / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_latest(tmp_path)
    assert "step-00000010" in caught.value.found
    assert "step-00000020" in caught.value.found
    assert caught.value.found.count("SHA-256") == 2


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    path = save(tmp_path, 1, {"model.x": torch.ones(1)}, {})
    torch.save({"x": Payload()}, path / "model.safetensors")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["model.safetensors"] = checkpoint._write(
        tmp_path / "copy", [(path / "model.safetensors").read_bytes()]
    )
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="verifies but cannot be read"):
        load(path)
    assert not (tmp_path / "executed").exists()


def test_a_disk_that_gives_back_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, example(1), {"step": 1})
    rename = os.rename

    def damaging(source: Path, target: Path) -> None:
        if Path(target).name == "step-00000002":
            flip(Path(source) / "model.safetensors")
        rename(source, target)

    monkeypatch.setattr(os, "rename", damaging)
    with pytest.raises(StorageError, match="not what was written: has the SHA-256"):
        save(tmp_path, 2, example(2), {"step": 2})
    assert names(tmp_path) == ["step-00000001"]
    assert_is(load_latest(tmp_path)[0], 1)
