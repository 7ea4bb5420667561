"""The studies run from the command line on a small data set, and say what they found."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev

import pandas as pd
import pytest
from made_up_tiers import disk, dram

from gnnrec.errors import ConfigError
from gnnrec.training import placing

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
SMALL = [
    "data.synthetic.num_users=60",
    "data.synthetic.num_items=50",
    "data.synthetic.num_interactions=600",
    "data.synthetic.communities=2",
    "model.dim=8",
]


def reproduce(study: str, *given: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXPERIMENTS / "reproduce.py"), study, *given]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def written(folder: Path) -> dict[Path, int]:
    """When the files in it were last written, locks aside."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {file: file.stat().st_mtime_ns for file in files}


def shortly(study: str, tmp_path_factory) -> tuple[Path, str]:
    """What the short form of a study leaves, and what it says."""
    folder: Path = tmp_path_factory.mktemp(study)
    done = reproduce(study, "short=true", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return folder / "outputs" / "studies" / f"{study}-short", done.stdout


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return shortly("published", tmp_path_factory)[0]


def test_published_has_mean_and_deviation_of_every_model_over_seeds(published):
    table = pd.read_csv(published / "published-accuracy.csv")
    jobs = pd.read_csv(published / "published-jobs.csv")
    assert table["model"].tolist() == ["MF", "LightGCN", "NGCF", "XSimGCL", "GF-CF"]
    assert (jobs["status"] == "done").all()
    for _, row in table.iterrows():
        runs = jobs[jobs["sweep"] == row["model"]]
        assert runs["seed"].tolist() == [0, 1]
        summaries = [
            json.loads((published / "runs" / folder / "summary.json").read_bytes()) for folder in runs["folder"]
        ]
        values = [summary["metrics"]["test"]["recall@20"] for summary in summaries]
        assert row["recall@20"] == pytest.approx(mean(values))
        assert row["recall@20, deviation"] == pytest.approx(stdev(values))
    text = (published / "published.md").read_text()
    assert "| date | 20" in text
    assert f"| torch | {version('torch')} |" in text
    assert "The short form" in text
    assert (published / "published-synthetic.svg").read_text().startswith("<?xml")


def test_a_study_goes_on_where_it_stopped_and_refuses_other_options(published, tmp_path):
    command = [sys.executable, str(EXPERIMENTS / "reproduce.py"), "published", "short=true", "only=MF"]
    for attempt in range(5):  # on a busy machine it may be done before the signal comes
        tmp_path = tmp_path / str(attempt)
        tmp_path.mkdir()
        begun = tmp_path / "outputs" / "studies" / published.name / "runs" / "MF" / "1" / "config.yaml"
        with subprocess.Popen(
            command,
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what a shell starts with & ignores it
        ) as process:
            while not begun.exists() and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=300)
        if process.returncode:
            break
    assert process.returncode == 130, said
    assert not (begun.parents[3] / "published.md").exists()
    again = reproduce("published", "short=true", "only=MF", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "job 0 (seed=0): done before" in again.stdout
    found, whole = (pd.read_csv(folder / "published-jobs.csv") for folder in (begun.parents[3], published))
    assert found["test_recall@20"].tolist() == whole["test_recall@20"].tolist()[:2]
    before = written(tmp_path)
    other = reproduce("published", "short=true", "only=MF", "data.synthetic.noise=0.2", cwd=tmp_path)
    assert other.returncode == 2
    assert written(tmp_path) == before
    assert "published.md" not in other.stdout
    assert "holds a sweep of other jobs: job 0 had nothing, and now data.synthetic.noise=0.2 instead" in other.stderr


def test_published_figures_stand_beside_what_was_reached(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import published
    import reproduce

    study = reproduce.load("published")
    jobs = pd.DataFrame(
        {"data": data, "sweep": sweep, "seed": seed, "test_recall@20": 0.18 + seed / 100, "test_ndcg@20": 0.15}
        | {"train_seconds": 2.0, "peak_rss_bytes": 2**30}
        for data in ("gowalla", "lastfm")
        for sweep in ("LightGCN", "GF-CF")
        for seed in (0, 1)
    )
    (table,), figures = published.results(jobs, study)
    rows = [dict(zip((cell.value for cell in table.header), row)) for row in table.rows]
    assert rows[0]["recall@20, published"].value == 0.183
    assert rows[0]["recall@20, difference"].value == pytest.approx(0.185 - 0.183)
    assert rows[0]["published by"].value == "He et al. 2020 (LightGCN), table 4"
    assert all(rows[2][name].value is None for name in ("recall@20, published", "published by"))
    assert [figure.name for figure in figures] == ["gowalla", "lastfm"]


def test_depth_has_a_row_a_model_and_number_of_layers(tmp_path_factory):
    folder, _ = shortly("depth", tmp_path_factory)
    table, jobs = (pd.read_csv(folder / f"depth-{name}.csv") for name in ("layers", "jobs"))
    assert table["layers"].tolist() == [1, 2, 3, 1, 2]
    assert table["seeds"].tolist() == [1] * 5
    assert table["recall@20"].tolist() == pytest.approx(jobs["test_recall@20"].tolist())
    assert jobs["model.layers"].tolist() == table["layers"].tolist()
    assert all((folder / f"depth-{name}.svg").exists() for name in ("recall", "training"))


def test_placement_gives_the_same_bits_wherever_tensors_lie(tmp_path_factory):
    folder, _ = shortly("placement", tmp_path_factory)
    table = pd.read_csv(folder / "placement-steps.csv")
    assert table["memory"].tolist() == ["dram", "direct", *["stream"] * 5]
    assert (table["the same"] == "yes").all()
    assert table["panel"].tolist()[2:] == [16, 32, 16, 16, 16]
    stamped = table["step (seconds)"].str.startswith("SIMULATED")
    assert stamped.tolist() == [False] * 4 + [True] * 3
    assert table["device reads (GB/s)"].tolist()[4:] == [2, 1, 0.2]
    jobs = pd.read_csv(folder / "placement-jobs.csv")
    assert jobs["stamp"].fillna("").tolist() == [""] * 4 + ["SIMULATED"] * 3


def test_ablation_measures_every_form_that_is_right(tmp_path_factory):
    folder, _ = shortly("ablation", tmp_path_factory)
    table = pd.read_csv(folder / "ablation-forms.csv")
    assert "note" not in table  # none failed its check
    assert table["operator"].value_counts().to_dict() == {"ngcf_layer": 6, "gat_conv": 5, "lightgcn_propagate": 4}
    for _, forms in table.groupby("operator"):
        plain, fused = forms.iloc[0], forms.iloc[-1]
        assert plain["results of operators (bytes)"] > 10 * fused["results of operators (bytes)"]
        assert plain["peak memory (bytes)"] > fused["peak memory (bytes)"]
        assert fused["time / all on"] == 1
    assert (table.loc[(table["recomputed"] == "on") & (table["fused"] == "off"), "kept (bytes)"] == 0).all()
    ngcf = table[(table["operator"] == "ngcf_layer") & (table["fused"] == "on")].set_index("recomputed")["kept (bytes)"]
    assert ngcf["off"] - ngcf["on"] == 500 * 64 * 4  # the aggregates


def test_data_sets_that_are_not_there_are_left_out_and_named(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import reproduce

    monkeypatch.setenv("GNNREC_DATA", str(tmp_path))
    assert reproduce.at_hand(["synthetic", "gowalla"]) == (["synthetic"], ["gowalla"])
    assert reproduce.at_hand("gowalla") == ("gowalla", [])
    with pytest.raises(ConfigError, match=r"none is at hand of gowalla, lastfm\. Set GNNREC_DATA"):
        reproduce.at_hand(["gowalla", "lastfm"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["publishd"], "there is no study 'publishd'. Did you mean published?"),
        (["published", "short"], "command line: 'short' is no setting. Settings are given as KEY=VALUE"),
        (["published", "only=[GFCF]"], "only: there is no sweep 'GFCF'. Did you mean GF-CF or NGCF?"),
        (["published", "only=[]"], "only: names no sweep. Known are: MF, LightGCN, NGCF, XSimGCL, GF-CF"),
        (["published", "seed=[1"], "seed: '[1' cannot be read. Values are YAML: 1, text, [1,2]"),
        (["published", "short=maybe"], "short: is 'maybe'. It is true or false"),
    ],
)
def test_a_mistake_in_the_command(given, says, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import reproduce

    assert reproduce.main(given) == 2
    assert capsys.readouterr().err == f"gnnrec: {says}\n"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["published", "short=true", "only=MF", "nothing=1"], "nothing: unknown key"),
        (["published", "data=[yelp2018]"], "data: none is at hand of yelp2018"),
        (["published", "short=true", "out=/proc/x"], "/proc/x"),
        (["ablation", "short=true", "dim=0"], "argument --dim: is 0; it must be above 0"),
        (["sampling", "short=true", "gbit=0"], "argument --gbit: is 0; it must be above 0"),
        (["sampling", "short=true", "latency-us=-1"], "argument --latency-us: is -1; it must be at least 0"),
    ],
)
def test_what_cannot_be_run_leaves_nothing(given, says, tmp_path, monkeypatch):
    monkeypatch.setenv("GNNREC_DATA", str(tmp_path / "data"))
    done = reproduce(*given, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not written(tmp_path)


def test_help_is_given(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import reproduce

    assert reproduce.main(["--help"]) == 0
    assert "only=[...]" in capsys.readouterr().out


def test_every_study_has_a_short_form_and_is_listed(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import reproduce

    text = (EXPERIMENTS / "README.md").read_text()
    for file in EXPERIMENTS.glob("*.yaml"):
        assert reproduce.load(file.stem, short=True)["about"]
        assert f"`{file.stem}`" in text


def test_batch_sizes_of_a_small_data_set(tmp_path_factory):
    folder, said = shortly("batch_size", tmp_path_factory)
    assert "| softmax |" in said
    result = json.loads((folder / "batch_size.json").read_bytes())
    found = [(run["loss"], run["rule"]) for run in result["runs"]]
    assert found == [(loss, rule) for loss in ("bpr", "softmax") for rule in ("none", "none", "sqrt", "linear")]
    whole = [run for run in result["runs"] if run["batch"] > 64]
    assert all(run["steps"] == 1 and len(run["epochs"]) == 1 for run in whole)
    table = pd.read_csv(folder / "batch_size-runs.csv")
    last = [run["epochs"][-1]["metrics"]["recall@20"] for run in result["runs"]]
    assert table["recall@20"].tolist() == pytest.approx(last)
    assert all((folder / f"batch_size-{name}.svg").exists() for name in ("recall", "seconds"))
    said_at = (folder / "batch_size.json").stat().st_mtime_ns
    again = reproduce("batch_size", "short=true", cwd=folder.parents[2])
    assert again.returncode == 0
    assert said_at == (folder / "batch_size.json").stat().st_mtime_ns  # the second time it only shows
    before = written(folder)
    other = reproduce("batch_size", "short=true", "epochs=2", cwd=folder.parents[2])
    assert other.returncode == 2
    assert "batch_size.json: holds runs with epochs 1, not 2. Give the same options" in other.stderr
    assert written(folder) == before
    (folder / "batch_size.json").write_text("{")
    damaged = reproduce("batch_size", "short=true", cwd=folder.parents[2])
    assert damaged.returncode == 2
    assert "batch_size.json: cannot be read" in damaged.stderr


def test_time_to_accuracy_of_a_small_data_set(tmp_path_factory):
    folder, _ = shortly("time_to_accuracy", tmp_path_factory)
    table = pd.read_csv(folder / "time_to_accuracy-recipes.csv")
    assert table["recipe"].str.split().str[0].tolist() == ["large_batch", "large_batch_bpr"]
    assert table["held by"].tolist() == ["2 of 2 seeds"] * 2
    assert (table["until held (seconds)"] <= table["training (seconds)"]).all()


def test_other_runs_stay(tmp_path, monkeypatch):
    """Each is held to the published figures of its model, from where no later evaluation misses them."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import curves
    import time_to_accuracy

    recalls = {"large_batch_bpr": [0.18, 0.19, 0.18, 0.19], "large_batch_ngcf": [0.1, 0.16, 0.16, 0.16]}

    made = []

    def curve(overrides, data, every):
        made.append(overrides)
        recall = recalls[overrides[0].partition("=")[2]]
        records = [
            {"epoch": n * every, "train_seconds": 10.0 * n, "metrics": {"recall@20": r, "ndcg@20": r}}
            for n, r in enumerate(recall, 1)
        ]
        result = {"overrides": list(overrides), "epochs": records, "steps": 8}
        return result | {"start_seconds": 1.0, "compile_seconds": 3.0}

    monkeypatch.setattr(curves, "curve", curve)
    monkeypatch.setattr(time_to_accuracy.dataset, "load", lambda config: None)
    for recipe, seeds in (("large_batch_bpr", "0"), ("large_batch_ngcf", "0"), ("large_batch_bpr", "1")) * 2:
        given = ["--data", "gowalla", "--recipes", recipe, "--seeds", seeds, "--every", "5", "--out", str(tmp_path)]
        assert time_to_accuracy.main(given) == 0
    runs = json.loads((tmp_path / "time_to_accuracy.json").read_bytes())["runs"]
    held = {"epoch": 20, "seconds": 41.0, "without_compilation": 38.0}
    assert [(run["recipe"], run["seed"], run["held"]) for run in runs] == [
        ("large_batch_bpr", 0, held),
        ("large_batch_ngcf", 0, {"epoch": 10, "seconds": 21.0, "without_compilation": 18.0}),
        ("large_batch_bpr", 1, held),
    ]
    assert {run["every"] for run in runs} == {5}
    assert len(made) == 3  # the second time there is nothing to do
    mine = ["--recipes", "large_batch_bpr", "--seeds", "0", "--every", "5", "--out", str(tmp_path)]
    with pytest.raises(ConfigError, match=r"holds runs of data=gowalla\. Choose another out"):
        time_to_accuracy.main(["--data", "ml-100k", *mine])
    assert time_to_accuracy.main(["--data", "gowalla", "--set", "data.valid_by=per_user_order", *mine]) == 0
    runs = json.loads((tmp_path / "time_to_accuracy.json").read_bytes())["runs"]
    named = [time_to_accuracy.named(run, runs) for run in runs]
    assert named == [
        "large_batch_bpr",
        "large_batch_ngcf",
        "large_batch_bpr",
        "large_batch_bpr data.valid_by=per_user_order",
    ]
    assert (tmp_path / "time_to_accuracy-recall.svg").stat().st_size > 1000


def test_committed_results_are_shown_as_they_are(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import batch_size
    import output
    import scale
    import time_to_accuracy

    for study in (batch_size, scale, time_to_accuracy):
        result = json.loads((EXPERIMENTS / "results" / f"{study.__name__}.json").read_bytes())
        output.write(tmp_path, study.__name__, study.tables(result), study.figures(result))
    table = pd.read_csv(tmp_path / "time_to_accuracy-recipes.csv").set_index("recipe")
    assert table.loc["large_batch", "recall@20"] == pytest.approx(0.1886, abs=5e-5)
    assert len(pd.read_csv(tmp_path / "batch_size-runs.csv")) == 20
    assert len(pd.read_csv(tmp_path / "scale-steps.csv")) == 10


def test_scale_measures_what_it_planned(tmp_path, monkeypatch, data_root):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import scale

    monkeypatch.setattr(placing, "discover", lambda folders: [dram(), *map(disk, folders)])
    monkeypatch.setattr(placing.calibrate, "calibrated", list)
    users, items, interactions = scale.GOWALLA
    shape = {"users": users, "items": items, "interactions": interactions, "dim": 16, "batch": 512}
    rows = []
    for memory in ("dram", "direct", "stream"):
        case = {"series": "limits", "size": 1, **shape, "memory": memory, "limit_bytes": None}
        rows.append(case | json.loads(json.dumps(scale.measured(case, tmp_path, 1))))
    assert [row["plan"]["mode"] for row in rows] == ["dram", "direct", "stream"]
    assert all(row["seconds_per_step"] > 0 and len(row["steps_seconds"]) == 1 for row in rows)
    assert rows[2]["transfer_seconds_per_step"] > 0
    assert sorted(path.name for path in (tmp_path).iterdir()) == [".gnnrec-tier.lock"]
    failed = rows[0] | {"failed": "exit code 2"}
    result = {"rows": [*rows, failed], "conditions": {}}
    shown, _ = scale.tables(result)
    assert [row[-1].value for row in shown.rows] == [None, None, None, "exit code 2"]
    assert len(scale.figures(result)) == 1


def test_scale_measures_each_case_in_a_process_of_its_own(tmp_path_factory):
    folder, said = shortly("scale", tmp_path_factory)
    table = pd.read_csv(folder / "scale-steps.csv")
    assert table["memory"].tolist() == ["dram", "direct", "stream"]
    assert (table["interactions"] == 1200).all()
    assert said.count("measuring") == 3


def test_sizes_stand_beside_what_is_attainable(tmp_path_factory):
    folder, _ = shortly("sizes", tmp_path_factory)
    table = pd.read_csv(folder / "sizes-sizes.csv")
    assert table["recipe"].tolist() == ["large_batch", "fastest"] * 4
    assert (table["recall@20, share"] * table["recall@20, attainable"]).tolist() == pytest.approx(table["recall@20"])
    assert table["recall@20, share"].between(0, 1.05).all()
    assert all((folder / f"sizes-{name}.svg").exists() for name in ("recall@20", "training"))
