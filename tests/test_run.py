"""A run's directory: what is kept, what is refused, what goes on."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import gnnrec
from gnnrec.config import (
    MODELS,
    BPRConfig,
    DataConfig,
    EvaluationConfig,
    LightGCNConfig,
    OptimizerConfig,
    SyntheticConfig,
    TrainConfig,
    TrainerConfig,
)
from gnnrec.data import dataset
from gnnrec.errors import CheckpointError, ConfigError, DataError, StorageError
from gnnrec.storage import locked
from gnnrec.training import checkpoint, run, rundir
from gnnrec.training.trainer import DivergedError, Interrupted, Trainer


def config(**changes) -> TrainConfig:
    small = SyntheticConfig(num_users=200, num_items=150, num_interactions=3000, communities=4)
    return replace(
        TrainConfig(
            data=DataConfig(source="synthetic", name="synthetic", synthetic=small),
            model=LightGCNConfig(dim=16, layers=2),
            loss=BPRConfig(),
            optimizer=OptimizerConfig(),
            trainer=TrainerConfig(epochs=3, batch_size=512, eval_every=1, checkpoint_every=1),
        ),
        **changes,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run.train(config(), folder)
    return folder


def test_what_a_run_leaves(finished):
    assert {path.name for path in finished.iterdir()} == {
        "checkpoints", "config.yaml", "data", "events.jsonl", "summary.json", ".lock"
    }  # fmt: skip
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary["metrics"]) == {"valid", "test"}
    assert set(summary["metrics"]["test"]) == {
        f"{name}@20" for name in ("recall", "ndcg", "precision", "hit_rate", "mrr", "map", "coverage")
    }
    assert summary["data"]["attainable"]["recall@20"] > 0.3
    assert summary["epochs"] == 3
    assert summary["train_seconds"] >= summary["compile_seconds"] > 0
    assert {"steps", "eval_seconds", "peak_rss_bytes", "seed", "versions", "machine", "data"} <= set(summary)
    opened = run.open_run(finished)
    assert run.evaluate(opened, [20]) == summary["metrics"]


def test_a_start_that_was_killed_leaves_nothing_behind_in_the_next_run(tmp_path):
    """Killed between data and config: the next start takes its own data alone, with no validation part of another's."""
    rundir.save_data(dataset.load(config().data), tmp_path)
    whole = config()
    whole.data.valid_ratio = 0
    _, summary = run.train(whole, tmp_path)
    assert set(summary["metrics"]) == {"test"}
    assert not (tmp_path / "data" / "valid.parquet").exists()


def test_a_lost_part_is_missed(finished, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "data" / "valid.parquet").unlink()
    with pytest.raises(CheckpointError, match=r"data: cannot be read: .*valid\.parquet"):
        run.open_run(copy)


def test_a_checkpoint_of_another_model(finished, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("dim: 16", "dim: 8"))
    with pytest.raises(CheckpointError, match=r"does not fit the configuration in .*config\.yaml"):
        run.open_run(copy)


def test_a_directory_in_use_is_refused(tmp_path):
    with (
        locked(tmp_path / ".lock", "another process is training in this run directory"),
        pytest.raises(StorageError, match="another process is training in this run directory"),
    ):
        run.train(config(), tmp_path)


def test_resume_of_a_run_killed_before_its_first_checkpoint(tmp_path, finished):
    """It starts again, on the data it had kept, and ends as one that was never stopped."""
    process = multiprocessing.get_context("spawn").Process(target=_train_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert checkpoint.latest(tmp_path / "checkpoints") is None
    _, summary = run.train(config(resume=True), tmp_path)
    assert summary["metrics"] == json.loads((finished / "summary.json").read_text())["metrics"]


def _train_and_die(folder: Path) -> None:
    Trainer._step = lambda self, step: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment,return-value]
    run.train(config(), folder)


def test_interrupted_before_the_first_step(tmp_path, finished, monkeypatch):
    """A signal during compilation: the first step is done, a checkpoint is there, and resume ends on the same bits."""
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_warm_up", lambda self: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match="SIGTERM; the state is kept in"):
            run.train(config(), tmp_path)
    _, summary = run.train(config(resume=True), tmp_path)
    assert summary["metrics"] == json.loads((finished / "summary.json").read_text())["metrics"]


