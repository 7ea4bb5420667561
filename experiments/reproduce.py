"""A study from its matrix to its tables and plots: STUDY.yaml says what is run, STUDY.py what is made of it.

    python experiments/reproduce.py published                    # GNNREC_DATA names the data sets' folder
    python experiments/reproduce.py published short=true         # seconds on made-up data: whether it works
    python experiments/reproduce.py published data=ml-100k seed=0,1 only=[MF,GF-CF] out=folder

A study with `sweeps` trains: each of them is one `gnnrec train -m` with the options of `each` and its own; others that
are given here replace those of `each`. Where it was interrupted, the same command goes on. A study with `arguments`
measures: they are options of STUDY.py, and so are others given here. `short` replaces some of either.

    short=true   a tiny form of the same
    only=[...]   of the sweeps these
    runs=FOLDER  of the jobs' run directories; default outputs/studies/STUDY/runs
    out=FOLDER   of STUDY.md, CSV files and plots; default outputs/studies/STUDY
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gnnrec import process

process.prepare()
# ruff: noqa: E402

import output
import pandas as pd
import yaml

from gnnrec import cli, sweeps
from gnnrec.config import did_you_mean
from gnnrec.data import catalog
from gnnrec.errors import ConfigError, GnnrecError
from gnnrec.report.cells import STAMP
from gnnrec.report.fields import elided

HERE = Path(__file__).parent


def main(arguments: Sequence[str]) -> int:
    """The command line; the exit code is that of `gnnrec train -m`: 2 where jobs failed, whose others are shown."""
    asked = bool({"-h", "--help"} & set(arguments))
    if asked or not arguments or "=" in arguments[0]:
        print(__doc__)
        return 0 if asked else 2
    name, *given = arguments
    try:
        settings = dict(_setting(each) for each in given)
        short = settings.pop("short", False)
        if not isinstance(short, bool):
            raise ConfigError(f"is {short!r}", where="short", remedy="It is true or false")
        study = load(name, short=short)
        folder = Path("outputs/studies", name + "-short" * study["short"])
        runs, out = (Path(settings.pop(key, default)) for key, default in (("runs", folder / "runs"), ("out", folder)))
        if "arguments" in study:
            script = importlib.import_module(study.get("script", name))
            code: int = script.main([*command_line(study["arguments"] | settings), "--out", str(out)])
            return code
        return trained(name, study, settings, runs, out)
    except GnnrecError as error:
        return cli.complain(error)
    except KeyboardInterrupt:
        return 130


def _setting(given: str) -> tuple[str, Any]:
    key, equals, value = given.partition("=")
    if not equals:
        raise ConfigError(f"{given!r} is no setting", where="command line", remedy="Settings are given as KEY=VALUE")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        remedy = "Values are YAML: 1, text, [1,2]"
        raise ConfigError(f"{value!r} cannot be read", where=key, remedy=remedy) from error


def load(name: str, *, short: bool = False) -> dict[str, Any]:
    """A study, with what its short form replaces if that is asked for; `axes`: data, seed, what has several values."""
    known = sorted(file.stem for file in HERE.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"there is no study {name!r}", remedy=did_you_mean(name, known))
    study: dict[str, Any] = yaml.safe_load((HERE / f"{name}.yaml").read_text())
    replaced, matrix = study.pop("short"), [study.get("each", {}), *study.get("sweeps", {}).values()]
    several = dict.fromkeys(key for part in matrix for key, value in part.items() if isinstance(value, list))
    axes = list({"data": None, "seed": None} | several)
    return (_merged(study, replaced) if short else study) | {"short": short, "axes": axes}


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    both = first.keys() & second.keys()
    nested = {key: _merged(first[key], second[key]) for key in both if isinstance(second[key], dict)}
    return first | second | nested


def trained(name: str, study: dict[str, Any], settings: dict[str, Any], runs: Path, out: Path) -> int:
    """Train what the study trains, and write what is made of it; gives the exit code."""
    each = study["each"] | {key: value for key, value in settings.items() if key != "only"}
    only = settings.get("only", list(study["sweeps"]))
    chosen, known = only if isinstance(only, list) else [only], list(study["sweeps"])
    if not chosen:
        raise ConfigError("names no sweep", where="only", remedy=f"Known are: {', '.join(known)}")
    for sweep in chosen:
        if sweep not in known:
            raise ConfigError(f"there is no sweep {sweep!r}", where="only", remedy=did_you_mean(str(sweep), known))
    each["data"], absent = at_hand(each["data"])
    options = {sweep: each | study["sweeps"][sweep] for sweep in chosen}
    output.folder(out)
    code = 0
    for sweep, own in options.items():
        words, before = [f"{key}={_sweep_word(value)}" for key, value in own.items()], _kept(runs / sweep)
        ended = cli.run("train", ["-m", *words, f"hydra.sweep.dir={runs / sweep}"])
        if ended not in (0, 2) or _kept(runs / sweep) == before:  # interrupted, or refused before a job began
            return ended
        code = max(code, ended)
    jobs = gathered({sweep: runs / sweep for sweep in options}, study["axes"])
    done = jobs[jobs["status"] == "done"]
    if done.empty:
        return code
    tables, figures = importlib.import_module(name).results(done, study)
    notes = [output.SHORT] if study["short"] else []
    notes += [f"{len(jobs) - len(done)} of {len(jobs)} jobs failed."] if len(done) < len(jobs) else []
    notes += [f"Not at hand, and left out: {', '.join(absent)}."] if absent else []
    conditions = output.conditions([Path(folder) for folder in jobs["folder"]])
    folders = [str(Path(folder).relative_to(runs)) for folder in jobs["folder"]]
    kept = jobs.assign(folder=folders, message=jobs["message"].map(elided))
    stamps = [STAMP if _simulated(Path(folder)) else "" for folder in jobs["folder"]]
    if any(stamps):
        kept.insert(0, "stamp", stamps)
    output.write(out, name, [*tables, conditions], figures, kept, notes)
    return code


def _kept(sweep: Path) -> int | None:
    """When a sweep's table was last written, in ns, which every sweep does whose jobs were begun."""
    table = sweep / sweeps.TABLES[0]
    return table.stat().st_mtime_ns if table.exists() else None


