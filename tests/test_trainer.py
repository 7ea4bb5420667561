"""The training loop: the same result by any way to get there."""

import json
import os
import signal
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gnnrec import losses, models, ops
from gnnrec.config import BPRConfig, OptimizerConfig, SoftmaxConfig, TrainerConfig
from gnnrec.data import synthetic
from gnnrec.data.splits import split
from gnnrec.errors import ConfigError
from gnnrec.ops._numba import num_threads
from gnnrec.training import resident
from gnnrec.training.evaluate import Evaluator
from gnnrec.training.run import graph_of
from gnnrec.training.runlog import Logger, RunLog, read_events
from gnnrec.training.trainer import DivergedError, Interrupted, Trainer


@pytest.fixture(scope="module")
def parts():
    log = synthetic.generate(200, 160, 2400, communities=4, seed=0).log
    return split(log, by="random", ratios=(0.8, 0.1, 0.1), seed=0)


def make(
    parts, *, epochs=4, with_valid=True, seed=1, lr=5e-3, batch_size=256, log=None, checkpoints=None, resume=False
):
    train, valid, _ = parts
    graph = graph_of(train)
    return Trainer(
        models.LightGCN(graph, dim=20, layers=2, seed=seed),
        TrainerConfig(epochs=epochs, batch_size=batch_size, eval_every=1, patience=2),
        BPRConfig(),
        OptimizerConfig(lr=lr),
        seed=seed,
        valid=Evaluator(valid, graph.user_item(), [20]) if with_valid else None,
        checkpoints=checkpoints,
        log=log,
        resume=resume,
    )


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "loss",
    [
        BPRConfig(reg=1e-2),
        BPRConfig(reg=0, negatives=3, hardest=True),
        SoftmaxConfig(negatives=40, popularity=0.5, prior=0.5),
        SoftmaxConfig(negatives=10, positive_temperature=0.2),
        SoftmaxConfig(),
    ],
)
def test_a_batchs_nodes_alone_give_the_bits_of_all(loss, storage, layers, monkeypatch):
    log = synthetic.generate(2_000, 300, 10_000, communities=4, seed=0).log
    made, graph = [], graph_of(log)
    real = models.LightGCN.rows
    monkeypatch.setattr(models.LightGCN, "rows", lambda *given, **option: made.append(1) or real(*given, **option))
    results = {}
    for most in (0, 0.6):
        monkeypatch.setattr(resident, "FEW", most)
        model = models.LightGCN(graph, dim=16, layers=layers, seed=0)
        trainer = TrainerConfig(batch_size=100, storage=storage)
        learner = resident.Resident(model, trainer, loss, OptimizerConfig(lr=0.01), seed=1)
        results[most] = [*(learner.step(step, 1e-2) for step in range(4)), *learner.state().values()]
        assert len(made) == (4 if most else 0)
    assert all(map(torch.equal, *results.values()))


def test_models_with_another_forward_take_all_nodes(parts, monkeypatch):
    class Doubled(models.LightGCN):
        def forward(self):
            return 2 * super().forward()

    graph = graph_of(parts[0])
    learned = models.LightGCN(graph, dim=4, layer_weights="learned")
    with pytest.raises(ValueError, match="learned layer weights need the embeddings of all nodes"):
        learned.rows(torch.arange(3))
    listened, patched = (models.LightGCN(graph, dim=4) for _ in range(2))
    listened.register_forward_hook(lambda *given: None)
    patched.forward = patched._propagated
    others = models.SimGCL(graph, dim=4), models.NGCF(graph, dim=4, layers=1)
    for model in (Doubled(graph, dim=4), learned, listened, patched, *others):
        learner = resident.Resident(model, TrainerConfig(batch_size=2), BPRConfig(), OptimizerConfig(), seed=0)
        monkeypatch.setattr(models.LightGCN, "rows", None)  # nobody calls it
        assert learner.step(0, 1e-3) > 0


def test_a_batch_of_most_nodes_is_asked_once(parts, monkeypatch):
    graph, asked = graph_of(parts[0]), []
    real = losses.BPR.part
    monkeypatch.setattr(losses.BPR, "part", lambda *given: asked.append(1) or real(*given))
    model, config = models.LightGCN(graph, dim=4), TrainerConfig(batch_size=10_000)
    learner = resident.Resident(model, config, BPRConfig(), OptimizerConfig(), seed=0)
    for step in range(3):
        learner.step(step, 1e-3)
    assert len(asked) == 1


