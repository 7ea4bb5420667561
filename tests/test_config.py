"""Every file in conf/ composes and fills its dataclass, and every rule says which field, which value, what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from gnnrec import extensions
from gnnrec.cli import APPS
from gnnrec.config import (
    BPRConfig,
    CalibrateConfig,
    CatalogConfig,
    DataConfig,
    DirectAUConfig,
    EvaluateConfig,
    EvaluationConfig,
    GFCFConfig,
    HardwareConfig,
    LightGCNConfig,
    NGCFConfig,
    OptimizerConfig,
    PlanConfig,
    RecommendConfig,
    SimGCLConfig,
    SoftmaxConfig,
    SquaredConfig,
    TiersConfig,
    TrainConfig,
    TrainerConfig,
    TuneConfig,
    XSimGCLConfig,
    did_you_mean,
    fill,
    from_yaml,
    to_yaml,
)
from gnnrec.config.data import SPLITS
from gnnrec.config.recipes import CONF
from gnnrec.config.training import METRICS
from gnnrec.data import splits
from gnnrec.errors import ConfigError
from gnnrec.training.metrics import ranking_metrics

OPTIONS = sorted(f"{file.parent.name}={file.stem}" for file in CONF.glob("*/*.yaml"))
NEEDED = {  # what an option cannot do without
    "data=files": {"data": {"log": "log.csv"}},
    "model=custom": {"model": {"path": "my_package.models:OneHop", "options": {"dim": 8}}},
    "loss=custom": {"loss": {"path": "my_package.losses:Hinge", "batches": "my_package.samplers:AnyItem"}},
}


def composed(app: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values = OmegaConf.to_container(compose(app, overrides=list(overrides)), resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def changed(values: Any, key: str, value: Any) -> Any:
    """The nested values with another one at the dotted key."""
    first, _, rest = key.partition(".")
    return values | {first: changed(values.get(first) or {}, rest, value) if rest else value}


@pytest.fixture(scope="module")
def defaults() -> dict[str, Any]:
    return composed("train")


@pytest.fixture(scope="module")
def gfcf() -> dict[str, Any]:
    return composed("train", "model=gfcf")


def test_the_walk_finds_the_files():
    assert {"data=synthetic", "data=files", "model=gfcf", "experiment=published_lightgcn"} <= set(OPTIONS)
    assert len(OPTIONS) == len(list(CONF.rglob("*.yaml"))) - len(APPS)


def test_keys_of_memory_are_set_on_the_command_line():
    memory = ["memory=stream", "memory.limit=6GiB", "memory.pin.exp_avg=/mnt/a", "memory.simulate.read_gb_per_s=1"]
    config = TrainConfig.from_dict(composed("train", *memory, "memory.simulate.write_gb_per_s=.5")).memory
    assert (config.name, config.limit_bytes, config.slower) == ("stream", 6 * 2**30, (1.0, 0.5, 0.0))
    assert config.pins == {"exp_avg": "/mnt/a"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("limit", "6 apples", "memory.limit: is '6 apples'. Give a size"),
        ("limit", "1GiB", "memory.limit: has no effect with memory=dram. Leave it out, or take memory=auto"),
        ("panel", 24, "memory.panel: is 24. It must be a multiple of 16"),
        ("name", "file", "memory.name: is 'file'. "),
        ("simulate", {"read_gb_per_s": 1.0}, "memory.simulate.write_gb_per_s: is not set"),
        ("simulate", {"read_gb_per_s": 1.0, "write_gb_per_s": -1.0}, "memory.simulate.write_gb_per_s: is -1.0"),
        ("simulate", {"read_gb_per_s": 1.0, "write_gb_per_s": 1.0}, "memory.simulate: has no effect with memory=dram"),
        ("pin", {"exp_avg": "/mnt"}, "memory.pin: has no effect with memory=dram"),
    ],
)
def test_memory_that_cannot_be_had_is_refused(defaults, key, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        TrainConfig.from_dict(changed(defaults, f"memory.{key}", value))


def test_a_model_in_closed_form_has_no_use_for_memory(gfcf):
    with pytest.raises(ConfigError, match="has no effect with model=gfcf"):
        TrainConfig.from_dict(changed(gfcf, "memory.name", "stream"))


@pytest.mark.parametrize("option", ["", *OPTIONS])
def test_every_option_composes_fills_and_comes_back_from_yaml(option, tmp_path, monkeypatch):
    monkeypatch.setattr(extensions, "_allowed", {"my_package"})
    if option.startswith("hardware="):
        hardware = fill(HardwareConfig, composed("plan", option)["hardware"], "hardware")
        hardware.validate()
        assert hardware.name == option.partition("=")[2]
        return
    values = composed("train", *filter(None, [option]))
    for section, keys in NEEDED.get(option, {}).items():
        values[section] |= keys
    config = TrainConfig.from_dict(values)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert TrainConfig.from_dict(from_yaml(tmp_path / "config.yaml")) == config


def test_every_app_has_a_config_that_fills_its_dataclass():
    evaluate = fill(EvaluateConfig, composed("evaluate", "run=[a,b]", "k=10"))
    evaluate.validate()
    assert (evaluate.run, evaluate.k) == (["a", "b"], [10])
    recommend = fill(RecommendConfig, composed("recommend", "run=a"))
    recommend.validate("")
    assert recommend == RecommendConfig(run="a")
    assert fill(CatalogConfig, composed("data", "root=x")) == CatalogConfig(root="x")
    assert fill(TiersConfig, composed("tiers", "folders=a")) == TiersConfig(folders=["a"])
    TrainConfig.from_dict(composed("train"))
    tune = fill(TuneConfig, composed("tune", "operators=spmm", "data.root=null"))
    tune.validate()
    assert (tune.operators, tune.dims, tune.dtypes) == (["spmm"], TuneConfig().dims, TuneConfig().dtypes)
    assert PlanConfig.from_dict(composed("plan", "memory.limit=1GiB")).train.memory.limit_bytes == 2**30
    assert fill(CalibrateConfig, composed("calibrate", "folders=a", "seconds=9")).seconds == 9
    known = {"train", "evaluate", "recommend", "tune", "tiers", "calibrate", "plan", "data", "report"}
    assert {file.stem for file in CONF.glob("*.yaml")} == set(APPS) == known


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["dims=[64,30]"], "dims: is 30. It must be a multiple of heads=4"),
        (["dtypes=[float8]"], "dtypes: is 'float8'. Did you mean"),
        (["heads=0"], "heads: is 0. It must be at least 1"),
        (["ks=0"], "ks: is 0. It must be at least 1"),
    ],
)
def test_what_cannot_be_tuned(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        fill(TuneConfig, composed("tune", *options)).validate()


def test_the_files_and_the_dataclasses_have_the_same_defaults(defaults, gfcf):
    config = TrainConfig.from_dict(defaults)
    assert config.model == LightGCNConfig()
    assert config.loss == BPRConfig()
    assert config.trainer == TrainerConfig()
    assert config.evaluation == EvaluationConfig()
    assert config.optimizer is not None
    assert list(config.optimizer.betas) == list(OptimizerConfig().betas)
    assert (config.optimizer.lr, config.optimizer.eps) == (OptimizerConfig().lr, OptimizerConfig().eps)
    assert TrainConfig.from_dict(gfcf).model == GFCFConfig()
    files = fill(DataConfig, composed("train", "data=files", "data.root=null")["data"])
    assert files == DataConfig()
    assert config.data == fill(DataConfig, {"root": config.data.root, "source": "synthetic", "name": "synthetic"})


def test_a_published_run_has_no_validation_part_and_the_published_numbers():
    config = TrainConfig.from_dict(composed("train", "data=gowalla", "experiment=published_lightgcn"))
    assert (config.data.valid_ratio, config.data.name) == (0, "gowalla")
    assert config.trainer is not None
    assert (config.trainer.epochs, config.trainer.batch_size, config.trainer.sampling) == (1000, 2048, "users")
    assert config.loss is not None
    assert (config.loss.reg, config.model) == (1e-4, LightGCNConfig(dim=64, layers=3, init_std=0.1))


def test_the_published_run_of_ngcf():
    config = TrainConfig.from_dict(composed("train", "data=gowalla", "experiment=published_ngcf"))
    assert (config.data.valid_ratio, config.model) == (0, NGCFConfig(message_dropout=0.1, node_dropout=0.0))
    assert config.trainer is not None
    assert (config.trainer.epochs, config.trainer.batch_size) == (400, 1024)
    assert config.loss == BPRConfig(reg=1e-5)
    assert config.optimizer is not None
    assert (config.optimizer.name, config.optimizer.lr) == ("adam", 1e-4)


def test_a_file_in_a_group_may_set_what_belongs_to_no_group(tmp_path):
    """As an experiment does; the values of train.yaml itself must not come after it."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nseed: 7\nevaluation: {k: [5]}\ndata: {k_core: 3}\n"
    )
    values = composed("train", "experiment=mine", f"hydra.searchpath=[file://{tmp_path}]")
    assert (values["seed"], values["evaluation"]["k"], values["data"]["k_core"]) == (7, [5], 3)


