"""The device of training: how it is chosen, what is said where it cannot be had, and losses that are read later."""

from __future__ import annotations

import json
import math
import os
import signal
from types import SimpleNamespace

import forked
import pytest
import torch

import gnnrec
from gnnrec import device as devices
from gnnrec import models, ops, recommend
from gnnrec.config import (
    BPRConfig,
    DataConfig,
    GFCFConfig,
    LightGCNConfig,
    OptimizerConfig,
    SyntheticConfig,
    TrainConfig,
    TrainerConfig,
)
from gnnrec.data import dataset
from gnnrec.device import DeviceError, DeviceMemoryError
from gnnrec.errors import ConfigError
from gnnrec.training import checkpoint, optim, resident, run, runlog
from gnnrec.training.run import graph_of
from gnnrec.training.runlog import Logger, RunLog, read_events
from gnnrec.training.sampler import TripleSampler
from gnnrec.training.trainer import DivergedError, Interrupted, Trainer

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
STEPS = 21  # an epoch of `parts` in batches of 32
OUT_OF_MEMORY = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is free."
)
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU as far as questions to torch.cuda go; a test changes what it answers."""
    answers = SimpleNamespace(available=True, capability=(9, 0), free=1 << 30, total=80 << 30, reserved=3 << 30)
    replacements = {
        "is_available": lambda: answers.available,
        "current_device": lambda: 0,
        "get_device_capability": lambda device: answers.capability,
        "get_device_name": lambda device: "Made-up GPU",
        "mem_get_info": lambda device: (answers.free, answers.total),
        "memory_reserved": lambda device: answers.reserved,
        "memory_allocated": lambda device: 2 << 30,
        "max_memory_allocated": lambda device: 5 << 30,
    }
    for name, replacement in replacements.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    monkeypatch.setattr(devices, "find_spec", lambda name: object())
    devices._problem.cache_clear()
    yield answers
    devices._problem.cache_clear()


def config(**changes) -> TrainConfig:
    small = SyntheticConfig(num_users=60, num_items=120, num_interactions=900, communities=3)
    sections = {
        "data": DataConfig(source="synthetic", name="synthetic", synthetic=small),
        "model": LightGCNConfig(dim=8, layers=2),
        "loss": BPRConfig(),
        "optimizer": OptimizerConfig(),
        "trainer": TrainerConfig(epochs=3, batch_size=128, eval_every=1),
    }
    return TrainConfig(**(sections | changes))


# The choice


def test_a_gpu_is_taken_where_there_is_one(gpu):
    assert devices.resolve("auto") == devices.resolve("cuda") == GPU
    assert devices.resolve("cpu") == CPU


def test_auto_is_the_cpu_without_a_gpu_and_cuda_an_error(gpu):
    gpu.available = False
    assert devices.resolve("auto") == CPU
    with pytest.raises(
        DeviceError, match=r"device=cuda: torch sees no GPU\. Use device=cpu, or install a build of torch"
    ):
        devices.resolve("cuda")


def test_a_gpu_that_is_too_old(gpu, capsys):
    gpu.capability = (7, 5)
    assert devices.resolve("auto") == CPU
    assert capsys.readouterr().err.startswith("warning: there is a GPU, but Made-up GPU has compute capability 7.5")
    says = r"device=cuda: Made-up GPU has compute capability 7\.5, and the kernels need 8\.0\. Use the CPU"
    with pytest.raises(DeviceError, match=says):
        devices.resolve("cuda")


def test_triton_is_missing(gpu, monkeypatch):
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    assert devices.resolve("auto") == CPU
    with pytest.raises(
        DeviceError, match=r"device=cuda: triton is not installed\. Install gnnrec\[cuda\], or use the CPU"
    ):
        devices.resolve("cuda")
    x = SimpleNamespace(is_cuda=True, device=GPU, shape=(1000, 64), numel=lambda: 64000, element_size=lambda: 4)
    with pytest.raises(
        DeviceError, match=r"spmm: x \[1000, 64\] \(250\.0 KiB\) lies on cuda:0, but triton is not inst"
    ):
        devices.check("spmm", "x", x)


def test_a_name_that_is_no_device():
    for make in (lambda name: devices.resolve(name), lambda name: gnnrec.LightGCN(device=name)):
        with pytest.raises(DeviceError, match=r"device: is 'gpu'\. It must be one of auto, cpu, cuda"):
            make("gpu")


@without_gpu
@pytest.mark.parametrize("estimator", [gnnrec.LightGCN, gnnrec.GFCF])
def test_an_estimator_says_at_once_that_there_is_no_gpu(estimator):
    assert estimator().device == CPU
    with pytest.raises(DeviceError, match="device=cuda: torch sees no GPU"):
        estimator(device="cuda")


@without_gpu
def test_the_command_line_without_a_gpu(tmp_path):
    """One message, exit code 2, and nothing left behind; and a run of one device is of use on another."""
    remedy = "Use device=cpu, or install a build of torch for this GPU's CUDA version"
    says = f"gnnrec: device=cuda: torch sees no GPU. {remedy}\n"
    sizes = ("num_users=60", "num_items=120", "num_interactions=900", "communities=3")
    small = [f"data.synthetic.{size}" for size in sizes] + ["trainer.epochs=1", "hydra.run.dir=run"]
    result = forked.gnnrec("train", *small, "device=cuda", cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", says)
    assert not list(tmp_path.iterdir())
    assert forked.gnnrec("train", *small, "device=cpu", cwd=tmp_path).returncode == 0
    for app in ("evaluate", "recommend"):
        result = forked.gnnrec(app, "run=run", "device=cuda", cwd=tmp_path)
        assert (result.returncode, result.stdout, result.stderr) == (2, "", says)
        result = forked.gnnrec(app, "run=run", "device=gpus", cwd=tmp_path)
        assert (result.returncode, result.stderr) == (2, "gnnrec: device: is 'gpus'. Known are: auto, cpu, cuda\n")
        assert forked.gnnrec(app, "run=run", "device=auto", cwd=tmp_path).returncode == 0
    result = forked.gnnrec("train", *small, "resume=true", "device=auto", "trainer.epochs=2", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["epochs"], summary["device"], bool(summary["device_name"])) == (2, "cpu", True)
    assert "peak_gpu_bytes" not in summary


def test_facts_of_a_device(gpu, monkeypatch):
    facts = runlog.device_facts(GPU)
    assert facts == {"device": "cuda", "device_name": "Made-up GPU", "peak_gpu_bytes": 5 << 30}
    assert runlog.device_facts(CPU).keys() == {"device", "device_name"}
    found = runlog.versions(gpu=True)
    assert found["cuda"] == str(torch.version.cuda)
    assert "cuda" not in runlog.versions()


def test_adam_is_fused_and_made_for_graphs_on_a_gpu_alone():
    model = torch.nn.Linear(2, 2)
    options = optim.build(OptimizerConfig(lr=0.5), model).defaults
    assert (options["lr"], options["fused"], options["capturable"]) == (0.5, True, False)


# No memory left


def refuse(*args, **options):
    raise OUT_OF_MEMORY


def test_a_tensor_that_does_not_fit(gpu):
    like = SimpleNamespace(new_empty=refuse, dtype=torch.float32, device=GPU)
    says = (
        r"cuda:0: the result of spmm \[10000000, 64\] needs 2\.38 GiB, but of 80\.00 GiB only 2\.00 GiB are free\. "
        r"Lower model\.dim, trainer\.batch_size or evaluation\.k, use device=cpu, or end what else uses this GPU"
    )
    with pytest.raises(DeviceMemoryError, match=says):
        devices.empty(like, (10_000_000, 64), "the result of spmm")
    with pytest.raises(DeviceMemoryError, match=r"work \[4096\] needs 32\.0 KiB, but"):
        devices.empty(like, 4096, "work", torch.float64)


def test_torchs_own_message_is_translated(gpu):
    says = r"cuda:0: sorting needs 2\.50 GiB more, but of 80\.00 GiB only 2\.00 GiB are free\. Lower model\.dim, "
    with pytest.raises(DeviceMemoryError, match=says), devices.memory_errors("sorting"):
        refuse()
    says = r"needs more than there is, but .* free\. Lower k, use device=cpu"
    with pytest.raises(DeviceMemoryError, match=says), devices.memory_errors("sorting", lower="k"):
        raise torch.OutOfMemoryError("something else")
    with pytest.raises(ValueError, match="other errors pass"), devices.memory_errors("sorting"):
        raise ValueError("other errors pass")


def test_training_out_of_memory_names_the_settings_and_keeps_the_checkpoints(gpu, tmp_path, monkeypatch):
    real, calls = ops.bpr_loss, iter(range(100))
    monkeypatch.setattr(ops, "bpr_loss", lambda *a, **k: refuse() if next(calls) == 9 else real(*a, **k))
    says = r"training needs 2\.50 GiB more, .* Lower trainer\.batch_size \(now 128\) or model\.dim \(now 8\), use dev"
    with pytest.raises(DeviceMemoryError, match=says):
        run.train(config(device="cpu"), tmp_path)
    saved, warnings = checkpoint.load_latest(tmp_path / "checkpoints")
    assert (saved.state["epoch"], warnings) == (1, [])


def test_ranking_and_decomposition_out_of_memory(gpu, tmp_path, monkeypatch):
    opened, _ = run.train(config(device="cpu"), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(ops, "topk_scores", refuse)
        with pytest.raises(
            DeviceMemoryError, match=r"ranking needs .* Lower evaluation\.k \(now \[20\]\) or model\.dim"
        ):
            run.evaluate(opened, [20])
        log = opened.data.train
        scorer, ids = opened.model.scorer(), (log.user_ids, log.item_ids)
        for ask in (
            lambda: recommend.recommend(scorer, *ids, None),
            lambda: recommend.recommend_new_users(scorer, ids[1], log),
            lambda: recommend.similar_items(scorer, ids[1]),
        ):
            with pytest.raises(DeviceMemoryError, match=r"ranking needs .* Lower k or model\.dim, use"):
                ask()
    monkeypatch.setattr(ops, "spmm", refuse)
    with pytest.raises(DeviceMemoryError, match=r"the decomposition needs .* Lower model\.factors, use"):
        gnnrec.GFCF(factors=4, device="cpu").fit(opened.data.train)
    monkeypatch.setattr(torch.nn.Module, "to", refuse)
    with pytest.raises(DeviceMemoryError, match=r"the model needs .* Lower model\.dim, use"):
        run.open_run(tmp_path, "cpu")


# Losses that are looked at now and then


@pytest.fixture(scope="module")
def parts():
    return dataset.load(config().data)


def make(parts, read_seconds, **options) -> Trainer:
    graph = graph_of(parts.train)
    trainer = Trainer(
        models.LightGCN(graph, dim=8, layers=2, seed=1),
        TrainerConfig(epochs=3, batch_size=32),
        BPRConfig(),
        OptimizerConfig(lr=5e-3),
        seed=1,
        **options,
    )
    trainer.read_seconds = read_seconds
    return trainer


def counters(trainer: Trainer) -> dict[str, object]:
    return {name: value for name, value in vars(trainer.position).items() if not name.endswith("seconds")}


@pytest.mark.parametrize("read_seconds", [math.inf, 0.003])
def test_when_losses_are_read_changes_nothing(parts, tmp_path, read_seconds):
    results = []
    for name, seconds in (("now", 0.0), ("later", read_seconds)):
        with RunLog(tmp_path / name) as log:
            trainer = make(parts, seconds, log=log)
            trainer.fit()
        losses = [event["loss"] for event in read_events(tmp_path / name / "events.jsonl") if event["event"] == "epoch"]
        results.append((losses, counters(trainer), trainer.model.embedding.detach().clone()))
    assert results[0][:2] == results[1][:2]
    assert torch.equal(results[0][2], results[1][2])


@pytest.mark.parametrize("step", [0, 5, STEPS - 1, STEPS, 2 * STEPS - 2])
def test_interrupted_between_two_looks(parts, tmp_path, monkeypatch, step):
    whole = make(parts, math.inf)
    steps_per_epoch = whole.sampler.steps_per_epoch
    assert steps_per_epoch == STEPS
    whole.fit()
    real = Trainer._step

    def interrupted(self, number):
        if number == step:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        with pytest.raises(Interrupted):
            make(parts, math.inf, checkpoints=tmp_path).fit()
    resumed = make(parts, math.inf, checkpoints=tmp_path, resume=True)
    assert (resumed.position.step, resumed.position.epoch) == (step + 1, step // steps_per_epoch)
    resumed.fit()
    assert counters(resumed) == counters(whole)
    assert torch.equal(resumed.model.embedding, whole.model.embedding)


@pytest.mark.parametrize("step", [0, 7, STEPS + 3])
def test_the_step_that_diverged_is_found_later(parts, tmp_path, monkeypatch, step):
    real = Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda self, n: real(self, n) * (math.nan if n in (step, step + 1) else 1.0))
    trainer = make(parts, math.inf, checkpoints=tmp_path)
    with pytest.raises(DivergedError, match=rf"the loss is nan at step {step} \(epoch {1 + step // STEPS}\) with"):
        trainer.fit()
    latest = checkpoint.latest(tmp_path)
    assert latest == (tmp_path / f"step-{STEPS:08d}" if step > STEPS else None)


def test_loggers_are_told_of_all_steps_that_were_read(parts):
    class Steps(Logger):
        def steps(self, progress):
            shown.append((progress.step, progress.steps, type(progress.loss), math.isfinite(progress.loss)))

    shown = []
    make(parts, math.inf, log=RunLog(loggers=[Steps()])).fit()
    assert shown == [(STEPS * epoch, 3 * STEPS, float, True) for epoch in (1, 2, 3)]


def test_the_cpu_is_no_more_than_a_few_steps_ahead(parts, monkeypatch):
    made, log = [], []

    class Event:
        def record(self, stream):
            assert stream == f"stream of {GPU}"
            made.append(self)

        def synchronize(self):
            log.append((len(made), made.index(self)))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    trainer = make(parts, math.inf)
    monkeypatch.setattr(resident.Resident, "batch", lambda self, step: self.sampler.batch(step))
    trainer.learner.device = GPU
    for step in range(8):
        trainer._step(step)
    ahead = resident.AHEAD
    assert log == [(done, done - ahead - 1) for done in range(ahead + 1, 9)]


def test_batches_for_a_gpu_are_pinned_and_the_same(parts, monkeypatch):
    graph, real, asked = graph_of(parts.train), torch.empty, []

    def empty(*shape, pin_memory, **options):
        asked.append(pin_memory)
        return real(*shape, **options)

    monkeypatch.setattr(torch, "empty", empty)
    batches = [TripleSampler(graph, 50, seed=3, pinned=pinned).batch(2)[0] for pinned in (True, False)]
    assert asked == [True, False]
    assert torch.equal(*batches)


def test_a_run_goes_on_with_another_device(tmp_path):
    run.train(config(device="cpu"), tmp_path)
    longer = config(device="auto", resume=True)
    assert longer.trainer is not None
    longer.trainer.epochs = 4
    _, summary = run.train(longer, tmp_path)
    assert summary["epochs"] == 4
    assert "device: auto" in (tmp_path / "config.yaml").read_text()
    with pytest.raises(ConfigError, match="device: is 'tpu'"):
        config(device="tpu").validate()


def test_a_model_in_closed_form_names_its_device(tmp_path):
    closed = config(model=GFCFConfig(factors=8), loss=None, optimizer=None, trainer=None, device="cpu")
    opened, summary = run.train(closed, tmp_path)
    assert (opened.device, summary["device"]) == (CPU, "cpu")
    (start,) = [event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "start"]
    assert start["device"] == "cpu"
    assert run.evaluate(run.open_run(tmp_path, "cpu"), [20]) == summary["metrics"]
