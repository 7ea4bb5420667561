"""The command in a process forked from one that has done the imports: the test of a message takes .2 s, not 3."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["gnnrec.training.run", "gnnrec.recommend", "hydra.main"])


def gnnrec(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `gnnrec ARGS` in the folder, whose `no data` is where data sets would be; nothing reads a terminal."""
    words = [str(arg) for arg in args]
    streams = [cwd.parent / f"{cwd.name}.{name}" for name in ("out", "err")]
    process = _CONTEXT.Process(target=_call, args=(words, cwd, streams))
    process.start()
    process.join()
    assert process.exitcode is not None
    return subprocess.CompletedProcess(words, process.exitcode, *(stream.read_text() for stream in streams))


def _call(words: list[str], cwd: Path, streams: list[Path]) -> None:
    from gnnrec.cli import main

    for descriptor, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(cwd)
    os.environ["GNNREC_DATA"] = str(cwd / "no data")
    sys.argv = ["gnnrec", *words]
    main()
