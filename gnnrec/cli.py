"""The command line: `gnnrec APP [VERB] [overrides]`.

An app is a config in `conf/` and one function here. Hydra composes the config; the messages for a user's mistakes, the
exit codes (0 done, 2 the user can mend it, 130 and 143 interrupted, 1 a defect of ours) and the tables are made here.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gnnrec.errors import ConfigError, GnnrecError

if TYPE_CHECKING:
    import pandas as pd

CONF = Path(__file__).resolve().parent / "conf"


def train(values: dict[str, Any], run_dir: Path, verb: str) -> None:
    """Train a model, evaluate it, show metrics and ten recommendations."""
    from gnnrec.config import TrainConfig
    from gnnrec.training import run as runs

    config = TrainConfig.from_dict(values)
    run, summary = runs.train(config, run_dir)
    _show_metrics(summary)
    _show_recommendations(run)
    print(f"run directory: {run_dir}")


def evaluate(values: dict[str, Any], run_dir: Path, verb: str) -> None:
    """Evaluate one or several runs again, at any cut-offs."""
    import pandas as pd

    from gnnrec import recommend as output
    from gnnrec.training import run as runs

    if values["out"] is not None:
        output.check_suffix(Path(values["out"]))
    _set_threads(values["threads"])
    rows = []
    for path in _runs(values["run"]):
        run = runs.open_run(path)
        ks = values["k"] or run.config.evaluation.k
        for part, metrics in runs.evaluate(run, [ks] if isinstance(ks, int) else list(ks)).items():
            rows.append({"run": str(path), "part": part} | metrics)
    _give(pd.DataFrame(rows), values["out"])


def recommend(values: dict[str, Any], run_dir: Path, verb: str) -> None:
    """Recommend items, find similar ones, export embeddings."""
    from gnnrec import recommend as output
    from gnnrec.data import readers
    from gnnrec.training import run as runs

    out = None if values["out"] is None else Path(values["out"])
    if out is not None and verb != "embeddings":
        output.check_suffix(out)
    _set_threads(values["threads"])
    run = runs.open_run(_runs(values["run"])[0])
    scorer, k, log = run.model.scorer(), int(values["k"]), run.data.train
    if verb == "embeddings":
        if out is None:
            raise ConfigError("is not set", where="out", remedy="Give a folder for users.parquet and items.parquet")
        output.write_embeddings(output.embeddings(scorer, log.user_ids, log.item_ids), out)
        print(f"{out}/users.parquet and items.parquet")
    elif verb == "new_users":
        if values["history"] is None:
            raise ConfigError("is not set", where="history", remedy="Give a table with the columns user and item")
        columns = values["columns"]
        history = readers.read_interactions(Path(values["history"]), user=columns["user"], item=columns["item"])
        _give(output.recommend_new_users(scorer, log.item_ids, history, k), values["out"])
    elif verb == "similar_items":
        items = None if values["items"] is None else output.read_ids(Path(values["items"]), "item")
        _give(output.similar_items(scorer, log.item_ids, items, k), values["out"])
    else:
        users = None if values["users"] is None else output.read_ids(Path(values["users"]), "user")
        seen = run.seen(with_valid=True) if values["exclude_seen"] else None
        _give(output.recommend(scorer, log.user_ids, log.item_ids, seen, users, k), values["out"])


def data(values: dict[str, Any], run_dir: Path, verb: str) -> None:
    """List the catalog, describe a data set, fetch one."""
    from gnnrec.data import catalog

    root = values["root"]
    if verb == "list":
        _table("", [_catalog_row(catalog.describe(entry.name, root)) for entry in catalog.catalog()])
        return
    if values["name"] is None:
        known = ", ".join(entry.name for entry in catalog.catalog())
        raise ConfigError("is not set", where="name", remedy=f"Add name=NAME, one of: {known}")
    if verb == "fetch":
        print(f"{values['name']} is in {catalog.fetch(values['name'], root, progress=_Percent())}")
        return
    described = catalog.describe(values["name"], root)
    files = described.pop("files")
    for key, value in described.items():
        print(f"{key:>12}  {value}")
    _table("", files)


class App(NamedTuple):
    """An app: its function, and its verbs (the first is the default, "" means it can be left out)."""

    function: Callable[[dict[str, Any], Path, str], None]
    verbs: tuple[str, ...] = ("",)


APPS = {
    "train": App(train),
    "evaluate": App(evaluate),
    "recommend": App(recommend, ("", "new_users", "similar_items", "embeddings")),
    "data": App(data, ("list", "info", "fetch")),
}


def main() -> None:
    """Entry point of the `gnnrec` command."""
    args = sys.argv[1:]
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        raise SystemExit(0)
    if args[0] == "--version":
        from importlib.metadata import version

        print(f"gnnrec {version('gnnrec')}")
        raise SystemExit(0)
    raise SystemExit(_run(args[0], args[1:]))


def _run(name: str, args: list[str]) -> int:
    """Run an app; returns the exit code."""
    try:
        app = APPS.get(name)
        if app is None:
            raise ConfigError(f"there is no app {name!r}", remedy=_near(name, list(APPS)))
        verb = app.verbs[0]
        if args and re.fullmatch(r"\w+", args[0]):
            verb, args = args[0], args[1:]
            if verb not in app.verbs or not verb:
                known = [word for word in app.verbs if word]
                raise ConfigError(
                    f"{name} knows no {verb!r}",
                    remedy=_near(verb, known) if known else "Options are given as KEY=VALUE",
                )
        _compose_and_call(name, app, verb, args)
    except GnnrecError as error:
        print(f"gnnrec: {error}", file=sys.stderr)
        signum = getattr(error, "signum", None)
        return 2 if signum is None else 128 + signum
    except KeyboardInterrupt:
        print("gnnrec: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `gnnrec ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def _compose_and_call(name: str, app: App, verb: str, args: list[str]) -> None:
    """Let Hydra compose the app's config from `args` and call the app's function, once or once a job of a sweep."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from gnnrec.storage import storage_errors

    def task(config: DictConfig) -> None:
        run_dir = Path(HydraConfig.get().runtime.output_dir)
        values = OmegaConf.to_container(config, resolve=True)
        assert isinstance(values, dict)
        try:
            app.function({str(key): value for key, value in values.items() if key != "experiment"}, run_dir, verb)
        except GnnrecError:
            if run_dir.is_dir() and not any(run_dir.iterdir()):
                run_dir.rmdir()  # made by Hydra for a run that never began
            raise

    if any(arg.startswith("--experimental-rerun") for arg in args):
        raise ConfigError("--experimental-rerun reads a pickle, which could run any code", remedy="Leave it out")
    # With this set, Hydra lets exceptions through instead of printing them and leaving with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [f"gnnrec {name}", *args]
    try:
        with storage_errors("hydra.run.dir"):
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise _explained(error, name, args) from error
    except ValueError as error:
        if isinstance(error, GnnrecError) or not _raised_by_hydra(error):
            raise
        raise ConfigError(str(error), remedy="See gnnrec --help") from error


