"""The command line: `gnnrec APP [VERB] [overrides]`.

An app is a config in `conf/` and one function in `apps.py`. Hydra composes the config; the messages for a user's
mistakes and the exit codes (0 done, 2 the user can mend it, 130 and 143 interrupted, 1 a defect of ours) are made here.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import textwrap
from typing import Any

from gnnrec import process, ranks
from gnnrec.cli.apps import APPS
from gnnrec.cli.show import complain
from gnnrec.config import did_you_mean
from gnnrec.config.recipes import CONF
from gnnrec.errors import ConfigError, GnnrecError
from gnnrec.storage import storage_errors

__all__ = ["APPS", "CONF", "main", "run"]

# Of Hydra's options, those that have a use here. (--experimental-rerun reads a pickle, which could run any code.)
FLAGS = ("-m", "--multirun", "-c", "--cfg", "-p", "--package", "--resolve", "-i", "--info", "-cd", "--config-dir")

# What brings choices that Hydra itself does not have.
PLUGINS = {"hydra/launcher=joblib": "hydra-joblib-launcher"}
PLUGINS |= dict.fromkeys(("hydra/launcher=submitit_slurm", "hydra/launcher=submitit_local"), "hydra-submitit-launcher")


def main() -> None:
    """Entry point of the `gnnrec` command."""
    process.prepare()
    args = sys.argv[1:]
    if not ranks.shows():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - as long as this process
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        raise SystemExit(0)
    if args[0] == "--version":
        from importlib.metadata import version

        print(f"gnnrec {version('gnnrec')}")
        raise SystemExit(0)
    raise SystemExit(run(args[0], args[1:]))


def run(name: str, args: list[str]) -> int:
    """Run an app; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what is half-written is then removed
    try:
        if name not in APPS:
            remedy = f"Put an app before it: gnnrec train {name}" if "=" in name else did_you_mean(name, list(APPS))
            raise ConfigError(f"there is no app {name!r}", remedy=remedy)
        if ranks.launched() and (name != "train" or {"-m", "--multirun"} & set(args)):
            remedy = "Start it without torchrun; what ranks have trained is read by a single process"
            raise ConfigError("several processes can only train, one run", where="torchrun", remedy=remedy)
        if {"-h", "--help"} & set(args):
            print(_app_help(name, args))
        else:
            _compose_and_call(name, *_verb_and_options(name, args))
        sys.stdout.flush()
    except GnnrecError as error:
        return complain(error)
    except KeyboardInterrupt:
        if ranks.speaks("interrupted"):
            print("gnnrec: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC) or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still buffered
        if error.errno == errno.ENOSPC:
            return complain(GnnrecError("no space left", where="standard output", remedy="Free some space"))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return 0  # also for `gnnrec ... | head`


def _verb_and_options(name: str, args: list[str]) -> tuple[str, list[str]]:
    """The verb and what is left for Hydra, whose options come first: it takes none between overrides."""
    app, verb = APPS[name], APPS[name].default
    if args and re.fullmatch(r"\w+", args[0]):
        verb, args = args[0], args[1:]
        if verb not in app.verbs:
            remedy = did_you_mean(verb, list(app.verbs)) if app.verbs else "Options are given as KEY=VALUE"
            raise ConfigError(f"{name} knows no {verb!r}", remedy=remedy)
    if app.bare and args and re.fullmatch(r"[\w-]+", args[0]) and not args[0].startswith("-"):
        args = [f"{app.bare}={args[0]}", *args[1:]]
    for arg in args:
        if arg.startswith("-") and arg.partition("=")[0] not in FLAGS:
            key = arg.lstrip("-").replace("-", "_")
            remedy = f"Options are given as {key if '=' in key else key + '=VALUE'}; see gnnrec {name} --help"
            raise ConfigError(f"there is no option {arg!r}", remedy=remedy)
    return verb, sorted(args, key=lambda arg: arg not in ("-m", "--multirun"))


def _compose_and_call(name: str, verb: str, args: list[str]) -> None:
    """Let Hydra compose the app's config from `args` and call the app's function, once or once a job of a sweep."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from gnnrec.cli import folders
    from gnnrec.cli.jobs import Ended, Task

    folders.check(args)
    task = Task(name, verb)
    if name == "train":
        from gnnrec.cli import search

        search.register()
    # With this set, Hydra lets exceptions through instead of printing them and leaving with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [f"gnnrec {name}", *args]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(task)()
    except Ended as ended:
        raise ended.error from None
    except (HydraException, OmegaConfBaseException) as error:
        raise _explained(error, name, args) from error
    except (OSError, ValueError) as error:
        if task.running or isinstance(error, GnnrecError):
            raise
        if isinstance(error, OSError):
            with storage_errors(error.filename or "."):  # the run directory
                raise
        raise ConfigError(str(error), remedy="Choose by GROUP=NAME, leave out by ~GROUP") from error


def _explained(error: Exception, name: str, args: list[str]) -> ConfigError:
    """Hydra's error as one message with the nearest known name."""
    from hydra.errors import MissingConfigException, OverrideParseException

    text = " ".join(str(error).split()).partition(" See https://")[0]
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"{error.override!r} cannot be read ({text})",
            where="command line",
            remedy="Options are given as KEY=VALUE, without spaces; lists as KEY=[1,2]",
        )
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        if package := PLUGINS.get(f"{group}={option}"):
            return ConfigError(
                f"{package} is not installed", where=f"{group}={option}", remedy=f"pip install {package}"
            )
        return ConfigError(f"there is no {group}={option}", remedy=did_you_mean(option, list(error.options)))
    if twice := re.match(r"Multiple values for (\w+)", text):
        return ConfigError(f"{twice[1]} is chosen twice", remedy=f"Write {twice[1]}=NAME, without the +")
    if unknown := re.search(r"Could not override '([^']+)'", text):
        return _unknown(unknown[1].split("@")[0], name, args)
    cause = f" ({error.__cause__})".splitlines()[0] if error.__cause__ else ""
    return ConfigError(text + cause, where="command line")