# Field, a value that it cannot have, what the message says of it, and what it advises.
RULES = [
    ("profile", "of", "is 'of'", "Did you mean off"),
    ("view", "lives", "is 'lives'", "Did you mean live?"),
    ("loggers", ["mlflow", "tensorbord"], "is 'tensorbord'", "Did you mean tensorboard?"),
    ("loggers", ["wandb", "wandb"], "is ['wandb', 'wandb']", "Name each once"),
    ("data.source", "web", "is 'web'", "Known are: catalog, files, fractal, synthetic"),
    ("data.source", "file", "is 'file'", "Did you mean files?"),
    ("data.duplicates", "lst", "is 'lst'", "Did you mean last"),
    ("data.split.by", "tempral", "is 'tempral'", "Did you mean temporal"),
    ("data.valid_by", "leave_one_out", "is 'leave_one_out'", "Known are"),
    ("data.valid_by", "tempral", "is 'tempral'", "Did you mean temporal"),
    ("data.valid_ratio", 0.95, "is 0.95", "It must lie within 0 and 0.9"),
    ("data.valid_ratio", -0.1, "is -0.1", "It must lie within 0 and 0.9"),
    ("data.split.test_ratio", 0, "is 0.0", "It must lie within 0.001 and 0.9"),
    ("data.k_core", -1, "is -1", "It must be at least 0"),
    ("model.name", "lightgnc", "is 'lightgnc'", "Did you mean lightgcn?"),
    ("model.dim", 0, "is 0", "It must lie within 1 and 4096"),
    ("model.layers", 33, "is 33", "It must lie within 0 and 32"),
    ("model.init", "svd", "is 'svd'", "Known are: normal, spectral"),
    ("model.init_std", 0, "is 0.0", "It must be above 0"),
    ("model.layer_weights", "mean", "is 'mean'", "one for each layer, learned, or null for the mean"),
    ("model.layer_weights", [1, "x", 0, 0], "is [1, 'x', 0, 0]", "Give one number for the embedding"),
    ("model.layer_weights", {"first": 1}, "is {'first': 1}", "Give one number for the embedding"),
    ("model.layer_weights", [float("nan"), 1, 1, 1], "is [nan, 1, 1, 1]", "Give one number for the embedding"),
    ("model.layer_weights", True, "is True", "Give one number for the embedding"),
    ("model.layer_weights", [1, 2], "has 2 numbers where model.layers=3 needs 4", "Give one number for the embedding"),
    ("loss.name", "brp", "is 'brp'", "Did you mean bpr?"),
    ("loss.reg", -1, "is -1.0", "It must be at least 0"),
    ("loss.negatives", 0, "is 0", "It must be at least 1"),
    ("loss.popularity", 1.5, "is 1.5", "It must lie within -1 and 1"),
    ("loss.hardest", True, "has no effect with loss.negatives=1", "Set loss.negatives to 2 or more"),
    ("model.popularity", 2, "is 2", "It must lie within -1 and 1"),
    ("model.similarity", "cos", "is 'cos'", "Did you mean cosine?"),
    ("model.similarity", "cosine", "is 'cosine', but loss=bpr compares dot products", "or take loss=softmax"),
    ("optimizer.name", "sdg", "is 'sdg'", "Did you mean sgd?"),
    ("optimizer.lr", 0, "is 0.0", "It must be above 0"),
    ("optimizer.lr", float("nan"), "is nan", "It must be above 0"),
    ("optimizer.eps", -1e-8, "is -1e-08", "It must be above 0"),
    ("optimizer.betas", [0.9, 1], "is 1.0", "It must lie within 0 and 0.9999999"),
    ("optimizer.betas", [0.9], r"is [0.9]", "Give two numbers"),
    ("optimizer.weight_decay", -1, "is -1.0", "It must be at least 0"),
    ("optimizer.momentum", 1, "is 1.0", "It must lie within 0 and 0.9999999"),
    ("optimizer.state_dtype", "float16", "is 'float16'", "Did you mean"),
    ("optimizer.clip", 0, "is 0.0", "It must be above 0"),
    ("trainer.epochs", 0, "is 0", "It must be at least 1"),
    ("trainer.batch_size", 2**31, "is 2147483648", "It must lie within 1 and 2147483647"),
    ("trainer.sampling", "user", "is 'user'", "Did you mean users?"),
    ("trainer.storage", "float16", "is 'float16'", "Did you mean bfloat16"),
    ("trainer.lr_scaling", "root", "is 'root'", "Known are: "),
    ("trainer.lr_base_batch", 100, "has no effect with trainer.lr_scaling=none", "leave it out"),
    ("trainer.lr_base_batch", 0, "is 0", "It must be at least 1"),
    ("trainer.warmup_samples", -1, "is -1", "It must be at least 0"),
    ("trainer.lr_decay", "cosin", "is 'cosin'", "Did you mean cosine?"),
    ("trainer.eval_every", 0, "is 0", "It must be at least 1"),
    ("trainer.patience", 0, "is 0", "It must be at least 1"),
    ("trainer.checkpoint_every", 0, "is 0", "It must be at least 1"),
    ("trainer.monitor", "recal@10", "is 'recal@10'", "Did you mean recall@10"),
    ("trainer.monitor", "ndcg", "is 'ndcg'", "Did you mean ndcg@20"),
    ("trainer.monitor", "ndcg@x", "is 'ndcg@x'", "ndcg@"),
    ("evaluation.k", [], "is empty", "Give at least one cut-off, such as [20]"),
    ("evaluation.k", [20, 0], "is 0", "It must be at least 1"),
    ("seed", -1, "is -1", "It must lie within 0 and 9223372036854775807"),
    ("device", "cuda:1", "is 'cuda:1'", "Did you mean cuda?"),
    ("threads", 0, "is 0", "It must be at least 1"),
    ("loss", None, "is not set", "model=lightgcn needs it"),
    ("optimizer", None, "is not set", "model=lightgcn needs it"),
    ("trainer", None, "is not set", "model=lightgcn needs it"),
]
SOFTMAX_RULES = [
    ("loss.temperature", 0, "is 0.0", "It must be above 0"),
    ("loss.negatives", 0, "is 0", "It must be at least 1"),
    ("loss.popularity", 0.5, "has no effect without loss.negatives", "Set loss.negatives"),
    ("loss.correction", True, "has no effect without loss.negatives or loss.in_batch", "leave loss.correction out"),
    ("loss.in_batch", "some", "is 'some'", "It must be true or false"),
    ("loss.user_power", 100, "is 100", "It must lie within 0 and 1"),
    ("loss.prior", 3, "is 3.0", "It must lie within -2 and 2"),
    ("loss.positive_temperature", 0, "is 0.0", "It must be above 0"),
    ("loss.precision", "float16", "is 'float16'", "Did you mean bfloat16"),
    ("trainer.sampling", "users", "has no effect with loss=softmax", "Leave it out"),
]
NGCF_RULES = [
    ("model.dim", 0, "is 0", "It must lie within 1 and 4096"),
    ("model.layers", 0, "is 0", "It must lie within 1 and 32"),
    ("model.negative_slope", -0.1, "is -0.1", "It must be at least 0"),
    ("model.node_dropout", 1, "is 1.0", "It must lie within 0 and 0.99"),
    ("model.message_dropout", -0.1, "is -0.1", "It must lie within 0 and 0.99"),
    ("model.init_std", 0, "is 0.0", "It must be above 0"),
    ("model.init_std", "xavier", "is 'xavier'", "It must be a number or null"),
    ("model.similarity", "cosine", "is 'cosine', but loss=bpr compares dot products", "or take loss=softmax"),
    ("model.dropout", 0.1, "unknown key", "Did you mean node_dropout"),
    ("loss", None, "is not set", "model=ngcf needs it"),
]
SQUARED_RULES = [
    ("loss.negative_weight", 0, "is 0.0", "It must be above 0"),
    ("loss.user_power", 3, "is 3.0", "It must lie within -2 and 2"),
    ("loss.item_power", -3, "is -3.0", "It must lie within -2 and 2"),
    ("loss.reg", -1, "is -1.0", "It must be at least 0"),
    ("loss.reg_power", 2, "is 2.0", "It must lie within 0 and 1"),
    ("loss.reg_power", 0.5, "has no effect with loss.reg=0", "Set loss.reg"),
    ("model.similarity", "cosine", "is 'cosine', but loss=squared compares dot products", "or take loss=softmax"),
    ("trainer.sampling", "users", "has no effect with loss=squared", "Leave it out"),
]
DIRECTAU_RULES = [
    ("loss.uniformity", 0, "is 0.0", "It must be above 0"),
    ("loss.t", 0, "is 0.0", "It must be above 0"),
    ("loss.precision", "float16", "is 'float16'", "Did you mean bfloat16"),
]
OTHER_LOSSES = [
    (name, schema, *rule)
    for name, schema, rules in (
        ("softmax", SoftmaxConfig, SOFTMAX_RULES),
        ("squared", SquaredConfig, SQUARED_RULES),
        ("directau", DirectAUConfig, DIRECTAU_RULES),
    )
    for rule in rules
]
CONTRASTIVE_RULES = [
    ("model.dim", 0, "is 0", "It must lie within 1 and 4096"),
    ("model.layers", 0, "is 0", "It must lie within 1 and 32"),
    ("model.eps", -0.1, "is -0.1", "It must lie within 0 and 1000.0"),
    ("model.contrast_weight", 0, "is 0.0", "It must be above 0"),
    ("model.contrast_temperature", 0, "is 0.0", "It must be above 0"),
    ("model.contrast_nodes", 1, "is 1", "It must be at least 2"),
    ("model.init_std", 0, "is 0.0", "It must be above 0"),
    ("model.similarity", "cosine", "is 'cosine', but loss=bpr compares dot products", "or take loss=softmax"),
    ("model.contrast", 0.1, "unknown key", "Did you mean contrast_"),
    ("loss", None, "is not set", "simgcl needs it"),
]
XSIMGCL_RULES = [
    ("model.contrast_layer", 0, "is 0", "It must lie within 1 and 2"),
    ("model.contrast_layer", 3, "is 3", "It must lie within 1 and 2"),
]
# As above, of values of a wrong type and of names that do not exist.
TYPES = [
    ("model.dim", "wide", "is 'wide'", "It must be a whole number"),
    ("model.dim", 1.5, "is 1.5", "It must be a whole number"),
    ("model.dim", None, "is None", "It must be a whole number"),
    ("optimizer.lr", "fast", "is 'fast'", "It must be a number"),
    ("data.min_rating", "high", "is 'high'", "It must be a number or null"),
    ("data.header", "perhaps", "is 'perhaps'", "It must be true or false"),
    ("data.log", ["a", "b"], "is ['a', 'b']", "It must be a text or null"),
    ("data.columns", None, "is None", "It must be a section with keys of its own"),
    ("seed", "x", "is 'x'", "It must be a whole number"),
    ("resume", "maybe", "is 'maybe'", "It must be true or false"),
    ("threads", "all", "is 'all'", "It must be a whole number or null"),
    ("optimizer.learning_rate", 1, "unknown key", "Known are: betas, clip, eps, lr"),
    ("data.split.bye", 1, "unknown key", "Did you mean by?"),
    ("sead", 1, "unknown key", "Did you mean seed?"),
]


