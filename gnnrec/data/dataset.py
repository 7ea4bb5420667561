"""From a data section of the config to training, validation and test part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gnnrec.config import DataConfig
from gnnrec.data import catalog, fractal, readers, splits, synthetic
from gnnrec.data.interactions import Interactions
from gnnrec.errors import ConfigError, DataError


@dataclass(frozen=True)
class Dataset:
    """The parts of a data set; they share their id maps.

    Args:
        name: what to call it.
        train, test: the parts; valid: None where training uses all of the training part.
        truth: the planted model of generated data.
    """

    name: str
    train: Interactions
    valid: Interactions | None
    test: Interactions
    truth: synthetic.PlantedModel | None = None

    def counts(self) -> dict[str, int]:
        """Number of users, items and interactions of each part."""
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        sizes = {name: len(part) for name, part in parts.items() if part is not None}
        return {"users": self.train.num_users, "items": self.train.num_items} | sizes

    def of_users(self, users: slice) -> Dataset:
        """The interactions of these users alone, with the same id maps."""

        def kept(part: Interactions) -> Interactions:
            return part.take((part.users >= users.start) & (part.users < users.stop))

        valid = None if self.valid is None else kept(self.valid)
        return Dataset(self.name, kept(self.train), valid, kept(self.test))


def load(config: DataConfig) -> Dataset:
    """Read, clean and split what the config names.

    Raises:
        DataError: a file or column is missing, a row cannot be read, nothing is left, a part is empty.
    """
    truth = None
    if config.source == "synthetic":
        made = synthetic.generate(
            config.synthetic.num_users,
            config.synthetic.num_items,
            config.synthetic.num_interactions,
            communities=config.synthetic.communities,
            popularity_exponent=config.synthetic.popularity_exponent,
            noise=config.synthetic.noise,
            seed=config.seed,
        )
        parts, truth = [made.log], made.truth
    elif config.source == "fractal":
        parts = [_expand(config)]
    elif config.source == "catalog":
        parts = catalog.read(config.name, config.root)
    else:
        parts = _read_files(config)
    if config.min_rating is not None:
        parts = [part.filter_rating(config.min_rating) for part in parts]
        for part in parts:
            if not len(part):
                found = f"no interaction of {part.name} is rated {config.min_rating} or better"
                raise DataError(found, where="data.min_rating", remedy="Lower it, or look at data.columns.rating")
    if config.duplicates != "keep":
        parts = [part.deduplicate(config.duplicates) for part in parts]
    valid = None
    if len(parts) == 1:
        train, test = _split_log(parts[0], config)
        if config.k_core:
            truth = None  # it numbers the users and items of the whole log
    elif config.k_core:
        raise ConfigError(
            f"is {config.k_core}, but the files are split already",
            where="data.k_core",
            remedy="Filter the files beforehand, or give one log as data.log=FILE",
        )
    else:
        train, *middle, test = parts
        valid = middle[0] if middle else None
        _check_apart(parts)
    if valid is None and config.valid_ratio:
        train, valid = splits.carve_valid(train, config.valid_ratio, config.seed, config.valid_by)
    for part in (train, test):
        if not len(part):
            raise DataError("is empty", where=part.name, remedy="Check the file, the columns and the filters")
    return Dataset(config.name, train, valid, test, truth)


def sizes(config: DataConfig) -> tuple[int, int, int] | None:
    """Users, items and interactions that the config names, before filters; None of files, which would have to be read.

    Raises:
        DataError: no such data set.
    """
    if config.source == "synthetic":
        made = config.synthetic
        return made.num_users, made.num_items, made.num_interactions
    if config.source == "fractal":
        assert config.num_users is not None
        assert config.num_items is not None
        assert config.num_interactions is not None
        return config.num_users, config.num_items, config.num_interactions
    if config.source == "catalog":
        found = catalog.entry(config.name)
        return found.users, found.items, sum(found.interactions)
    return None


def _check_apart(parts: list[Interactions]) -> None:
    """Raise a DataError where a pair stands twice: what is trained on is left out of rankings and could not be hit."""
    pairs = np.sort(np.concatenate([part.users.astype(np.int64) * part.num_items + part.items for part in parts]))
    repeated = int(np.count_nonzero(pairs[1:] == pairs[:-1]))
    if repeated:
        raise DataError(
            f"{repeated} (user, item) pairs stand in more than one part, or twice in one",
            where=", ".join(part.name for part in parts),
            remedy="Take them out of the later parts; repeats within a part go with data.duplicates=first",
        )


def _expand(config: DataConfig) -> Interactions:
    """The fractal expansion of a data set of the catalog, all its parts together."""
    assert config.base is not None
    assert config.num_users is not None
    assert config.num_items is not None
    assert config.num_interactions is not None
    sizes = config.num_users, config.num_items, config.num_interactions
    return fractal.generate(catalog.read(config.base, config.root), *sizes, config.seed)


def _read_files(config: DataConfig) -> list[Interactions]:
    """The log, or training, validation (where given) and test file."""
    files = [config.log] if config.log else [config.train, config.valid, config.test]
    return readers.read_split(
        [Path(file) for file in files if file],
        format=config.format,
        user=config.columns.user,
        item=config.columns.item,
        rating=config.columns.rating,
        timestamp=config.columns.timestamp,
        delimiter=config.delimiter,
        header=config.header,
    )


def _split_log(log: Interactions, config: DataConfig) -> tuple[Interactions, Interactions]:
    if config.k_core:
        core = log.k_core(config.k_core, config.k_core).compact()
        if not len(core):
            raise DataError(
                f"nothing of {log.name} has {config.k_core} interactions a user and an item",
                where="data.k_core",
                remedy="Lower it",
            )
        log = core
    ratios = (1 - config.split.test_ratio, config.split.test_ratio)
    train, test = splits.split(log, by=config.split.by, ratios=ratios, seed=config.seed)
    return train, test