def _unknown(key: str, name: str, args: list[str]) -> ConfigError:
    """What to say of a key that the composed config does not have."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf
    from yaml import safe_load

    groups = _groups(name)
    chosen = [arg for arg in args if arg in {f"{group}={option}" for group in groups for option in _options(group)}]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values = OmegaConf.to_container(compose(name, overrides=chosen))
    known, section = _keys(values), key.partition(".")[0]
    if section in groups and section != key:
        if section not in known:
            found = f"has no effect: there is no {section} with {' '.join(chosen) or 'this configuration'}"
            return ConfigError(found, where=key, remedy="Leave it out")
        options = {file.stem: safe_load(file.read_text()) for file in sorted((CONF / section).glob("*.yaml"))}
        owners = [f"{section}={option}" for option, keys in options.items() if key in _keys({section: keys} | keys)]
        if owners:
            return ConfigError("unknown key", where=key, remedy=f"It belongs to {' or '.join(owners)}: add that")
    near = did_you_mean(key, known)
    if "Known are" in near:  # too far from any whole key: by the last part, then list what stands beside it
        parent, _, last = key.rpartition(".")
        beside = [other for other in known if other.rpartition(".")[0] == (parent if parent in known else "")]
        by_last = [other for other in known if other.rpartition(".")[2] == last]
        near = f"Did you mean {' or '.join(by_last)}?" if by_last else f"Known are: {', '.join(beside)}"
    return ConfigError("unknown key", where=key, remedy=near)


def _keys(values: Any, prefix: str = "") -> list[str]:
    """All dotted keys of nested dicts."""
    found = []
    for key, value in values.items():
        found += [f"{prefix}{key}", *_keys(value if isinstance(value, dict) else {}, f"{prefix}{key}.")]
    return found


def _help() -> str:
    lines = ["gnnrec APP [VERB] [KEY=VALUE ...]    train GNN recommenders on one machine", "", "Apps:"]
    for name, app in APPS.items():
        lines.append(f"  {name + ' ' + '|'.join(app.verbs):<48}{app.function.__doc__}")
    lines += ["", "Configuration groups of train (GROUP=NAME):"]
    lines += [f"  {group.name}={'|'.join(_options(group.name))}" for group in sorted(CONF.iterdir()) if group.is_dir()]
    lines += [
        "",
        "`gnnrec APP --help` explains every key, `-m` sweeps over comma-separated values, `--cfg job` prints the",
        "composed configuration. Example: gnnrec train data=gowalla model.layers=2 trainer.epochs=20",
    ]
    return "\n".join(lines)


def _app_help(name: str, args: list[str]) -> str:
    """The app's keys with values and comments, and those of each group's option in `args`, else of the default."""
    app = APPS[name]
    verbs = f" [{'|'.join(app.verbs)}]" if app.verbs else ""
    lines = [f"gnnrec {name}{verbs} [KEY=VALUE ...]", str(app.function.__doc__)]
    paragraphs = (CONF / f"{name}.yaml").read_text().strip().split("\n\n")
    lines += ["\n" + text for text in paragraphs if not text.startswith(("defaults:", "hydra:"))]
    chosen = dict(arg.split("=", 1) for arg in args if "=" in arg)
    for group, default in _groups(name).items():
        option = chosen.get(group, default)
        lines += ["", f"{group}={option or 'NAME'}    # one of {', '.join(_options(group))}"]
        if option in _options(group):
            lines.append(textwrap.indent((CONF / group / f"{option}.yaml").read_text().strip(), "  "))
    return "\n".join(lines)


def _groups(name: str) -> dict[str, str | None]:
    """The configuration groups of an app, with the option that each has by default."""
    from yaml import safe_load

    defaults = safe_load((CONF / f"{name}.yaml").read_text())["defaults"]
    groups = {group: option for entry in defaults if isinstance(entry, dict) for group, option in entry.items()}
    return {group: option for group, option in groups.items() if not group.startswith("override ")}


def _options(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))