@pytest.mark.parametrize(("field", "value", "found", "remedy"), RULES + TYPES)
def test_a_value_that_cannot_be(field, value, found, remedy, defaults):
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_dict(changed(defaults, field, value))
    assert caught.value.where == field
    assert found in caught.value.found
    assert remedy in (caught.value.remedy or "")


OTHER_RULES = SOFTMAX_RULES + NGCF_RULES + CONTRASTIVE_RULES + XSIMGCL_RULES


def test_no_rule_is_without_a_test():
    """Each field that a `validate` of a training section names is in the table above, or in a test of its own."""
    rooms = ("data", "model", "loss", "training", "train")
    source = "".join((CONF.parent / f"config/{room}.py").read_text() for room in rooms)
    named = set(re.findall(r'(?:where=|(?:one_of|within|at_least|positive|cutoffs)\()"([\w.]+)"', source))
    of_others = {"model.factors", "model.ideal_weight", *(field for field, *_ in OTHER_RULES)}
    of_others |= {field for _, _, field, *_ in OTHER_LOSSES}
    of_others.add("loss.batches")  # in test_extensions.py
    assert len(named) > 25
    assert named - {field for field, *_ in RULES} - of_others == {"data"}


def test_negatives_come_from_one_place():
    with pytest.raises(ConfigError, match=r"^loss\.in_batch: goes not with loss\.negatives\. Leave one"):
        SoftmaxConfig(in_batch=True, negatives=5).validate()
    with pytest.raises(ConfigError, match=r"^loss\.popularity: has no effect without loss\.negatives"):
        SoftmaxConfig(in_batch=True, popularity=0.5).validate()
    SoftmaxConfig(in_batch=True, correction=False).validate()


