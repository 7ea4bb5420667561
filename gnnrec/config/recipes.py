"""The config of a training run as `gnnrec train` composes it from `conf/`, for callers from Python."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gnnrec.config.checks import one_of
from gnnrec.config.train import TrainConfig
from gnnrec.errors import ConfigError

CONF = Path(__file__).resolve().parents[1] / "conf"


def composed(overrides: Iterable[str]) -> TrainConfig:
    """The config of `gnnrec train` with these overrides, such as "experiment=large_batch" and "optimizer.lr=0.02".

    Raises:
        ConfigError: an override that cannot be read, or names what is not there; a value that cannot be used.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    overrides = list(overrides)
    for override in overrides:
        name, _, recipe = override.partition("=")
        if name == "experiment":
            one_of("experiment", recipe, tuple(file.stem for file in sorted((CONF / "experiment").glob("*.yaml"))))
    outer = GlobalHydra.instance().hydra  # of an application of the caller's own
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            values: Any = OmegaConf.to_container(compose("train", overrides=overrides), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        found = " ".join(str(error).split()).partition(" See https://")[0]
        remedy = "Overrides are KEY=VALUE, with keys as in conf/"
        raise ConfigError(f"cannot be used: {found}", where=" ".join(overrides), remedy=remedy) from error
    finally:
        if outer is not None:
            GlobalHydra.instance().clear()  # another instance by now
            GlobalHydra.instance().initialize(outer)
    return TrainConfig.from_dict(values)
