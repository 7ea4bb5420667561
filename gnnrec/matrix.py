"""Models x data sets x seeds, trained one after the other in this process: a sweep from Python."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from gnnrec import sweeps
from gnnrec.config import TrainConfig
from gnnrec.config.checks import one_of
from gnnrec.config.recipes import CONF, composed
from gnnrec.errors import ConfigError, GnnrecError
from gnnrec.storage import locked, storage_errors
from gnnrec.training import run as runs
from gnnrec.training import runlog

Choices = Sequence[str] | Mapping[str, Sequence[str]]


def experiment(
    models: Choices,
    datasets: Choices,
    seeds: Sequence[int] = (0,),
    *,
    overrides: Sequence[str] = (),
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Train and evaluate every model on every data set with every seed, as `gnnrec train -m` does.

    Args:
        models: names of `conf/model` or of recipes in `conf/experiment`, or your own names with the overrides that each
            stands for: {"MF": ["experiment=large_batch", "model.layers=0"]}.
        datasets: names of `conf/data`, or likewise: {"shop": ["data=files", "data.log=ratings.csv"]}.
        seeds: of initial embeddings and samplers.
        overrides: of all trainings, such as "trainer.epochs=5", as on the command line; "view=plain" shows them.
        folder: for a run directory each, as a sweep leaves them; the same call then goes on with what is there. By
            default nothing is kept.

    Returns:
        A row a training: job, model, data, seed, status (done, or failed), metrics such as `test_recall@20`,
        best_epoch, epochs, seconds, train_seconds, peak_rss_bytes, and message: what went wrong.

    Raises:
        ConfigError: a name, or an override, that cannot be used; the folder holds another experiment.
        Interrupted: by a signal.
    """
    known = {"model": _names("model"), "experiment": _names("experiment")}
    chosen = _overrides("models", models, known), _overrides("datasets", datasets, {"data": _names("data")})
    named, jobs = {}, {}
    for number, (model, data, seed) in enumerate(itertools.product(*chosen, seeds)):
        named[number] = {"model": model, "data": data, "seed": seed}
        jobs[number] = ["view=quiet", *chosen[0][model], *chosen[1][data], f"seed={seed}", *overrides]
    if not jobs:
        raise ConfigError("nothing to train", where="experiment", remedy="Name a model, a data set and a seed at least")
    configs = {number: composed(words) for number, words in jobs.items()}  # all are read before one is trained
    with _kept(folder) as path:
        sweeps.check_same(path, jobs)
        for number, words in jobs.items():
            _train(configs[number], path / str(number), words)
        return sweeps.gather(path, jobs, named)


def _names(group: str) -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in (CONF / group).glob("*.yaml")))


def _overrides(where: str, chosen: Choices, known: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """What each name stands for."""
    if isinstance(chosen, Mapping):
        return {name: list(words) for name, words in chosen.items()}
    groups = {name: group for group, names in known.items() for name in names}
    for name in chosen:
        one_of(where, name, tuple(groups))
    return {name: [f"{groups[name]}={name}"] for name in chosen}


@contextlib.contextmanager
def _kept(folder: str | Path | None) -> Iterator[Path]:
    """The folder for the runs, which no other process uses meanwhile."""
    if folder is None:
        with tempfile.TemporaryDirectory() as path:
            yield Path(path)
        return
    with storage_errors(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    with locked(Path(folder, ".lock"), "another process is sweeping in this folder"):
        yield Path(folder)


def _train(config: TrainConfig, run_dir: Path, words: Sequence[str]) -> None:
    """Train, unless that was done before; what went wrong is in the job's record."""
    try:
        with sweeps.recorded(run_dir, words) as job:
            if not job.is_done(config):
                runlog.reset_peak_rss()
                run, _ = runs.train(replace(config, resume=sweeps.is_run(run_dir)), run_dir)
                with run:
                    pass
            job.write("done")
    except (GnnrecError, OSError) as error:
        if hasattr(error, "signum"):
            raise