def _raised_by_hydra(error: BaseException) -> bool:
    """Whether the error comes from Hydra's own frames: a command line it does not understand."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and frame.tb_frame.f_globals.get("__name__", "").startswith(("hydra.", "omegaconf."))


def _explained(error: Exception, name: str, args: list[str]) -> ConfigError:
    """Hydra's error as one message with the nearest known name."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import MissingConfigException
    from omegaconf import OmegaConf

    text = str(error).strip()
    if isinstance(error, MissingConfigException) and error.options:
        missing = (error.missing_cfg_file or "").rpartition("/")
        return ConfigError(f"there is no {missing[0]}={missing[2]}", remedy=_near(missing[2], list(error.options)))
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown is None:
        cause = f" ({error.__cause__})".splitlines()[0] if error.__cause__ else ""
        return ConfigError(" ".join(text.split()) + cause)
    key = unknown[1].split("@")[0]
    groups = [arg for arg in args if re.match(r"\w+=[\w-]+$", arg) and arg.split("=")[0] in os.listdir(CONF)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values = OmegaConf.to_container(compose(name, overrides=groups))
    known = _keys(values)
    near = _near(key, known)
    if "Known are" in near:  # too far from any whole key: by the last part, then list what stands beside it
        section, _, last = key.rpartition(".")
        beside = [other for other in known if other.rpartition(".")[0] == section] or known
        by_last = [other for other in known if other.rpartition(".")[2] == last]
        near = f"Did you mean {' or '.join(by_last)}?" if by_last else f"Known are: {', '.join(beside)}"
    return ConfigError(f"unknown key {key!r}", where="config", remedy=near)


def _keys(values: Any, prefix: str = "") -> list[str]:
    """All dotted keys of nested dicts."""
    found = []
    for key, value in values.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, dict):
            found += _keys(value, f"{prefix}{key}.")
    return found