@pytest.mark.parametrize(("name", "schema", "field", "value", "found", "remedy"), OTHER_LOSSES)
def test_a_value_that_another_loss_cannot_have(name, schema, field, value, found, remedy):
    values = composed("train", f"loss={name}", "data.root=null")
    assert TrainConfig.from_dict(values).loss == schema()
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_dict(changed(values, field, value))
    assert caught.value.where == field
    assert found in caught.value.found
    assert remedy in (caught.value.remedy or "")


def test_storage_in_bfloat16_needs_an_optimiser_with_copies(defaults):
    values = changed(defaults, "trainer.storage", "bfloat16")
    assert TrainConfig.from_dict(values).trainer.storage == "bfloat16"
    with pytest.raises(ConfigError, match="optimizer=sgd keeps no float32 copy"):
        TrainConfig.from_dict(changed(values, "optimizer", {"name": "sgd", "lr": 0.1}))


@pytest.mark.parametrize(("field", "value", "found", "remedy"), NGCF_RULES)
def test_a_value_that_ngcf_cannot_have(field, value, found, remedy):
    ngcf = composed("train", "model=ngcf", "data.root=null")
    assert TrainConfig.from_dict(ngcf).model == NGCFConfig()
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_dict(changed(ngcf, field, value))
    assert caught.value.where == field
    assert found in caught.value.found
    assert remedy in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("name", "schema", "rules"),
    [("simgcl", SimGCLConfig, CONTRASTIVE_RULES), ("xsimgcl", XSimGCLConfig, CONTRASTIVE_RULES + XSIMGCL_RULES)],
)
def test_values_that_contrastive_models_cannot_have(name, schema, rules):
    values = composed("train", f"model={name}", "data.root=null")
    assert TrainConfig.from_dict(values).model == schema()
    for field, value, found, remedy in rules:
        with pytest.raises(ConfigError) as caught:
            TrainConfig.from_dict(changed(values, field, value))
        assert caught.value.where == field
        assert found in caught.value.found
        assert remedy in (caught.value.remedy or "")


