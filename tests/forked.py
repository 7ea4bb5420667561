"""The command in a process forked from one that has done the imports: the test of a message takes .2 s, not 3."""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["gnnrec.training.run", "gnnrec.recommend", "hydra.main", "torch._dynamo"])


def gnnrec(
    *args: object, cwd: Path, limit: int = resource.RLIM_INFINITY, terminal: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `gnnrec ARGS`.

    Args:
        cwd: the working directory; its `no data` is where data sets would be.
        limit: the most bytes that a file may have.
        terminal: where the output goes instead of into the result; it must hold all of it.
    """
    process = start(*args, cwd=cwd, limit=limit, terminal=terminal)
    process.join()
    assert process.exitcode is not None
    files = _files(cwd)
    return subprocess.CompletedProcess(list(map(str, args)), process.exitcode, *(file.read_text() for file in files))


def start(*args: object, cwd: Path, limit: int = resource.RLIM_INFINITY, terminal: str | None = None) -> BaseProcess:
    """As `gnnrec`, but the process still runs."""
    files = _files(cwd)
    for file in files:
        file.write_text("")
    streams = [terminal or str(files[0]), str(files[1])]
    process = _CONTEXT.Process(target=_call, args=(list(map(str, args)), cwd, limit, streams))
    process.start()
    return process


def _files(cwd: Path) -> list[Path]:
    return [cwd.parent / f"{cwd.name}.{name}" for name in ("out", "err")]


class Rank(NamedTuple):
    """One of several processes: what it has printed so far is in its files."""

    process: Any
    out: Path
    err: Path


def ranks(*args: object, cwd: Path, size: int = 2, restarts: int = 0, store: int | None = None) -> list[Rank]:
    """Start `gnnrec ARGS` in so many processes, which go on meanwhile, with the environment that torchrun gives them.

    Args:
        cwd: the working directory.
        size: how many.
        restarts: how often they were started before.
        store: the port of torchrun's store; without one the first process has a store of its own.
    """
    port = store
    if port is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    started = []
    for rank in range(size):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        environment = {name: str(value) for name, value in names.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment["TORCHELASTIC_RESTART_COUNT"] = str(restarts)
        environment["TORCHELASTIC_USE_AGENT_STORE"] = str(store is not None)
        out, err = (cwd.parent / f"{cwd.name}.{rank}.{name}" for name in ("out", "err"))
        for file in (out, err):
            file.write_text("")
        given = [str(arg) for arg in args], cwd, resource.RLIM_INFINITY, [str(out), str(err)], environment
        process = _CONTEXT.Process(target=_call, args=given)
        process.start()
        started.append(Rank(process, out, err))
    return started


def _call(
    words: list[str], cwd: Path, limit: int, streams: list[str], environment: Mapping[str, str] = MappingProxyType({})
) -> None:
    from gnnrec.cli import main

    os.environ.update(environment)
    for descriptor, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_NOCTTY), descriptor)
    os.chdir(cwd)
    os.environ["GNNREC_DATA"] = str(cwd / "no data")
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = ["gnnrec", *words]
    main()
