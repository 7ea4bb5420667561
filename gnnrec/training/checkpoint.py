"""Checkpoints that survive a crash, a full disk and a flipped bit.

A checkpoint is a folder `step-00001234/`:

    GROUP.safetensors   the tensors named GROUP.NAME, under NAME: `model.safetensors` is a plain state dict
    GROUP.0-32.safetensors  of several processes, each has written such a file: these columns of the group's matrices,
                        the first one also what is no matrix
    state.json          everything that is no tensor
    manifest.json       format, step, and bytes and SHA-256 of each file

The checksums are taken from memory on the way out and compared with what the disk gives back before an older
checkpoint is removed, and again on every load. Nothing here can run code from a file: safetensors and JSON, no pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from gnnrec.errors import CheckpointError, StorageError
from gnnrec.storage import atomic_folder, remove_folder, remove_leftovers, storage_errors

FORMAT = "gnnrec-checkpoint"
VERSIONS = {False: 1, True: 2}  # of a checkpoint that one process has written, or several

MOST = 3  # checkpoints at a time: two that are kept, and the next one while it is written

_FOLDER = re.compile(r"step-(\d{8,})(?:-(\d+))?")  # the second number: the step was saved again after a resume
_KEY = re.compile(r"([A-Za-z]\w*)\.(.+)")
_SUFFIX = ".safetensors"
_FILE = re.compile(rf"(\w+)(?:\.(\d+)-(\d+))?{re.escape(_SUFFIX)}")  # group and columns
_CHUNK = 1 << 20
_ROWS = 1 << 16  # of a stored matrix at a time
_STATE = "state.json"
_MANIFEST = "manifest.json"

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_TYPES = {name: dtype for dtype, name in _DTYPES.items()}


class Manifest(NamedTuple):
    """What a checkpoint consists of: its step, and (bytes, SHA-256) of each file by name."""

    step: int
    files: dict[str, tuple[int, str]]


@dataclass(frozen=True)
class Rows:
    """A matrix that is in memory some rows at a time.

    Args:
        shape, dtype: of the whole.
        step: as many rows are read at a time, from a multiple of it on.
        read: gives these rows.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    step: int
    read: Callable[[slice], torch.Tensor]

    def whole(self) -> torch.Tensor:
        """All of it, in memory."""
        return self.read(slice(0, self.shape[0]))


def whole(value: torch.Tensor | Rows) -> torch.Tensor:
    """A tensor, in memory."""
    return value.whole() if isinstance(value, Rows) else value


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Args:
        path: the folder it was read from.
        step: the number of steps trained.
        tensors: by `GROUP.NAME`, as they were saved, bit for bit; matrices as `Rows` where these were asked for.
        state: what was saved beside them, as JSON has it (tuples have become lists).
    """

    path: Path
    step: int
    tensors: dict[str, Any]
    state: dict[str, Any]


def save(
    folder: str | os.PathLike[str],
    step: int,
    tensors: Mapping[str, torch.Tensor | Rows],
    state: Mapping[str, Any],
    *,
    keep: int = MOST - 2,
    columns: slice | None = None,
    others: Callable[[Path], Mapping[str, Any]] | None = None,
) -> Path:
    """Write a checkpoint, read it back from the disk, and only then remove older ones.

    `folder` then holds this checkpoint and up to `keep` from before it. One of a later step belongs to a training that
    was given up for this one (it was damaged, and a resume fell back behind it), and is removed too. Holds no copy of
    a contiguous CPU tensor, and a copy of one tensor at a time of any other.

    Args:
        folder: where the checkpoints lie; created where missing. One process at a time may save into it.
        step: number of steps trained so far, at least 0.
        tensors: dense tensors by `GROUP.NAME`, of any shape and device, or `Rows`.
        state: what JSON can hold; NaN and infinities too.
        keep: how many earlier checkpoints to keep.
        columns: that the matrices have of the whole ones, where other processes have the others.
        others: lets these `write_share` into the folder that is given, and gives what all of that return.

    Returns:
        The new folder: `folder/step-00001234`, or `folder/step-00001234-1` where that step had been saved before.

    Raises:
        StorageError: no space, no permission, an I/O error, or the disk gave back something else than was written.
            Earlier checkpoints are then as they were.
        ValueError: a tensor that has no group, or whose layout or dtype cannot be saved.
    """
    folder = Path(folder)
    groups = _grouped(tensors)
    encoded = json.dumps(dict(state)).encode()
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    earlier = _checkpoints(folder)
    attempts = [attempt for number, attempt, _ in earlier if number == step]
    path = folder / (f"step-{step:08d}" + (f"-{max(attempts) + 1}" if attempts else ""))
    kept = [path for number, _, path in earlier if number <= step]
    for old in kept[: max(len(kept) - keep - 1, 0)]:  # of a save that was killed before it removed them
        remove_folder(old)

    with atomic_folder(path) as temporary:
        files = _write_groups(temporary, groups, columns)
        if others is not None:
            files |= others(temporary)
        files[_STATE] = _write(temporary / _STATE, [encoded])
        manifest = {"format": FORMAT, "version": VERSIONS[columns is not None], "step": step, "files": files}
        _write(temporary / _MANIFEST, [json.dumps(manifest, indent=1).encode()])
    try:
        _verify(path, from_disk=True)
    except CheckpointError as error:
        remove_folder(path)
        remedy = "Look into the system's log (dmesg), and write to another disk"
        raise StorageError(f"not what was written: {error.found}", where=error.where, remedy=remedy) from error

    before = kept[-keep - 1 :]
    after = [path for number, _, path in earlier if number > step]
    for old in before[: max(len(before) - keep, 0)] + after:
        remove_folder(old)
    return path


def write_share(folder: Path, tensors: Mapping[str, torch.Tensor | Rows], columns: slice) -> dict[str, dict[str, Any]]:
    """Write these columns of tensors into a folder that another process makes a checkpoint of.

    Returns:
        Bytes and SHA-256 of each file by name, for the manifest.

    Raises:
        ValueError: as for `save`.
    """
    with storage_errors(folder):
        return _write_groups(folder, _grouped(tensors), columns)


def latest(folder: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint in `folder`, not verified; None where there is none."""
    found = _checkpoints(Path(folder))
    return found[-1][2] if found else None