def test_layer_weights_may_be_learned(defaults):
    config = TrainConfig.from_dict(changed(defaults, "model.layer_weights", "learned"))
    assert isinstance(config.model, LightGCNConfig)
    assert config.model.layer_weights == "learned"
    with pytest.raises(ConfigError, match="is 'learned', but"):
        TrainConfig.from_dict(changed(changed(defaults, "model.layer_weights", "learned"), "model.layers", 0))
    numbers = TrainConfig.from_dict(changed(defaults, "model.layer_weights", [1, 0, 0, 2]))
    assert isinstance(numbers.model, LightGCNConfig)
    assert numbers.model.layer_weights == [1.0, 0.0, 0.0, 2.0]


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [("model.factors", 0, "It must lie within 1 and 4096"), ("model.ideal_weight", -1, "It must be at least 0")],
)
def test_a_value_that_gfcf_cannot_have(field, value, remedy, gfcf):
    with pytest.raises(ConfigError, match=rf"{field}: is {value}.* {remedy}"):
        TrainConfig.from_dict(changed(gfcf, field, value))


@pytest.mark.parametrize(
    ("section", "values"), [("optimizer", {"lr": 0.1}), ("loss", {"name": "bpr"}), ("trainer", {"epochs": 3})]
)
def test_what_has_no_effect_on_a_model_in_closed_form_is_refused(section, values, gfcf):
    with pytest.raises(ConfigError, match=f"{section}: model=gfcf is computed in closed form.* Leave out {section}="):
        TrainConfig.from_dict(gfcf | {section: values})


