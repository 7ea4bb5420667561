"""gnnrec.experiment: models x data sets x seeds as a table."""

from __future__ import annotations

import json

import forked
import pandas as pd
import pytest
from test_sweep import SMALL

import gnnrec
from gnnrec.errors import ConfigError

MODELS = {"MF": ["model.layers=0"], "LightGCN": ["model.layers=2"]}
DATA = {"small": list(SMALL), "smaller": [*SMALL[:-1], "trainer.epochs=2", "data.synthetic.num_users=40"]}


def test_it_gives_what_a_sweep_of_the_command_line_gives(tmp_path):
    found = gnnrec.experiment(MODELS, DATA, seeds=[0, 1])
    columns = ["job", "model", "data", "seed", "status"]
    assert found.columns[:5].tolist() == columns
    assert found["model"].tolist() == ["MF"] * 4 + ["LightGCN"] * 4
    assert found["data"].tolist() == ["small", "small", "smaller", "smaller"] * 2
    assert found["seed"].tolist() == [0, 1] * 4
    assert (found["status"] == "done").all()
    swept = forked.gnnrec("train", *SMALL, "-m", "hydra.sweep.dir=sweep", "model.layers=0,2", "seed=0,1", cwd=tmp_path)
    assert swept.returncode == 0, swept.stderr
    table = pd.read_parquet(tmp_path / "sweep" / "sweep.parquet")
    mine = found[found["data"] == "small"]
    for part in ("valid", "test"):
        assert mine[f"{part}_recall@20"].tolist() == table[f"{part}_recall@20"].tolist()
    assert found.columns[5:].tolist() == table.columns[4:].tolist()


def test_names_are_models_and_recipes():
    found = gnnrec.experiment(["gfcf", "fastest"], ["synthetic"], overrides=SMALL[:-1])
    assert found[["model", "data", "status"]].to_numpy().tolist() == [
        ["gfcf", "synthetic", "done"],
        ["fastest", "synthetic", "done"],
    ]
    assert found["epochs"].tolist() == [0, 6]


def test_one_that_fails_does_not_take_the_others_along():
    data = {"few": [*SMALL, "data.synthetic.num_items=10"], "small": list(SMALL)}
    found = gnnrec.experiment(["lightgcn"], data)
    assert found["status"].tolist() == ["failed", "done"]
    assert found["message"][0].startswith("num_interactions: 900 interactions, where the communities")
    assert found["test_recall@20"].notna().tolist() == [False, True]


def test_a_folder_keeps_the_runs_and_goes_on_with_them(tmp_path, capsys):
    asked = {"models": {"MF": ["model.layers=0"]}, "datasets": {"small": list(SMALL)}, "folder": tmp_path / "runs"}
    first = gnnrec.experiment(seeds=[0], **asked)
    assert capsys.readouterr().out == ""
    summary = tmp_path / "runs" / "0" / "summary.json"
    written = summary.stat().st_mtime_ns
    assert first["test_recall@20"][0] == json.loads(summary.read_bytes())["metrics"]["test"]["recall@20"]
    both = gnnrec.experiment(seeds=[0, 1], **asked)
    assert summary.stat().st_mtime_ns == written
    assert both["status"].tolist() == ["done", "done"]
    with pytest.raises(ConfigError, match="holds a sweep of other jobs: job 0 had seed=0, and now seed=1 instead"):
        gnnrec.experiment(seeds=[1], **asked)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ((["lightgnc"], ["synthetic"]), "models: is 'lightgnc'. Did you mean lightgcn"),
        ((["lightgcn"], ["gowala"]), "datasets: is 'gowala'. Did you mean gowalla"),
        (([], ["synthetic"]), "experiment: nothing to train. Name a model"),
        (({"x": ["model.depth=2"]}, ["synthetic"]), "model.depth"),
    ],
)
def test_what_cannot_be_used_is_found_before_the_first_training(asked, says):
    with pytest.raises(ConfigError) as error:
        gnnrec.experiment(*asked)
    assert says in str(error.value)