def latest_state(folder: Path) -> dict[str, Any]:
    """What the newest checkpoint holds beside its tensors, not verified; empty where it cannot be read, or is none."""
    path = latest(folder)
    try:
        state = {} if path is None else json.loads((path / _STATE).read_bytes())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def count(folder: Path) -> int:
    """How many checkpoints there are in `folder`, not verified."""
    return len(_checkpoints(folder))


def load(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    as_rows: bool = False,
    columns: slice | None = None,
) -> Checkpoint:
    """Verify a checkpoint and read it, whether one process has written it or several.

    Args:
        path: the checkpoint's folder.
        device: where to put the tensors.
        as_rows: leave matrices in their files and give them as `Rows`.
        columns: of the matrices, those that are wanted; by default all.

    Raises:
        CheckpointError: a file is missing, cut short or changed, or the format is not ours; with what was found.
    """
    path = Path(path)
    manifest = _verify(path)
    shares: dict[str, dict[int, Any]] = defaultdict(dict)  # of every tensor, by the first column of each
    try:
        for name in manifest.files:
            if (match := _FILE.fullmatch(name)) is not None:
                with safe_open(path / name, framework="pt") as file:
                    for key in file.keys():  # noqa: SIM118 - it is no mapping
                        stored = _stored_rows(path / name, key, file.get_slice(key)) if as_rows else None
                        # A copy: the library's CPU tensors are views of the mapped file and would change with it.
                        found = file.get_tensor(key).to(device, copy=True) if stored is None else stored
                        shares[f"{match[1]}.{key}"][int(match[2] or 0)] = found
        tensors = {name: _joined([found[first] for first in sorted(found)], columns) for name, found in shares.items()}
        state = json.loads((path / _STATE).read_bytes())
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, f"verifies but cannot be read: {error}") from error
    return Checkpoint(path, manifest.step, tensors, state)


def load_latest(
    folder: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    as_rows: bool = False,
    columns: slice | None = None,
) -> tuple[Checkpoint, list[str]]:
    """Read the newest checkpoint that verifies.

    Args:
        folder: where the checkpoints lie.
        device, as_rows, columns: as for `load`.

    Returns:
        The checkpoint, and one warning for each newer one that is damaged.

    Raises:
        CheckpointError: there is none, or none that verifies; with what is wrong with each.
    """
    warnings: list[str] = []
    for _, _, path in reversed(_checkpoints(Path(folder))):
        try:
            checkpoint = load(path, device, as_rows=as_rows, columns=columns)
        except CheckpointError as error:
            warnings.append(f"{error.where}: {error.found}")
        else:
            return checkpoint, [f"{warning}. Falling back to {checkpoint.path.name}" for warning in warnings]
    if not warnings:
        raise CheckpointError("holds no checkpoint", where=str(folder), remedy="Train first, or correct the path")
    raise CheckpointError(
        "no checkpoint verifies: " + "; ".join(warnings),
        where=str(folder),
        remedy="Restore one of them from a copy, or train anew in another folder",
    )


def _joined(parts: list[Any], columns: slice | None) -> Any:
    """What files have of a tensor, from left to right, as one; of a matrix, these columns."""
    if len(parts[0].shape) != 2 or (len(parts) == 1 and columns is None):
        return parts[0]
    wanted = columns or slice(None)
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts, dim=1)[:, wanted].contiguous()
    width = sum(part.shape[1] for part in parts)

    def read(rows: slice) -> torch.Tensor:
        return torch.cat([part.read(rows) for part in parts], dim=1)[:, wanted].contiguous()

    return Rows((parts[0].shape[0], len(range(width)[wanted])), parts[0].dtype, _ROWS, read)


def _stored_rows(file: Path, key: str, stored: Any) -> Rows | None:
    """A matrix as it lies in the file; None for what is no matrix."""
    shape = tuple(stored.get_shape())
    if len(shape) != 2:
        return None

    def read(rows: slice) -> torch.Tensor:
        with safe_open(file, framework="pt") as opened:
            part: torch.Tensor = opened.get_slice(key)[rows]
            return part.clone()

    return Rows(shape, _TYPES[stored.get_dtype()], _ROWS, read)