def interrupt_at(monkeypatch, step, signum=signal.SIGINT):
    """Send this process a signal while it computes step `step`."""
    real = Trainer._step

    def interrupted(self, number):
        if number == step:
            os.kill(os.getpid(), signum)
        return real(self, number)

    monkeypatch.setattr(Trainer, "_step", interrupted)


def state(trainer):
    """All that later steps depend on, without the clock."""
    counters = {name: value for name, value in asdict(trainer.position).items() if not name.endswith("seconds")}
    return counters, trainer.model.embedding.detach().clone()


def test_it_learns(parts):
    trainer = make(parts, epochs=30, with_valid=False)
    evaluator = Evaluator(parts[2], graph_of(parts[0]).user_item(), [20])
    before = evaluator(trainer.model.scorer())["recall@20"]
    trainer.fit()
    after = evaluator(trainer.model.scorer())["recall@20"]
    assert after > before + 0.2


@pytest.mark.parametrize("batch_size", [256, 3000])
def test_equal_for_any_number_of_threads(parts, batch_size):
    results = []
    for threads in (1, 2):
        with num_threads(threads):
            trainer = make(parts, batch_size=batch_size)
            trainer.fit()
            results.append(state(trainer))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_large_batches_are_equal_for_any_number_of_threads():
    """Enough triples and rows that every reduction of torch would be split among threads."""
    log = synthetic.generate(4000, 3000, 120_000, communities=4, seed=0).log
    results = []
    for threads in (1, 2):
        with num_threads(threads):
            trainer = make((log, None, None), epochs=1, with_valid=False, batch_size=80_000)
            trainer.fit()
            results.append(state(trainer))
    assert results[0][0]["step"] == 2
    assert torch.equal(results[0][1], results[1][1])


def test_seeds_matter(parts):
    one, same, other = (make(parts, seed=seed) for seed in (1, 1, 2))
    for trainer in (one, same, other):
        trainer.fit()
    assert torch.equal(one.model.embedding, same.model.embedding)
    assert not torch.equal(one.model.embedding, other.model.embedding)


def test_the_hardest_of_several_negatives_learns(parts):
    graph = graph_of(parts[0])
    evaluator = Evaluator(parts[2], graph.user_item(), [20])
    results = []
    for threads in (1, 2):
        with num_threads(threads):
            model = models.LightGCN(graph, dim=20, layers=2, seed=1)
            before = evaluator(model.scorer())["recall@20"]
            loss = BPRConfig(negatives=4, popularity=0.5, hardest=True)
            trainer = Trainer(model, TrainerConfig(epochs=12, batch_size=256), loss, OptimizerConfig(lr=5e-3), seed=1)
            trainer.fit()
            results.append(model.embedding.detach())
        assert evaluator(model.scorer())["recall@20"] > before + 0.2
    assert torch.equal(*results)


def make_softmax(parts, *, checkpoints=None, resume=False, **options):
    graph = graph_of(parts[0])
    return Trainer(
        models.LightGCN(graph, dim=20, layers=2, init="spectral", similarity="cosine", popularity=0.1, seed=1),
        TrainerConfig(epochs=6, batch_size=300, lr_decay="cosine", lr_scaling="sqrt", warmup_samples=900),
        SoftmaxConfig(precision="float32", **options),
        OptimizerConfig(lr=1e-2, betas=(0.5, 0.98)),
        seed=1,
        checkpoints=checkpoints,
        resume=resume,
    )


