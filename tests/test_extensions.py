"""Models, losses, samplers and readers of a user's own package, and that a config alone runs nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import forked
import pytest

from gnnrec import extensions, recommend
from gnnrec.cli import folders
from gnnrec.config import (
    CustomLossConfig,
    CustomModelConfig,
    DataConfig,
    HardwareConfig,
    MemoryConfig,
    OptimizerConfig,
    PlanConfig,
    SplitConfig,
    TrainConfig,
    TrainerConfig,
)
from gnnrec.errors import ConfigError, DataError
from gnnrec.training import run

EXAMPLES = Path(__file__).parent.parent / "examples"
MODEL = CustomModelConfig(path="my_package.models:OneHop", options={"dim": 8})
LOSS = CustomLossConfig(path="my_package.losses:Hinge", options={"margin": 0.5}, batches="my_package.samplers:AnyItem")


@pytest.fixture
def allowed(monkeypatch):
    """The example's package, where it is found and may be run."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(extensions, "_allowed", {"my_package"})


def config(folder: Path, **changes) -> TrainConfig:
    """A training on a log of 30 users with 8 of 40 items each, in a format of the user's own."""
    rows = [{"who": f"u{user}", "what": (7 * user + 5 * n) % 40} for user in range(30) for n in range(8)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(log=str(folder / "log.jsonl"), format="my_package.readers:read_json_lines", split=SplitConfig())
    sections = {"model": MODEL, "loss": LOSS, "optimizer": OptimizerConfig(), "trainer": TrainerConfig(epochs=2)}
    return replace(TrainConfig(data=data, **sections), **changes)  # type: ignore[arg-type]


def test_a_run_of_ones_own_model_loss_sampler_and_reader(tmp_path, allowed, monkeypatch):
    told = config(tmp_path)
    told.validate()
    trained, summary = run.train(told, tmp_path / "run")
    assert type(trained.model).__name__ == "OneHop"
    assert trained.data.train.user_ids.ids.to_pylist()[:2] == ["u0", "u1"]
    opened = run.open_run(tmp_path / "run")
    assert run.evaluate(opened, [20]) == summary["metrics"]
    log, scorer = opened.data.train, opened.model.scorer()
    top = recommend.recommend(scorer, log.user_ids, log.item_ids, opened.seen(with_valid=True), ["u3"], 5)
    assert len(top) == 5
    longer = replace(told, resume=True, trainer=TrainerConfig(epochs=3))
    assert run.train(longer, tmp_path / "run")[1]["epochs"] == 3
    assert "path: my_package.models:OneHop" in (tmp_path / "run" / "config.yaml").read_text()
    # Where it is not allowed, the run's config runs nothing.
    monkeypatch.setattr(extensions, "_allowed", set())
    for module in [name for name in sys.modules if name.startswith("my_package")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ConfigError, match=r"model.path: is 'my_package.models:OneHop', which would run code of"):
        run.open_run(tmp_path / "run")
    assert "my_package.models" not in sys.modules


def test_own_losses_take_the_samplers_that_are_there(tmp_path, allowed):
    for batches in ("triples", "users"):
        loss = replace(LOSS, batches=batches)
        if batches == "users":
            with pytest.raises(ConfigError, match=r"trainer.sampling: has no effect with loss=custom"):
                config(tmp_path, loss=loss, trainer=TrainerConfig(sampling="users")).validate()
        else:
            run.train(config(tmp_path, loss=loss, trainer=TrainerConfig(epochs=1)), tmp_path / batches)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("other.models:OneHop", "would run code of other; allowed are my_package. If you trust its code, set the"),
        ("my_packages.models:OneHop", "would run code of my_packages; allowed are my_package"),
        ("my_package.models.OneHop", "Give PACKAGE.MODULE:NAME, such as my_package.models:MyModel"),
        ("my_package.models:os.system", "Give PACKAGE.MODULE:NAME"),
        (None, "model.path: is None. Give PACKAGE.MODULE:NAME"),
        ("my_package.readers:Path", "which would run code of pathlib; allowed are my_package. If you trust its code"),
        (
            "my_package.models:normalised",
            "which would run code of gnnrec; allowed are my_package. If",
        ),
        ("my_package.readers:pd", "is 'my_package.readers:pd', which is no class or function but a module"),
        ("my_package.modells:OneHop", "but there is no module my_package.modells. Install the package"),
        ("my_package.models:TwoHops", "but my_package.models has no TwoHops"),
        (
            "my_package.losses:Hinge",
            "my_package.losses:Hinge cannot be called: missing a required argument: 'cosine'. Correct",
        ),
        ("my_package.readers:read_json_lines", "cannot be called: "),
    ],
)
def test_a_path_that_cannot_be_used(path, says, allowed):
    with pytest.raises(ConfigError, match=re.escape(says)):
        extensions.make("model", path, (), None, "graph", seed=0)


