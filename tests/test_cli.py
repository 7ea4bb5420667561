"""The command as a user meets it: a process with options, exit code, messages and files."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import forked
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml

GNNREC = str(Path(sys.executable).with_name("gnnrec"))
SMALL = (
    "data.synthetic.num_users=60",
    "data.synthetic.num_items=120",
    "data.synthetic.num_interactions=900",
    "data.synthetic.communities=3",
    "trainer.epochs=2",
)
LONG = (*SMALL, "trainer.epochs=40", "trainer.batch_size=64", "trainer.checkpoint_every=5", "trainer.patience=1000")
# A log of 30 users with 8 of 40 items each. The users' ids look like the markup of a library that prints tables.
HAVE = {f"[b]u{user}": {f"{(7 * user + 5 * n) % 40:03}é" for n in range(8)} for user in range(30)}
LOG = "user,item\n" + "".join(f"{user},{item}\n" for user, items in HAVE.items() for item in sorted(items))
CONTROL = re.compile(r"[^\t\n -~\xa0-\U0010ffff]")

Result = subprocess.CompletedProcess[str]


def gnnrec(*args: str, cwd: Path, **options: Any) -> Result:
    """Run the installed command."""
    return subprocess.run([GNNREC, *args], cwd=cwd, text=True, timeout=120, **({"capture_output": True} | options))


def succeeds(result: Result) -> str:
    """What a command printed that found nothing wrong."""
    assert (result.returncode, result.stderr) == (0, "")
    assert CONTROL.search(result.stdout) is None
    return result.stdout


def complains(result: Result) -> str:
    """The one message of a command that met a mistake of the user's."""
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert CONTROL.search(line) is None
    assert line.startswith("gnnrec: ")
    return line.removeprefix("gnnrec: ")


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def summary(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def newest_model(run: Path) -> bytes:
    return (max((run / "checkpoints").glob("step-*")) / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> tuple[Path, str]:
    """Two small runs of one sweep, and what it printed."""
    folder: Path = tmp_path_factory.mktemp("sweep")
    args = ("train", *SMALL, "-m", "seed=0,1", "hydra.sweep.dir=runs")  # -m may stand between the others
    return folder / "runs", succeeds(forked.gnnrec(*args, cwd=folder))


@pytest.fixture(scope="module")
def run(sweep) -> Path:
    """A run that no test changes."""
    folder: Path = sweep[0] / "0"
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A run on a file of the user's."""
    folder: Path = tmp_path_factory.mktemp("own")
    (folder / "log.csv").write_text(LOG)
    told = forked.gnnrec("train", "data=files", "data.log=log.csv", "trainer.epochs=1", "hydra.run.dir=run", cwd=folder)
    assert "recommendations for user [b]u0\n" in succeeds(told)
    return folder / "run"


# What a user gets wrong: the command line, and what the message says, where `...` stands for anything.
COMMAND_LINES = [
    ("trian", "there is no app 'trian'. Did you mean train?"),
    ("data=gowalla", "there is no app 'data=gowalla'. Put an app before it: gnnrec train data=gowalla"),
    ("train gowalla", "train knows no 'gowalla'. Options are given as KEY=VALUE"),
    ("recommend similar run=x", "recommend knows no 'similar'. Did you mean similar_items?"),
    ("data lst", "data knows no 'lst'. Did you mean list?"),
    ("train --epochs 3", "there is no option '--epochs'. Options are given as epochs=VALUE; see gnnrec train --help"),
    ("train --experimental-rerun=x", "there is no option '--experimental-rerun=x'. Options are given as"),
    ("train data=gowala", "there is no data=gowala. Did you mean gowalla?"),
    ("train experiment=nothing", "there is no experiment=nothing. Known are: "),
    ("train optimzer.lr=1", "optimzer.lr: unknown key. Did you mean optimizer.lr"),
    ("train lr=1", "lr: unknown key. Did you mean optimizer.lr?"),
    (
        "train foo.bar=1",
        "foo.bar: unknown key. Known are: seed, device, threads, resume, profile, view, loggers,",
    ),
    ("train +foo=1", "foo: unknown key. Known are: device, loggers, profile, resume, seed, threads, view"),
    ("train +optimizer.foo=1", "optimizer.foo: unknown key. Known are: betas, clip, eps, lr"),
    ("train +data=gowalla", "data is chosen twice. Write data=NAME, without the +"),
    ("train data.log=x.csv", "data.log: unknown key. It belongs to data=files: add that"),
    ("train model=gfcf optimizer.lr=1", "optimizer.lr: has no effect: there is no optimizer with model=gfcf. Leave it"),
    ("train model=gfcf optimizer=adam", "optimizer: model=gfcf is computed in closed form...Leave out optimizer="),
    ("train ~loss", "loss: is not set. model=lightgcn needs it"),
    ("train optimizer=null", "Config group override...Choose by GROUP=NAME, leave out by ~GROUP"),
    ("train optimizer.lr = 3", "command line: 'optimizer.lr' cannot be read (...). Options are given as KEY=VALUE"),
    ("train optimizer.lr=[1", "command line: 'optimizer.lr=[1' cannot be read (...). Options are given as KEY=VALUE"),
    ("train seed=0,1", "command line: Ambiguous value for argument 'seed=0,1'...add --multirun to your command line"),
    ("train optimizer.lr=-1", "optimizer.lr: is -1.0. It must be above 0"),
    ("train seed=x", "seed: is 'x'. It must be a whole number"),
    ("train threads=9999", "threads: ...9999. Leave it out to use all"),
    ("train hydra.run.dir=ids/run", "ids/run: cannot be written: Not a directory (ENOTDIR). Create the folder first"),
    ("evaluate", "run: is not set. Add run=DIR, the directory that a training left"),
    ("evaluate data=gowalla", "data: unknown key. Known are: run, k, out, threads"),
    ("recommend run=x items=ids.txt", "items: has no effect on `gnnrec recommend`. Leave it out"),
    ("data info gowala", "no data set 'gowala' in the catalog. Did you mean 'gowalla'?"),
    ("data info", "name: is not set. Give one of: ml-100k, lastfm, gowalla"),
]
OWN = "train data=files data.log"
DATA = [
    ("train data=files", "data: neither data.log nor data.train is set. Give data.log=FILE"),
    (f"{OWN}=ratingz.csv", "ratingz.csv: no such file. Did you mean ratings.csv"),
    (f"{OWN}=renamed.csv", "renamed.csv: no column 'user'; found 'uid', 'item'. "),
    (f"{OWN}=torn.csv", "torn.csv, line 3: 1 columns where 2 are expected. Correct or remove the line"),
    (f"{OWN}=single.csv", "single.csv: the test part of...would be empty. "),
    (f"{OWN}=ratings.csv evaluation.k=41", "evaluation.k: is [41], but there are only 40 items. Ask for no more"),
    ("train data.synthetic.num_items=3000000000", "num_items is 3000000000. Use 1 to 2147483647"),
    ("train data=gowalla", "no data/gowalla: train.txt and test.txt...Run `gnnrec data fetch"),
]
RUNS = [
    ("train resume=true hydra.run.dir=new", "new: resume=true, but there is no run to go on with. Set hydra.run.dir"),
    ("train resume=true hydra.run.dir={run} seed=5", "has another configuration: ...seed=5 (was 0)...Give the same"),
    ("train hydra.run.dir={run}", "/0: holds a run already. Add resume=true to go on with it, or choose another"),
    ("evaluate run=[{run},nowhere]", "nowhere: is no run directory: it has no config.yaml. Give the directory"),
    ("evaluate run={run} k=121", "k: is [121], but there are only 120 items. Ask for no more than that"),
    ("evaluate run={run} out=there/table.csv", "out: is 'there/table.csv', but there is no folder 'there'. Create it"),
    ("evaluate run=broken", "broken/config.yaml: cannot be read: "),
    ("recommend run=damaged", "model.safetensors: has 1,000 bytes where the manifest has...estore "),
    ("recommend run={run} k=121", "k: is 121. It must lie within 1 and 120, the number of items to rank"),
    ("recommend run={run} out=top.xls", "out: is 'top.xls'. Let it end in .parquet, .csv, .json"),
    ("recommend run={run} users=ids.txt", "users: 1 of 2 user ids were not in training, such as ['x']. Leave them out"),
    ("recommend run={run} users=ids.csv", "ids.csv: has no column 'user', only ['u01']. Give a .txt file with one id"),
    ("recommend run={run} users=ids", "ids: is none of .txt, .csv, .parquet. Give a .txt file with one id a line"),
    ("recommend run={run} users=u01", "u01: cannot be read: no such file. Give a .txt file with one id a line"),
    ("recommend similar_items run={run} k=120", "k: is 120. It must lie within 1 and 119"),
    ("recommend new_users run={run} history=single.csv", "single.csv: 1 users have no item...['a']. Leave these"),
]


@pytest.fixture(scope="module")
def desk(run, tmp_path_factory) -> Path:
    """A folder with the files that the command lines above name."""
    folder: Path = tmp_path_factory.mktemp("desk")
    contents = {
        "ratings.csv": LOG,
        "renamed.csv": "uid,item\na,b\n",
        "torn.csv": "user,item\na,b\nc\n",
        "single.csv": "user,item\na,b\n",
        "ids.txt": "u01\nx\n",
        "ids.csv": "u01\nu02\n",
        "ids": "u01\nu02\n",
    }
    for name, content in contents.items():
        (folder / name).write_text(content)
    (folder / "broken").mkdir()
    (folder / "broken" / "config.yaml").write_text("model: [lightgcn")
    shutil.copytree(run, folder / "damaged")
    for file in folder.glob("damaged/checkpoints/*/model.safetensors"):
        os.truncate(file, 1000)
    return folder


@pytest.mark.parametrize(("args", "says"), COMMAND_LINES + DATA + RUNS)
def test_a_mistake_gets_one_message_and_leaves_nothing(args, says, desk, run):
    before = tree(desk), tree(run)
    result = forked.gnnrec(*args.format(run=run).split(" "), cwd=desk)
    assert re.search(re.escape(says).replace(r"\.\.\.", ".*"), complains(result)), result.stderr
    assert result.stdout == ""
    assert (tree(desk), tree(run)) == before


@pytest.mark.parametrize("args", ["train optimzer.lr=1", f"{OWN}=torn.csv"])
def test_the_installed_command_says_the_same(args, desk):
    words, before = args.split(" "), tree(desk)
    assert complains(gnnrec(*words, cwd=desk)) == complains(forked.gnnrec(*words, cwd=desk))
    assert tree(desk) == before


def test_no_room_for_a_table(run, tmp_path):
    (tmp_path / "top.csv").write_text("old")
    result = forked.gnnrec("recommend", f"run={run}", "out=top.csv", cwd=tmp_path, limit=4096)
    assert re.match(r"top.csv: cannot be written: File too large \(EFBIG\). Raise the limit", complains(result))
    assert tree(tmp_path) == {"top.csv"}
    assert (tmp_path / "top.csv").read_text() == "old"


def test_no_room_for_a_checkpoint(tmp_path):
    result = forked.gnnrec("train", *SMALL, "hydra.run.dir=run", cwd=tmp_path, limit=40_000)  # the model takes 46 kB
    assert re.search(r"checkpoints/step-0+1: cannot be written: File too large", complains(result))
    assert not [name for name in tree(tmp_path) if ".tmp" in name or "step" in name or "summary" in name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_no_room_for_what_is_printed(tmp_path):
    with open("/dev/full", "w") as full:
        result = gnnrec("data", "list", cwd=tmp_path, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert complains(result) == "standard output: no space left. Free some space"


def test_a_reader_that_goes_away_is_no_mistake(tmp_path):
    command = [GNNREC, "data", "list"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)


# What works


def test_a_sweep_makes_its_runs(sweep):
    folder, printed = sweep
    made = {path.name for path in folder.iterdir()}
    assert made == {"0", "1", ".lock", "multirun.yaml", "sweep.parquet", "sweep.csv"}
    for seed in (0, 1):
        run = folder / str(seed)
        assert {"config.yaml", "events.jsonl", "summary.json", "checkpoints", "data"} <= {p.name for p in run.iterdir()}
        assert (summary(run)["seed"], summary(run)["epochs"]) == (seed, 2)
        assert f"run directory: {run}\n" in printed
    assert newest_model(folder / "0") != newest_model(folder / "1")
    assert printed.count("epoch 2/2  loss") == printed.count("best attainable") == 2
    assert f"{summary(folder / '0')['metrics']['test']['recall@20']:.4f}" in printed


def test_a_run_is_evaluated_as_it_was_after_training(run, tmp_path):
    printed = succeeds(forked.gnnrec("evaluate", f"run={run}", cwd=tmp_path))
    for name, value in summary(run)["metrics"]["test"].items():
        assert re.search(rf"{name} .* {value:.4f} ", printed)


def test_several_runs_are_evaluated_into_a_table(sweep, tmp_path):
    runs = [str(sweep[0] / name) for name in ("0", "1")]
    printed = succeeds(forked.gnnrec("evaluate", f"run=[{','.join(runs)}]", "k=[5,20]", "out=table.csv", cwd=tmp_path))
    assert printed == "4 rows in table.csv\n"
    table = pd.read_csv(tmp_path / "table.csv")
    assert list(zip(table["run"], table["part"])) == [(run, part) for run in runs for part in ("valid", "test")]
    for name in ("recall@20", "ndcg@20", "coverage@20"):
        wanted = [summary(Path(run))["metrics"]["test"][name] for run in runs]
        assert table.loc[table["part"] == "test", name].tolist() == wanted
    assert (table["recall@5"] <= table["recall@20"]).all()
    assert tree(tmp_path) == {"table.csv"}


def test_users_come_from_any_file_and_recommendations_go_to_any(own, tmp_path):
    users = ["[b]u7", "[b]u3", "[b]u11"]
    (tmp_path / "users.txt").write_text("\n".join(users))
    pd.DataFrame({"age": 3, "user": users}).to_csv(tmp_path / "users.csv", index=False)
    pd.DataFrame({"user": users}).to_parquet(tmp_path / "users.parquet")
    for given, out in (("txt", "parquet"), ("csv", "json"), ("parquet", "csv")):
        args = ("recommend", f"run={own}", f"users=users.{given}", f"out=top.{out}", "k=5")
        assert succeeds(forked.gnnrec(*args, cwd=tmp_path)) == f"15 rows in top.{out}\n"
    top = pd.read_parquet(tmp_path / "top.parquet")
    assert top["user"].tolist() == [user for user in users for _ in range(5)]
    assert top["rank"].tolist() == [1, 2, 3, 4, 5] * 3
    assert set(top["item"]) <= set.union(*HAVE.values())
    for _, scores in top.groupby("user")["score"]:
        assert scores.is_monotonic_decreasing
    shown = succeeds(forked.gnnrec("recommend", f"run={own}", "users=users.txt", "k=2", cwd=tmp_path))
    assert [shown.count(f"│ {user} ") for user in users] == [2, 2, 2]
    others = [pd.read_json(tmp_path / "top.json"), pd.read_csv(tmp_path / "top.csv")]
    for other in others:
        assert other[["user", "item", "rank"]].equals(top[["user", "item", "rank"]])
        assert other["score"].tolist() == pytest.approx(top["score"].tolist(), rel=1e-6)


def test_what_a_user_has_is_not_recommended(own, tmp_path):
    everything = ("recommend", f"run={own}", "k=40", "out=top.parquet")
    succeeds(forked.gnnrec(*everything, cwd=tmp_path))
    top = pd.read_parquet(tmp_path / "top.parquet")
    known = sum(item in HAVE[user] for user, item in zip(top["user"], top["item"]))
    assert known == 48  # the test part: a fifth of 240
    assert len(top) == 30 * 40 - (240 - known)
    succeeds(forked.gnnrec(*everything, "exclude_seen=false", cwd=tmp_path))
    assert len(pd.read_parquet(tmp_path / "top.parquet")) == 30 * 40


def test_new_users_are_served_by_their_items(own, tmp_path):
    history = {"ann": ["000é", "005é"], "bob": ["010é"]}
    rows = "".join(f"{item},{user}\n" for user, items in history.items() for item in items)
    (tmp_path / "new.csv").write_text("sku,uid\n" + rows)
    columns = ("columns.user=uid", "columns.item=sku")
    args = ("recommend", "new_users", f"run={own}", "history=new.csv", *columns, "k=3", "out=top.csv")
    succeeds(forked.gnnrec(*args, cwd=tmp_path))
    top = pd.read_csv(tmp_path / "top.csv")
    assert top["user"].tolist() == ["ann"] * 3 + ["bob"] * 3
    assert not [item for user, item in zip(top["user"], top["item"]) if item in history[user]]


def test_ngcf_from_training_to_new_users(tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "new.csv").write_text("user,item\nann,000é\nann,005é\n")
    args = ("data=files", "data.log=log.csv", "model=ngcf", "model.node_dropout=0.1", "hydra.run.dir=run")
    assert "recommendations for user [b]u0\n" in succeeds(
        forked.gnnrec("train", *args, "trainer.epochs=1", cwd=tmp_path)
    )
    succeeds(forked.gnnrec("train", *args, "trainer.epochs=2", "resume=true", cwd=tmp_path))
    printed = succeeds(forked.gnnrec("evaluate", "run=run", cwd=tmp_path))
    assert re.search(rf"recall@20 .* {summary(tmp_path / 'run')['metrics']['test']['recall@20']:.4f} ", printed)
    for verb, rows in (((), 90), (("new_users", "history=new.csv"), 3), (("similar_items",), 120)):
        told = succeeds(forked.gnnrec("recommend", *verb, "run=run", "k=3", "out=top.csv", cwd=tmp_path))
        assert told == f"{rows} rows in top.csv\n"
    succeeds(forked.gnnrec("recommend", "embeddings", "run=run", "out=vectors", cwd=tmp_path))
    vectors = pq.read_table(tmp_path / "vectors" / "users.parquet")["vector"].to_pylist()
    assert {len(vector) for vector in vectors} == {256}


def test_similar_items_are_others(own, tmp_path):
    (tmp_path / "items.txt").write_text("007é\n")
    printed = succeeds(
        forked.gnnrec("recommend", "similar_items", f"run={own}", "items=items.txt", "k=2", cwd=tmp_path)
    )
    rows = [line.split("│")[1:3] for line in printed.splitlines() if "007é" in line]
    assert len(rows) == 2
    assert all(item.strip() == "007é" and similar.strip() != "007é" for item, similar in rows)


def test_embeddings_carry_the_users_ids(own, tmp_path):
    succeeds(forked.gnnrec("recommend", "embeddings", f"run={own}", "out=vectors", cwd=tmp_path))
    assert tree(tmp_path) == {"vectors", "vectors/users.parquet", "vectors/items.parquet"}
    users, items = (pq.read_table(tmp_path / "vectors" / f"{side}.parquet") for side in ("users", "items"))
    assert set(users["id"].to_pylist()) == set(HAVE)
    assert set(items["id"].to_pylist()) == set.union(*HAVE.values())
    assert {len(vector) for vector in users["vector"].to_pylist() + items["vector"].to_pylist()} == {64}


def test_the_catalog_is_there_without_data_or_network(tmp_path):
    printed = succeeds(forked.gnnrec("data", "list", cwd=tmp_path))
    assert re.search(r"gowalla .* 29858 .* 40981 .* 810128 \+ 217242 .* missing", printed)
    assert succeeds(forked.gnnrec("data", cwd=tmp_path)) == printed
    described = succeeds(forked.gnnrec("data", "info", "ml-100k", cwd=tmp_path))
    assert described == succeeds(forked.gnnrec("data", "info", "name=ml-100k", cwd=tmp_path))
    assert "licence  GroupLens terms" in described
    assert tree(tmp_path) == set()


def test_the_composed_configuration_is_printed_and_nothing_else_happens(tmp_path):
    printed = succeeds(forked.gnnrec("train", "model.layers=2", "--cfg", "job", cwd=tmp_path))
    config = yaml.safe_load(printed)
    assert (config["model"]["layers"], config["trainer"]["epochs"]) == (2, 40)
    assert tree(tmp_path) == set()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_there_is_nothing_to_tune_without_a_gpu(tmp_path):
    done = forked.gnnrec("tune", "operators=spmm", cwd=tmp_path)
    assert "gnnrec tune: torch sees no GPU. Launch shapes exist for the GPU's kernels alone" in complains(done)
    assert "operators: is 'spm'. Did you mean spmm?" in complains(
        forked.gnnrec("tune", "operators=[spm]", cwd=tmp_path)
    )
    assert tree(tmp_path) == set()


def test_help_names_apps_groups_verbs_and_keys(tmp_path):
    for overview in (forked.gnnrec("--help", cwd=tmp_path), forked.gnnrec(cwd=tmp_path)):
        text = succeeds(overview)
        for part in ("train ", "evaluate ", "recommend new_users|similar_items|embeddings", "data list|info|fetch"):
            assert part in text
        assert "model=custom|gfcf|lightgcn|ngcf" in text
    text = succeeds(forked.gnnrec("train", "--help", cwd=tmp_path))
    for group in (
        "data=synthetic ",
        "model=lightgcn ",
        "loss=bpr ",
        "optimizer=adam ",
        "trainer=default ",
        "experiment=",
    ):
        assert f"\n{group}" in text
    assert "resume: false # go on with the run in hydra.run.dir" in text
    assert "one of amazon-book, files, fractal, gowalla," in text
    assert "delimiter: null # of csv" in succeeds(forked.gnnrec("train", "data=files", "-h", cwd=tmp_path))
    text = succeeds(forked.gnnrec("recommend", "--help", cwd=tmp_path))
    assert text.startswith("gnnrec recommend [new_users|similar_items|embeddings] [KEY=VALUE ...]\n")
    assert "exclude_seen: true # leave out" in text
    assert "hydra" not in text


def test_a_narrow_terminal_cuts_no_number(run, tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 60, 0, 0))
    result = forked.gnnrec("evaluate", f"run={run}", "k=[5,20]", cwd=tmp_path, terminal=os.ttyname(theirs))
    assert (result.returncode, result.stderr) == (0, "")
    text = os.read(ours, 65536).decode()
    os.close(theirs)
    os.close(ours)
    assert "…" not in text
    for name, value in summary(run)["metrics"]["test"].items():
        assert re.search(rf"{name} .*{value:.4f}", text)


# Interrupted


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("uninterrupted")
    succeeds(forked.gnnrec("train", *LONG, "hydra.run.dir=run", cwd=folder))
    return folder / "run"


def interrupt(*args: str, cwd: Path, when: Path, signum: int) -> Result:
    """Run the command, and send the signal once a checkpoint lies in `when`."""
    with subprocess.Popen(
        [GNNREC, *args], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not any(when.glob("step-*")) and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signum)
        stdout, stderr = process.communicate()
    return Result(args, process.returncode, stdout, stderr)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_training_goes_on_as_if_nothing_had_been(signum, code, uninterrupted, tmp_path):
    args, run = ("train", *LONG, "hydra.run.dir=run"), tmp_path / "run"
    result = interrupt(*args, cwd=tmp_path, when=run / "checkpoints", signum=signum)
    assert result.returncode == code
    (line,) = result.stderr.splitlines()
    step = max((run / "checkpoints").glob("step-*"))
    assert line.startswith(f"gnnrec: interrupted by {signum.name}; the state is kept in {step}")
    assert not (run / "summary.json").exists()
    assert not [name for name in tree(run) if ".tmp" in name]
    printed = succeeds(forked.gnnrec(*args, "resume=true", cwd=tmp_path))
    assert "epoch 40/40" in printed
    assert "epoch 1/40" not in printed
    for key in ("metrics", "best_epoch", "epochs", "steps", "data", "model"):
        assert summary(run)[key] == summary(uninterrupted)[key]
    assert newest_model(run) == newest_model(uninterrupted)


def test_an_interrupt_ends_the_whole_sweep(tmp_path):
    args = ("train", *LONG, "-m", "seed=0,1", "hydra.sweep.dir=runs")
    first = tmp_path / "runs" / "0" / "checkpoints"
    result = interrupt(*args, cwd=tmp_path, when=first, signum=signal.SIGINT)
    assert result.returncode == 130
    assert len(result.stderr.splitlines()) == 1
    assert any(first.glob("step-*"))
    assert not (tmp_path / "runs" / "1").exists()
    assert pd.read_csv(tmp_path / "runs" / "sweep.csv")["status"].tolist() == ["interrupted", "waiting"]