@pytest.mark.parametrize("loss", ["bpr", "softmax"])
def test_storage_in_bfloat16_steps_on_float32_copies(parts, tmp_path, loss):
    def trained(storage, epochs=6, **options):
        trainer = (make if loss == "bpr" else make_softmax)(parts, **options)
        settings = replace(trainer.config, storage=storage, epochs=epochs, lr_decay="none")
        config = BPRConfig() if loss == "bpr" else SoftmaxConfig(precision="float32")
        graph = trainer.model.graph
        model = models.LightGCN(graph, dim=20, layers=2, seed=1)
        again = Trainer(model, settings, config, OptimizerConfig(lr=5e-3), seed=1, **options)
        again.fit()
        return again

    half, whole = trained("bfloat16"), trained("float32")
    assert half.model.embedding.dtype == torch.bfloat16
    rank = Evaluator(parts[1], half.model.graph.user_item(), [20])
    assert rank(half.model.scorer())["recall@20"] == pytest.approx(rank(whole.model.scorer())["recall@20"], abs=0.03)
    (state,) = half.learner.optimizer.state.values()
    assert torch.equal(state["master"].bfloat16(), half.model.embedding)
    assert (state["master"] - whole.model.embedding).norm() < 0.05 * whole.model.embedding.norm()
    folder = {"checkpoints": tmp_path}
    trained("bfloat16", epochs=3, **folder)
    resumed = trained("bfloat16", **folder, resume=True)
    assert torch.equal(resumed.model.embedding, half.model.embedding)
    assert torch.equal(resumed.learner.optimizer.state[resumed.model.embedding]["master"], state["master"])


@pytest.mark.parametrize("options", [{}, {"negatives": 60, "popularity": 0.5}, {"negatives": 60, "correction": False}])
def test_softmax_learns_and_goes_on_where_it_was_interrupted(parts, tmp_path, monkeypatch, options):
    whole = make_softmax(parts, **options)
    evaluator = Evaluator(parts[2], graph_of(parts[0]).user_item(), [20])
    before = evaluator(models.LightGCN(graph_of(parts[0]), dim=20, layers=2).scorer())["recall@20"]
    whole.fit()
    assert evaluator(whole.model.scorer())["recall@20"] > before + 0.2
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8)
        with pytest.raises(Interrupted):
            make_softmax(parts, checkpoints=tmp_path, **options).fit()
    resumed = make_softmax(parts, checkpoints=tmp_path, resume=True, **options)
    resumed.fit()
    assert torch.equal(resumed.model.embedding, whole.model.embedding)


@pytest.mark.parametrize("step", [0, 3, 6, 7, 20])
def test_interrupted_and_resumed_is_bit_identical(parts, tmp_path, monkeypatch, step):
    whole = make(parts)
    whole.fit()
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(Interrupted) as interrupted:
            make(parts, checkpoints=tmp_path).fit()
    assert interrupted.value.signum == signal.SIGINT
    resumed = make(parts, checkpoints=tmp_path, resume=True)
    assert resumed.position.step == step + 1  # the step in progress was finished
    resumed.fit()
    assert state(resumed)[0] == state(whole)[0]
    assert torch.equal(resumed.model.embedding, whole.model.embedding)