def test_an_option_that_gnnrec_gives(tmp_path, allowed):
    with pytest.raises(ConfigError, match=r"model.options.seed: is 3. Leave it out: gnnrec gives it"):
        run.train(config(tmp_path, model=replace(MODEL, options={"dim": 8, "seed": 3})), tmp_path / "seed")
    with pytest.raises(ConfigError, match=r"loss.options.cosine: is True. Leave it out"):
        run.train(config(tmp_path, loss=replace(LOSS, options={"cosine": True})), tmp_path / "cosine")
    for name in ("where", "path", "needs", "graph"):
        with pytest.raises(ConfigError, match=rf"model.options: my_package.models:OneHop cannot be called: .*'{name}'"):
            run.train(config(tmp_path, model=replace(MODEL, options={"dim": 8, name: 3})), tmp_path / name)


def test_batches_that_are_not_there(allowed):
    with pytest.raises(ConfigError, match=r"loss.batches: is 'triple'. Did you mean triples\?"):
        replace(LOSS, batches="triple").validate()
    with pytest.raises(ConfigError, match=r"loss.batches: is 'other.samplers:AnyItem', which would run code of other"):
        replace(LOSS, batches="other.samplers:AnyItem").validate()


def test_what_a_model_lacks_is_named(allowed):
    with pytest.raises(
        ConfigError, match=r"model.path: my_package.losses:Hinge makes a Hinge without embedding, scorer"
    ):
        extensions.make(
            "model", "my_package.losses:Hinge", ("embedding", "scorer"), {}, None, cosine=False, device=None
        )


def test_a_reader_that_returns_something_else(tmp_path, allowed, monkeypatch):
    from my_package import readers

    def name_of(path: Path) -> str:
        return path.name

    name_of.__module__ = readers.__name__
    monkeypatch.setattr(readers, "name_of", name_of, raising=False)
    broken = config(tmp_path)
    for name in ("pd", "Path"):
        broken.data.format = f"my_package.readers:{name}"
        with pytest.raises(ConfigError, match=rf"data.format: is 'my_package.readers:{name}', which"):
            run.train(broken, tmp_path / "run")
    broken.data.format = "my_package.readers:name_of"
    with pytest.raises(DataError, match=r"my_package.readers:name_of returned str. Let it return gnnrec.Interactions"):
        run.train(broken, tmp_path / "run")


def test_other_memory_and_plans_are_not_for_own_code(tmp_path, allowed):
    with pytest.raises(ConfigError, match=r"memory=auto: has no effect with model=custom"):
        config(tmp_path, memory=MemoryConfig("auto")).validate()
    with pytest.raises(ConfigError, match=r"model=custom: nobody knows what a step moves"):
        PlanConfig(config(tmp_path), HardwareConfig()).validate()
    with pytest.raises(ConfigError, match=r"model.options: is \['dim'\]. Give options by their names"):
        CustomModelConfig(path=MODEL.path, options=["dim"]).validate()


