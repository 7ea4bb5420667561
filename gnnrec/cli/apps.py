"""The apps: each is a config in `conf/` and one function, here or in a file of its own.

What takes long to import (torch, numba, pandas) is imported after the options are checked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gnnrec import ranks
from gnnrec.cli.calibrate import calibrate
from gnnrec.cli.plan import plan
from gnnrec.cli.plan import show as show_plan
from gnnrec.cli.report import report
from gnnrec.cli.show import (
    Percent,
    catalog_row,
    give,
    show_account,
    show_metrics,
    show_parts,
    show_profile,
    show_recommendations,
    table,
)
from gnnrec.cli.tiers import tiers
from gnnrec.config import (
    CatalogConfig,
    EvaluateConfig,
    RecommendConfig,
    TrainConfig,
    TuneConfig,
    check_rank_device,
    check_ranks,
    did_you_mean,
    fill,
)
from gnnrec.errors import ConfigError
from gnnrec.storage import storage_errors


def train(
    values: dict[str, Any], run_dir: Path, verb: str, hopeless: Callable[[int, float], bool] | None = None
) -> None:
    """Train a model, evaluate it, show metrics and ten recommendations."""
    config = TrainConfig.from_dict(values)
    check_ranks(config, ranks.count())

    from gnnrec import device as devices
    from gnnrec.training import run as runs

    timeout = config.distributed.timeout_seconds or ranks.TIMEOUT
    with ranks.joined(timeout, lambda: check_rank_device(config, devices.resolve(config.device).type)) as group:
        run, summary = runs.train(config, run_dir, on_plan=show_plan, hopeless=hopeless, ranks=group)
        with run:
            show_metrics(summary)
            show_account(summary)
            if config.profile == "on":
                show_profile(run_dir)
            show_recommendations(run)
    print(f"run directory: {run_dir}")


def evaluate(values: dict[str, Any], run_dir: Path, verb: str) -> None:
    """Evaluate one or several runs again, at any cut-offs."""
    config = fill(EvaluateConfig, values)
    config.validate()

    import pandas as pd

    from gnnrec import recommend as output
    from gnnrec.training import run as runs

    if config.out is not None:
        output.check_out(Path(config.out))
    if config.threads is not None:
        runs.set_threads(config.threads)
    parts = {}
    for path in config.run:
        with runs.open_run(Path(path), config.device) as run:
            for part, metrics in runs.evaluate(run, config.k or run.config.evaluation.k).items():
                parts[path, part] = metrics
    if config.out is None:
        show_parts({" ".join(key): metrics for key, metrics in parts.items()})
    else:
        rows = [{"run": path, "part": part} | metrics for (path, part), metrics in parts.items()]
        give(pd.DataFrame(rows), config.out)


def recommend(values: dict[str, Any], run_dir: Path, verb: str) -> None:
    """Recommend items, find similar ones, export embeddings."""
    config = fill(RecommendConfig, values)
    config.validate(verb)
    assert config.run is not None

    from gnnrec import recommend as output
    from gnnrec.data import readers
    from gnnrec.training import run as runs

    if config.out is not None and verb != "embeddings":
        output.check_out(Path(config.out))
    if config.threads is not None:
        runs.set_threads(config.threads)
    with runs.open_run(Path(config.run), config.device) as run:
        scorer, k, log = run.model.scorer(), config.k, run.data.train
        if verb == "embeddings":
            assert config.out is not None
            output.write_embeddings(output.embeddings(scorer, log.user_ids, log.item_ids), Path(config.out))
            print(f"{config.out}/users.parquet and items.parquet")
        elif verb == "new_users":
            user, item = config.columns.user, config.columns.item
            # As text: the model knows whether its ids are numbers.
            history = readers.read_interactions(config.history, user=user, item=item, ids_as_text=True)
            give(output.recommend_new_users(scorer, log.item_ids, history, k), config.out)
        elif verb == "similar_items":
            items = None if config.items is None else output.read_ids(Path(config.items), "item")
            give(output.similar_items(scorer, log.item_ids, items, k), config.out)
        else:
            users = None if config.users is None else output.read_ids(Path(config.users), "user")
            seen = run.seen(with_valid=True) if config.exclude_seen else None
            give(output.recommend(scorer, log.user_ids, log.item_ids, seen, users, k), config.out)


def data(values: dict[str, Any], run_dir: Path, verb: str) -> None:
    """List the catalog, describe a data set, fetch one."""
    from gnnrec.data import catalog

    config = fill(CatalogConfig, values)
    if verb == "list":
        table([catalog_row(catalog.describe(entry.name, config.root)) for entry in catalog.catalog()])
        return
    if config.name is None:
        known = [entry.name for entry in catalog.catalog()]
        raise ConfigError("is not set", where="name", remedy=f"Give one of: {', '.join(known)}")
    if verb == "fetch":
        print(f"{config.name} is in {catalog.fetch(config.name, config.root, progress=Percent())}")
        return
    for key, value in (described := catalog.describe(config.name, config.root)).items():
        if key != "files":
            print(f"{key:>12}  {value}")
    table(described["files"])


def tune(values: dict[str, Any], run_dir: Path, verb: str) -> None:
    """Measure the launch shapes of the GPU kernels, keep the fastest."""
    config = fill(TuneConfig, values)
    config.validate()

    import torch

    from gnnrec import device as devices
    from gnnrec.data import dataset
    from gnnrec.ops import tuner, tuning
    from gnnrec.training.run import graph_of

    operators = tuple(tuning.CANDIDATES) if config.operators is None else tuple(config.operators)
    for operator in operators:
        if operator not in tuning.CANDIDATES:
            remedy = did_you_mean(operator, list(tuning.CANDIDATES))
            raise ConfigError(f"is {operator!r}", where="operators", remedy=remedy)
    if not torch.cuda.is_available():
        remedy = "Launch shapes exist for the GPU's kernels alone; those of the CPU need none"
        raise devices.DeviceError("torch sees no GPU", where="gnnrec tune", remedy=remedy)
    graph, device = graph_of(dataset.load(config.data).train), devices.resolve("cuda")
    dtypes = [getattr(torch, name) for name in config.dtypes]
    options: Any = {"operators": operators, "dims": config.dims, "heads": config.heads, "dtypes": dtypes}
    options |= {"batches": config.batches, "ks": config.ks, "items": graph.num_items}
    out = None if config.out is None else Path(config.out)
    rows = []
    for tuned in tuner.tune(graph.norm_adjacency().to(device), **options):
        with storage_errors(out or tuning.user_file()):
            file = tuning.keep(dict.fromkeys(tuned.keys, tuned.shape), out)  # each at once: an interruption loses none
        shape = " ".join(f"{name}={value}" for name, value in tuned.shape.items())
        rows.append({"operator": tuned.operator, "dim": tuned.dim, "batch": tuned.batch or "", "dtype": tuned.dtype})
        rows[-1] |= {"launch shape": shape, "ms": 1000 * tuned.seconds, "default ms": 1000 * tuned.default_seconds}
    table(rows)
    print(f"kept in {file}")


class App(NamedTuple):
    """An app: its function, its verbs and which of them ("": none) is the default, the key that a bare word is for."""

    function: Callable[[dict[str, Any], Path, str], None]
    verbs: tuple[str, ...] = ()
    default: str = ""
    bare: str = ""


APPS = {
    "train": App(train),
    "evaluate": App(evaluate),
    "recommend": App(recommend, ("new_users", "similar_items", "embeddings")),
    "report": App(report),
    "tune": App(tune),
    "tiers": App(tiers),
    "calibrate": App(calibrate),
    "plan": App(plan),
    "data": App(data, ("list", "info", "fetch"), default="list", bare="name"),
}