@pytest.mark.parametrize(
    ("keys", "found", "remedy"),
    [
        ({}, "neither data.log nor data.train is set", "Give data.log=FILE"),
        ({"log": "a", "train": "b"}, "both data.log and data.train are set", "Give data.log=FILE"),
        ({"train": "b"}, "data.train is 'b' but data.test is not set", "Add data.test=FILE"),
    ],
)
def test_files_are_one_log_or_a_split(keys, found, remedy, defaults):
    with pytest.raises(ConfigError, match=f"{found}.*{remedy}"):
        TrainConfig.from_dict(defaults | {"data": {"source": "files"} | keys})
    TrainConfig.from_dict(defaults | {"data": {"source": "files", "train": "a", "test": "b"}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "run: is not set. Add run=DIR"),
        ({"run": None}, "run: is None. It must be a list of texts"),
        ({"run": "a", "k": 0}, "k: is 0. It must be at least 1"),
        ({"run": "a", "k": []}, "k: is empty. Give at least one cut-off"),
        ({"run": "a", "k": "x"}, r"k\[0\]: is 'x'. It must be a list of whole numbers or null"),
        ({"run": "a", "threads": 0}, "threads: is 0. It must be at least 1"),
    ],
)
def test_what_evaluate_cannot_be_told(values, message):
    with pytest.raises(ConfigError, match=message):
        fill(EvaluateConfig, values).validate()