def test_what_the_environment_says_later_allows_nothing(monkeypatch):
    """As Hydra puts there what a config has in `hydra.job.env_set`."""
    monkeypatch.setenv("GNNREC_EXTENSIONS", "antigravity")
    with pytest.raises(ConfigError, match=r"would run code of antigravity; no package is allowed to"):
        extensions.load("model.path", "antigravity:geohash")


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        (
            "experiment/mine.yaml",
            "# @package _global_\nhydra:\n  callbacks: {x: {_target_: antigravity.geohash}}",
            "hydra",
        ),
        ("experiment/mine.yml", '"h\\x79dra": {job: {env_set: {GNNREC_EXTENSIONS: antigravity}}}', "hydra"),
        ("experiment/mine.yaml", "#@package hydra.job_logging\nroot: {}", "hydra"),
        ("experiment/mine.yaml", "defaults: [x@hydra.callbacks: y]", "hydra"),
        ("hydra/job_logging/none.yaml", "root: {}", "hydra"),
        ("model/mine.yaml", "x: [{_target_: antigravity.geohash}]", "_target_"),
    ],
)
def test_a_config_file_that_reaches_for_what_runs_code_is_refused(name, text, word, tmp_path):
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    file.write_text(text)
    for args in (("seed=1", "--config-dir", str(tmp_path)), (f"--config-dir={tmp_path}",), ("-cd", str(tmp_path))):
        with pytest.raises(ConfigError, match=rf"{file.name}: mentions '{word}', which could run code"):
            folders.check(args)


def test_a_config_file_behind_links_is_looked_into(tmp_path):
    conf, outside = tmp_path / "conf", tmp_path / "outside"
    conf.mkdir()
    outside.mkdir()
    (conf / "experiment").symlink_to(outside)
    (outside / "again").symlink_to(conf)
    (outside / "mine.yaml").write_text("# @package _global_\nmodel: {layers: 7}\n")
    folders.check((f"--config-dir={conf}",))
    (outside / "mine.yaml").write_text(
        "# @package _global_\nhydra: {callbacks: {x: {_target_: antigravity.geohash}}}\n"
    )
    with pytest.raises(ConfigError, match=r"experiment/mine.yaml: mentions 'hydra', which could run code"):
        folders.check((f"--config-dir={conf}",))


def test_a_folder_under_a_second_name_that_reaches_hydra_is_refused(tmp_path):
    (tmp_path / "group" / "job_logging").mkdir(parents=True)
    (tmp_path / "group" / "job_logging" / "none.yaml").write_text("root: {}")
    folders.check((f"--config-dir={tmp_path}",))
    (tmp_path / "hydra").mkdir()
    (tmp_path / "hydra" / "job_logging").symlink_to(tmp_path / "group" / "job_logging")
    with pytest.raises(ConfigError, match=r"hydra/job_logging: mentions 'hydra', which could run code"):
        folders.check((f"--config-dir={tmp_path}",))


def test_a_folder_of_configs_is_taken_and_a_search_path_is_not(tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    file = tmp_path / "conf" / "experiment" / "mine.yaml"
    file.write_text("# @package _global_\nmodel: {layers: 7}\n")
    args = ("train", "experiment=mine", "--config-dir", "conf", "--cfg", "job")
    assert "layers: 7" in forked.gnnrec(*args, cwd=tmp_path).stdout
    file.write_text("a: [")
    with pytest.raises(ConfigError, match=r"mine.yaml: cannot be read: "):
        folders.check(("--config-dir", str(tmp_path)))
    with pytest.raises(ConfigError, match=r"hydra.searchpath: cannot be set. Name the folder with --config-dir DIR"):
        folders.check(("hydra.searchpath=[file:///x]",))


def test_the_command_line_takes_what_the_environment_allows(tmp_path):
    args = ("model=custom", "model.path=my_package.models:OneHop", "model.options={dim: 8, width: 3}")
    environment = os.environ | {
        "GNNREC_EXTENSIONS": "something, my_package",
        "PYTHONPATH": f"{EXAMPLES}:{os.environ.get('PYTHONPATH', '')}",
    }
    code = "from gnnrec.cli import main; main()"
    command = [sys.executable, "-c", code, "train", *args, "hydra.run.dir=run"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2
    assert "gnnrec: model.options: my_package.models:OneHop cannot be called: got an unexpected" in result.stderr
    assert "it is called as OneHop(graph" in result.stderr