def test_resume_with_other_cutoffs(finished, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    with pytest.raises(ConfigError, match=r"trainer.monitor: is 'recall@20', but metrics are computed at K = \[10\]"):
        run.train(config(resume=True, evaluation=EvaluationConfig(k=[10])), copy)
    longer = config(resume=True, evaluation=EvaluationConfig(k=[20, 30]))
    assert longer.trainer is not None
    longer.trainer.epochs = 4
    _, summary = run.train(longer, copy)
    assert summary["epochs"] == 4
    assert "recall@30" in summary["metrics"]["valid"]
    assert "epochs: 4" in (copy / "config.yaml").read_text()


def test_a_learning_rate_that_decays_fixes_the_epochs(tmp_path):
    first = config()
    assert first.trainer is not None
    first.trainer.lr_decay = "linear"
    run.train(first, tmp_path)
    longer = replace(first, resume=True, trainer=replace(first.trainer, epochs=4))
    with pytest.raises(ConfigError, match=r"another configuration: trainer\.epochs=4"):
        run.train(longer, tmp_path)


def test_exploded_embeddings_are_not_kept(tmp_path):
    wild = config(optimizer=OptimizerConfig(lr=1e30))
    assert wild.trainer is not None
    wild.trainer.batch_size = 100_000
    with pytest.raises(
        DivergedError, match=r"largest entry of the embeddings is 1e\+30 at step 1 .*lower optimizer.lr"
    ):
        run.train(wild, tmp_path)
    assert checkpoint.latest(tmp_path / "checkpoints") is None


def test_a_core_of_generated_data(tmp_path):
    """The planted model numbers the users of the whole log, so the best attainable metrics are not given."""
    core = config()
    core.data.k_core = 10
    _, summary = run.train(core, tmp_path)
    assert summary["data"]["users"] < 200
    assert "attainable" not in summary["data"]


def test_parts_that_share_pairs_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    pairs = sorted({(int(u), int(i)) for u, i in rng.integers(0, 9, (40, 2))})
    for name, rows in (("train", pairs), ("test", pairs[:2])):
        (tmp_path / f"{name}.csv").write_text("user,item\n" + "".join(f"{u},{i}\n" for u, i in rows))
    files = DataConfig(train=str(tmp_path / "train.csv"), test=str(tmp_path / "test.csv"), valid_ratio=0)
    with pytest.raises(DataError, match=r"2 \(user, item\) pairs stand in more than one part"):
        dataset.load(files)


def test_filters_that_leave_nothing_and_files_without_effect(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("user,item,stars\n" + "".join(f"{u},{i},{u % 3}\n" for u in range(9) for i in range(u, u + 6)))
    rated = DataConfig(log=str(log), min_rating=5)
    rated.columns.rating = "stars"
    with pytest.raises(
        DataError, match=r"data\.min_rating: no interaction of .*log\.csv is rated 5 or better. Lower it"
    ):
        dataset.load(rated)
    with pytest.raises(DataError, match=r"data\.k_core: nothing of .*log\.csv has 7 interactions a user and an item"):
        dataset.load(DataConfig(log=str(log), k_core=7))
    with pytest.raises(ConfigError, match=r"data\.test: has no effect beside data\.log"):
        DataConfig(log=str(log), test=str(log)).validate()


def test_ids_kept_as_text(tmp_path):
    """A new user's items are matched as the model knows them: 007 is not 7 where both are names."""
    table = tmp_path / "history.csv"
    table.write_text("user,item\nnew,007\nnew,12\n")
    assert gnnrec.read_interactions(table).item_ids.ids.to_pylist() == [7, 12]
    as_text = gnnrec.read_interactions(table, ids_as_text=True)
    assert as_text.item_ids.ids.to_pylist() == ["007", "12"]
    assert gnnrec.IdMap(["007", "12", "7"]).encode(as_text.item_ids.ids).tolist() == [0, 1]
    assert gnnrec.IdMap([3, 7, 12]).encode(["007", "12", "alice", "8"]).tolist() == [1, 2, -1, -1]


@pytest.mark.parametrize("model", ["lightgcn", "ngcf", "xsimgcl"])
def test_a_run_stored_in_bfloat16_is_validated_opened_and_recommends(tmp_path, model):
    schema, settings = MODELS[model], TrainerConfig(epochs=2, batch_size=512, eval_every=1, storage="bfloat16")
    trained, summary = run.train(config(model=schema(dim=8, layers=2), trainer=settings), tmp_path / "run")
    opened = run.open_run(tmp_path / "run")
    again = run.evaluate(opened, [20])
    for part, metrics in summary["metrics"].items():
        assert again[part]["recall@20"] == pytest.approx(metrics["recall@20"], abs=0.02)
    for model in (trained.model, opened.model):
        _, scores = model.scorer().topk_by_history(trained.graph.user_item(), 5, None)
        assert scores.dtype == torch.float32
        assert scores.isfinite().all()