@pytest.mark.parametrize(
    ("verb", "values", "message"),
    [
        ("", {}, "run: is not set. Add run=DIR"),
        ("", {"run": ["a", "b"]}, r"run: is \['a', 'b'\]. It must be a text or null"),
        ("", {"run": "a", "k": 0}, "k: is 0. It must be at least 1"),
        ("", {"run": "a", "threads": 0}, "threads: is 0. It must be at least 1"),
        ("", {"run": "a", "items": "f"}, "items: has no effect on `gnnrec recommend`. Leave it out"),
        ("", {"run": "a", "history": "f"}, "history: has no effect on `gnnrec recommend`"),
        ("new_users", {"run": "a"}, "history: is not set. Give a table with the columns user and item"),
        (
            "new_users",
            {"run": "a", "history": "f", "users": "g"},
            "users: has no effect on `gnnrec recommend new_users`",
        ),
        ("similar_items", {"run": "a", "exclude_seen": False}, "exclude_seen: has no effect"),
        ("similar_items", {"run": "a", "columns": {"user": "u"}}, "columns: has no effect"),
        ("embeddings", {"run": "a", "out": "f", "k": 3}, "k: has no effect on `gnnrec recommend embeddings`"),
        ("embeddings", {"run": "a"}, "out: is not set. Give a folder"),
    ],
)
def test_what_recommend_cannot_be_told(verb, values, message):
    with pytest.raises(ConfigError, match=message):
        fill(RecommendConfig, values).validate(verb)