def _near(name: str, known: list[str]) -> str:
    from gnnrec.config import did_you_mean

    return did_you_mean(name, known)


def _help() -> str:
    lines = ["gnnrec APP [VERB] [KEY=VALUE ...]    train GNN recommenders on one machine", "", "Apps:"]
    for name, app in APPS.items():
        verbs = "|".join(verb for verb in app.verbs if verb)
        lines.append(f"  {name + (' ' + verbs if verbs else ''):<48}{app.function.__doc__}")
    groups = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())
    lines += ["", "Configuration groups of train (GROUP=NAME):"]
    for group in groups:
        names = sorted(file.stem for file in (CONF / group).glob("*.yaml") if not file.stem.startswith("_"))
        lines.append(f"  {group + '=' + '|'.join(names)}")
    lines += [
        "",
        "`gnnrec APP --help` shows every key with its value, `-m` sweeps over comma-separated values, `--cfg job`",
        "prints the composed configuration. Example: gnnrec train data=gowalla model.layers=2 trainer.epochs=20",
    ]
    return "\n".join(lines)


def _runs(value: Any) -> list[Path]:
    if not value:
        raise ConfigError("is not set", where="run", remedy="Add run=DIR, the directory that a training left")
    return [Path(path) for path in ([value] if isinstance(value, str) else value)]


def _set_threads(threads: int | None) -> None:
    from gnnrec.training.run import set_threads

    if threads is not None:
        set_threads(threads)


def _give(frame: pd.DataFrame, out: str | None) -> None:
    """Write the table to a file, or show its beginning."""
    from gnnrec.recommend import write_table

    if out is not None:
        write_table(frame, Path(out))
        print(f"{len(frame)} rows in {out}")
        return
    shown = frame.head(50)
    _table("", _records(shown))
    if len(shown) < len(frame):
        print(f"... {len(frame) - len(shown)} rows more; out=FILE (.parquet, .csv, .json) keeps them all")


def _show_metrics(summary: dict[str, Any]) -> None:
    rows = [{"part": part} | metrics for part, metrics in summary["metrics"].items()]
    if "attainable" in summary["data"]:
        rows.append({"part": "test, best attainable"} | summary["data"]["attainable"])
    _table(f"metrics after epoch {summary['best_epoch']} of {summary['epochs']}", rows)
    print(
        f"training {summary['train_seconds']:.1f} s (compilation {summary['compile_seconds']:.1f} s), "
        f"evaluation {summary['eval_seconds']:.1f} s, peak memory {summary['peak_rss_bytes'] / 2**30:.2f} GiB"
    )


def _show_recommendations(run: Any) -> None:
    """Ten recommendations for the first user with a training item."""
    from gnnrec.recommend import recommend

    log = run.data.train
    user = log.user_ids.decode(log.users[:1])
    k = min(10, log.num_items)
    frame = recommend(run.model.scorer(), log.user_ids, log.item_ids, run.seen(with_valid=True), user, k)
    _table(f"recommendations for user {user[0]}", _records(frame[["rank", "item", "score"]]))


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def _catalog_row(described: dict[str, Any]) -> dict[str, Any]:
    states = {file["state"] for file in described["files"]}
    row = {key: described[key] for key in ("name", "users", "items", "interactions")}
    return row | {"here": states.pop() if len(states) == 1 else "incomplete", "source": described["source"]}


class _Percent:
    """Prints the progress of a download, a line every ten percent."""

    def __init__(self) -> None:
        self.shown = -1

    def __call__(self, done: int, total: int | None) -> None:
        tenths = 10 * done // total if total else 0
        if tenths > self.shown:
            self.shown = tenths
            print(f"{done / 1e6:.1f} MB" + (f" of {total / 1e6:.1f} MB" if total else ""), flush=True)


def _table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows with aligned columns."""
    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys(key for row in rows for key in row))
    if title:
        print(title)
    table = Table()
    for column in columns:
        numeric = all(isinstance(row.get(column, 0), int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(
            *(
                f"{value:.4f}" if isinstance(value, float) else str(value)
                for value in map(lambda c: row.get(c, ""), columns)
            )
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)