def test_sigterm_too_and_a_second_interrupt_ends_at_once(parts, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2, signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM; the state is kept in"):
            make(parts, checkpoints=tmp_path).fit()
    before = signal.getsignal(signal.SIGINT)

    def impatient(self, step):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return 0.0

    monkeypatch.setattr(Trainer, "_step", impatient)
    with pytest.raises(KeyboardInterrupt):
        make(parts).fit()
    assert signal.getsignal(signal.SIGINT) is before


def test_early_stopping_keeps_the_best(parts, tmp_path):
    with RunLog(tmp_path) as log:
        trainer = make(parts, epochs=200, lr=0.1, log=log)
        position = trainer.fit()
    epochs = [event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "epoch"]
    scores = [event["valid"]["recall@20"] for event in epochs]
    assert len(scores) == position.epoch < 200
    assert position.best_epoch == int(np.argmax(scores)) + 1 == position.epoch - 2
    again = Evaluator(parts[1], graph_of(parts[0]).user_item(), [20])(trainer.model.scorer())
    assert again == position.best
    assert again["recall@20"] == max(scores)


def test_what_a_training_tells_its_loggers(parts, tmp_path):
    class Told(Logger):
        def phase(self, phase):
            told.append(phase)

        def steps(self, progress):
            told.append("step" if told[-1] == "training" else None)
            latest.append(progress)

        def event(self, event, fields):
            told.append((event, fields.get("epoch", fields.get("evaluations"))))

    told, latest = [], []
    trainer = make(parts, epochs=2, lr=1e-12, batch_size=2048, log=RunLog(loggers=[Told()]), checkpoints=tmp_path)
    trainer.config.patience = 1
    trainer.config.checkpoint_every = 2
    trainer.epochs = 3
    position = trainer.fit()
    epoch = ["training", "step", "validating"]
    expected = [("settings", None), "loading", *epoch, ("epoch", 1), *epoch, ("epoch", 2), ("stopped", 1), "saving"]
    assert told == expected
    assert [(seen.step, seen.epoch, seen.best_epoch) for seen in latest] == [(1, 0, 0), (2, 1, 1)]
    assert (latest[1].steps, latest[1].epochs, latest[1].best) == (3, 3, position.best)


def test_resuming_a_finished_run_changes_nothing(parts, tmp_path):
    first = make(parts, checkpoints=tmp_path)
    first.fit()
    again = make(parts, checkpoints=tmp_path, resume=True)
    again.fit()
    assert again.position.step == first.position.step
    assert torch.equal(again.model.embedding, first.model.embedding)


def test_resuming_with_fewer_epochs_than_are_done_trains_no_more(parts, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 20)
        with pytest.raises(Interrupted):
            make(parts, checkpoints=tmp_path).fit()
    again = make(parts, checkpoints=tmp_path, resume=True, epochs=1)
    assert again.position.epoch > 1
    assert again.fit().step == 21


def test_divergence_is_an_error_with_numbers(parts, tmp_path, monkeypatch):
    real = ops.bpr_loss

    def exploding(*args, **options):
        loss = real(*args, **options)
        return loss * torch.nan if steps.pop() else loss

    steps = [True, *[False] * 17]  # the warm-up is the first call
    monkeypatch.setattr(ops, "bpr_loss", exploding)
    trainer = make(parts, epochs=9, checkpoints=tmp_path)
    trainer.config.checkpoint_every = 1
    with pytest.raises(
        DivergedError, match=r"the loss is nan at step 16 .*learning rate 0.005\. Train anew with a lower optimizer.lr"
    ):
        trainer.fit()
    assert make(parts, checkpoints=tmp_path, resume=True).position.step in (8, 16)


def test_a_training_that_has_gone_on_for_longer_ends_at_once(parts, tmp_path):
    trainer = make(parts, epochs=3, checkpoints=tmp_path, with_valid=False)
    trainer.position.epoch, trainer.position.step = 2, 2 * trainer.sampler.steps_per_epoch
    trainer._save()
    shorter = make(parts, epochs=1, checkpoints=tmp_path, resume=True, with_valid=False)
    assert shorter.fit().step == trainer.position.step


def test_a_metric_that_is_not_computed(parts):
    trainer = make(parts)
    trainer.config.monitor = "recal@20"
    with pytest.raises(ConfigError, match=r"trainer.monitor: is 'recal@20'. Known are: .*recall@20"):
        trainer.fit()


def test_golden_losses(parts, tmp_path):
    """A refactoring must give the same losses; change these numbers only together with the model or the sampler."""
    with RunLog(tmp_path) as log:
        make(parts, epochs=3, log=log).fit()
    losses = [event["loss"] for event in read_events(tmp_path / "events.jsonl") if event["event"] == "epoch"]
    assert losses == pytest.approx(GOLDEN, rel=1e-6)


GOLDEN = json.loads((Path(__file__).parent / "golden_losses.json").read_text())


def test_the_steps_of_a_hand_written_loop(parts):
    """The same as Adam and BPR written out with torch on a dense adjacency."""
    trainer = make(parts, epochs=1, with_valid=False)
    matrix = trainer.model.graph.norm_adjacency()
    adjacency = ops.spmm(matrix, torch.eye(matrix.shape[0])).double()
    embedding = trainer.model.embedding.detach().double().requires_grad_()
    optimizer = torch.optim.Adam([embedding], lr=5e-3)
    for step in range(trainer.sampler.steps_per_epoch):
        users, positives, negatives = trainer.sampler.batch(step)[0]
        layers = [embedding, adjacency @ embedding, adjacency @ (adjacency @ embedding)]
        final = torch.stack(layers).mean(dim=0)
        difference = (final[users] * (final[negatives] - final[positives])).sum(dim=1)
        ego = embedding[torch.cat([users, positives, negatives])]
        loss = torch.nn.functional.softplus(difference).mean() + 1e-4 / 2 * ego.square().sum() / len(users)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trainer.fit()
    assert (trainer.model.embedding.detach().double() - embedding.detach()).abs().max() < 1e-5