@pytest.mark.parametrize(
    ("verb", "values"),
    [
        ("", {"users": "f", "k": 3, "exclude_seen": False}),
        ("new_users", {"history": "f", "k": 3, "columns": {"user": "u", "item": "i"}}),
        ("similar_items", {"items": "f", "k": 3}),
        ("embeddings", {"out": "folder"}),
    ],
)
def test_what_recommend_can_be_told(verb, values):
    fill(RecommendConfig, {"run": "a", "out": "x", "threads": 1} | values).validate(verb)


def test_a_single_value_is_a_list_of_one(defaults):
    assert TrainConfig.from_dict(changed(defaults, "evaluation.k", 10)).evaluation.k == [10]
    assert fill(EvaluateConfig, {"run": "a"}).run == ["a"]
    assert fill(LightGCNConfig, {"layers": 0, "layer_weights": 0.5}).layer_weights == [0.5]


def test_names_of_metrics_and_splits_are_those_that_there_are():
    known = ranking_metrics(np.array([[0]]), np.array([0, 1]), np.array([0]), [1], 2)
    assert set(known) == {f"{name}@1" for name in METRICS}
    assert set(SPLITS) == set(splits.STRATEGIES)


# What OmegaConf takes for an interpolation or for a missing value is no text to it.
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(
    lambda text: "${" not in text and text != "???"
)
lookalikes = st.sampled_from(["null", "007", "1e5", "yes", "true", "~", "a: b", "#x", "[a]", "'", '"', "0x1F", " "])


@settings(max_examples=30)
@given(
    name=lookalikes | texts,
    lr=st.floats(1e-300, 1e300),
    weights=st.lists(st.floats(-1e9, 1e9, width=32), min_size=4, max_size=4),
    seed=st.integers(0, 2**63 - 1),
)
def test_any_value_comes_back_from_yaml(name, lr, weights, seed, defaults, tmp_path_factory):
    values = defaults | {"seed": seed, "data": {"source": "files", "log": name, "columns": {"user": name}}}
    values = changed(changed(values, "optimizer.lr", lr), "model.layer_weights", weights)
    config = TrainConfig.from_dict(values)
    assert (config.data.log, config.data.columns.user, config.seed) == (name, name, seed)
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(to_yaml(config))
    assert TrainConfig.from_dict(from_yaml(file)) == config


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), ("a: [1", "cannot be read"), ("- 1\n", "holds no configuration")]
)
def test_a_file_that_is_no_configuration(tmp_path, content, message):
    file: Path = tmp_path / "config.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        from_yaml(file)
    assert caught.value.where == str(file)


def test_suggestions():
    assert did_you_mean("gowala", ["gowalla", "lastfm"]) == "Did you mean gowalla?"
    assert did_you_mean("xyz", ["b", "a"]) == "Known are: a, b"