def _simulated(folder: Path) -> bool:
    """Whether a job's seconds are of a device that was made slower."""
    summary = folder / "summary.json"
    return summary.exists() and "simulated" in json.loads(summary.read_bytes()).get("memory", {})


def at_hand(names: Any) -> tuple[Any, list[str]]:
    """Of several data sets those whose files are there, and the names of the others; one alone is not looked for."""
    if not isinstance(names, list):
        return names, []
    public = {entry.name for entry in catalog.catalog()}
    files = {name: catalog.describe(name)["files"] for name in names if name in public}
    absent = [name for name, known in files.items() if any(file["state"] == "missing" for file in known)]
    if len(absent) == len(names):
        remedy = "Set GNNREC_DATA to their folder, or fetch one: gnnrec data fetch name=ml-100k"
        raise ConfigError(f"none is at hand of {', '.join(names)}", where="data", remedy=remedy)
    return [name for name in names if name not in absent], absent


def gathered(folders: dict[str, Path], axes: Iterable[str]) -> pd.DataFrame:
    """A row a job of these sweeps: sweep, the options on the matrix's axes, what `sweeps.gather` has, folder."""
    frames = []
    for sweep, folder in folders.items():
        jobs = sweeps.begun(folder)
        options = {number: dict(word.partition("=")[::2] for word in words) for number, words in jobs.items()}
        named = {
            number: {"sweep": sweep} | {key: yaml.safe_load(own[key]) for key in axes if key in own}
            for number, own in options.items()
        }
        frame = sweeps.gather(folder, jobs, named)
        frames.append(frame.assign(folder=[str(folder / str(number)) for number in jobs]))
    return pd.concat(frames, ignore_index=True)


def _sweep_word(value: Any) -> str:
    """A value, or several that a sweep goes over, as the command line has them."""
    if isinstance(value, list):
        return ",".join(map(_sweep_word, value))
    return value if isinstance(value, str) else json.dumps(value)


def command_line(settings: dict[str, Any]) -> list[str]:
    """Settings as options of a script; one of null is left out, a word without a key stands by itself."""
    words: list[str] = []
    for key, value in settings.items():
        if value is not None:
            words += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return words


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