def _checkpoints(folder: Path) -> list[tuple[int, int, Path]]:
    """(step, attempt, path) of the checkpoints in `folder`, oldest first."""
    try:
        found = [(match, path) for path in folder.iterdir() if (match := _FOLDER.fullmatch(path.name))]
    except FileNotFoundError:
        return []
    except OSError as error:
        remedy = "Give this user permission to read it"
        raise CheckpointError(f"cannot be listed: {error.strerror}", where=str(folder), remedy=remedy) from error
    return sorted((int(match[1]), int(match[2] or 0), path) for match, path in found)


def _grouped(tensors: Mapping[str, torch.Tensor | Rows]) -> list[tuple[str, dict[str, Any]]]:
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise ValueError(f"tensor name {key!r} is not GROUP.NAME, such as 'model.weight'")
        if isinstance(tensor, Rows):
            groups[match[1]][match[2]] = tensor
            continue
        if tensor.dtype not in _DTYPES or tensor.layout != torch.strided:
            raise ValueError(
                f"tensor {key!r} is {tensor.layout}, {tensor.dtype}: a checkpoint holds dense tensors only"
            )
        groups[match[1]][match[2]] = tensor.detach()
    return sorted(groups.items())


def _write_groups(
    folder: Path, groups: list[tuple[str, dict[str, Any]]], columns: slice | None
) -> dict[str, dict[str, Any]]:
    suffix = _SUFFIX if columns is None else f".{columns.start}-{columns.stop}{_SUFFIX}"
    return {name + suffix: _write(folder / (name + suffix), _safetensors(part)) for name, part in groups}


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write a file; gives its bytes and the SHA-256 of what left memory, not of what arrived."""
    digest, size = hashlib.sha256(), 0
    with open(path, "wb") as file:
        for part in parts:
            for start in range(0, len(part), _CHUNK):  # hashed and written while the chunk is in the cache
                chunk = part[start : start + _CHUNK]
                digest.update(chunk)
                size += file.write(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _safetensors(tensors: dict[str, torch.Tensor | Rows]) -> Iterator[bytes | memoryview]:
    """The parts of a safetensors file: header length, JSON header, the tensors' bytes.

    The library's own writer hides the error number of a full disk and needs all tensors on the CPU at once. Files are
    read with the library. Format: https://github.com/huggingface/safetensors#format
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))  # keeps every tensor aligned
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    yield len(encoded).to_bytes(8, "little") + encoded
    for _, tensor in ordered:
        for part in _parts(tensor):
            yield part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _parts(tensor: torch.Tensor | Rows) -> Iterator[torch.Tensor]:
    if isinstance(tensor, torch.Tensor):
        yield tensor
        return
    rows = tensor.shape[0]
    for start in range(0, rows, tensor.step):
        yield tensor.read(slice(start, min(start + tensor.step, rows)))


def _verify(path: Path, *, from_disk: bool = False) -> Manifest:
    """Compare every file with the manifest. `from_disk`: not with the system's cache of what was just written."""
    manifest = _manifest(path)
    for name, (size, sha256) in manifest.files.items():
        try:
            with open(path / name, "rb") as file:
                if from_disk and hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                found_size = os.fstat(file.fileno()).st_size
                found_sha256 = hashlib.file_digest(file, "sha256").hexdigest() if found_size == size else ""
        except OSError as error:
            raise _damaged(path / name, f"cannot be read: {error.strerror}") from error
        if found_size != size:
            raise _damaged(path / name, f"has {found_size:,} bytes where the manifest has {size:,}")
        if found_sha256 != sha256:
            raise _damaged(path / name, f"has the SHA-256 {found_sha256} where the manifest has {sha256}")
    return manifest


def _manifest(path: Path) -> Manifest:
    file = path / _MANIFEST
    try:
        content = json.loads(file.read_bytes())
        kind, version = content["format"], content["version"]
        if kind != FORMAT or version not in VERSIONS.values():
            known = " and ".join(map(str, VERSIONS.values()))
            raise CheckpointError(
                f"is {kind} version {version}, and this gnnrec reads {FORMAT} versions {known}",
                where=str(file),
                remedy="Use the version of gnnrec that wrote it",
            )
        files = {
            Path(name).name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in content["files"].items()
        }
        manifest = Manifest(int(content["step"]), files)
    except OSError as error:
        raise _damaged(file, f"cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(file, f"is not the manifest of a checkpoint: {error!r}") from error
    named = _FOLDER.fullmatch(path.name)
    if named and int(named[1]) != manifest.step:
        raise _damaged(file, f"is of step {manifest.step}, in the folder {path.name}")
    if _STATE not in files:
        raise _damaged(file, f"does not list {_STATE}")
    return manifest


def _damaged(file: Path, found: str) -> CheckpointError:
    remedy = "Restore the folder from a copy, or remove it so that the checkpoint before it is used"
    return CheckpointError(found, where=str(file), remedy=remedy)
