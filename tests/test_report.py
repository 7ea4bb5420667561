"""Reports of runs: what is in them, what is compared, what is flagged and stamped, and that broken runs are named."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import forked
import pytest
from made_up_tiers import disk, dram

from gnnrec.config import (
    BPRConfig,
    DataConfig,
    GFCFConfig,
    LightGCNConfig,
    MemoryConfig,
    OptimizerConfig,
    SimulateConfig,
    SyntheticConfig,
    TrainConfig,
    TrainerConfig,
)
from gnnrec.errors import CheckpointError, ConfigError, GnnrecError, StorageError
from gnnrec.report import records, render
from gnnrec.report.fields import elided
from gnnrec.report.findings import findings
from gnnrec.report.sweep import read_sweep
from gnnrec.report.sweep import sections as sweep_sections
from gnnrec.training import placing, profile, run
from gnnrec.training.trainer import Interrupted, Trainer

SMALL = SyntheticConfig(num_users=200, num_items=150, num_interactions=3000, communities=4)
STREAM = MemoryConfig(name="stream", panel=16, buffer="1MiB")
SIMULATED = replace(STREAM, simulate=SimulateConfig(read_gb_per_s=0.05, write_gb_per_s=0.05))
VOID = {"meta", "link", "br", "img", "input", "use", "path"}


def config(memory: MemoryConfig | None = None, **changes) -> TrainConfig:
    return replace(
        TrainConfig(
            data=DataConfig(source="synthetic", name="synthetic", synthetic=SMALL),
            model=LightGCNConfig(dim=32, layers=2),
            loss=BPRConfig(),
            optimizer=OptimizerConfig(lr=0.01),
            trainer=TrainerConfig(epochs=3, batch_size=512, eval_every=1, checkpoint_every=1),
            memory=memory or MemoryConfig(),
        ),
        **changes,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Runs of every kind, on a machine with 16 GiB of DRAM and a disk wherever a folder is named."""
    folder: Path = tmp_path_factory.mktemp("runs")
    profiled = {"profiled": config(profile="on"), "recorded": config(STREAM, profile="on")}
    closed = config(model=GFCFConfig(), loss=None, optimizer=None, trainer=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placing, "discover", lambda folders: [dram(), *map(disk, folders)])
        patch.setattr(placing.calibrate, "calibrated", lambda tiers: list(tiers))
        runs = {"plain": config(), "other": config(seed=1), "streamed": config(STREAM), "simulated": config(SIMULATED)}
        patch.setattr(profile, "discover", lambda: [dram()])
        patch.setattr(profile, "product_flops", lambda dtype: 1e11)
        for name, how in (runs | profiled | {"closed": closed}).items():
            done, _ = run.train(how, folder / name)
            done.places.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_end_epoch", interrupted(Trainer._end_epoch))
        with pytest.raises(Interrupted):
            run.train(config(), folder / "interrupted")
    return folder


def interrupted(end_epoch):
    """The trainer's end of an epoch, after which a signal comes."""

    def end(self) -> None:
        end_epoch(self)
        os.kill(os.getpid(), signal.SIGINT)

    return end


def report(folder: Path, out: Path, *names: str) -> tuple[str, str]:
    """The page and the Markdown of the report of these runs."""
    out.mkdir(exist_ok=True)
    render.write(records.read_runs([str(folder / name) for name in names]), out / "report.html")
    return (out / "report.html").read_text(), (out / "report.md").read_text()


class Page(HTMLParser):
    """What a page holds: titles, ids, links, tables; complains of tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.titles: list[str] = []
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.tables: dict[str, list[list[tuple[str, str]]]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag not in VOID:
            self.open.append(tag)
        self.ids.update([given["id"]] if "id" in given else [])
        self.links += [given[name] for name in ("href", "src", "xlink:href") if name in given]
        if tag == "table":
            self.rows = self.tables[given["id"].removeprefix("table-")] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append((given.get("data-value", ""), ""))
        elif tag == "h2":
            self.titles.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"th", "td"} & set(self.open):
            value, text = self.rows[-1][-1] if self.rows[-1] else ("", "")
            self.rows[-1][-1:] = [(value, text + data)] if self.rows[-1] else []
        elif "h2" in self.open:
            self.titles[-1] += data


def test_python_is_blamed_for_what_python_takes():
    (streamed,) = records.read_runs([str(Path(__file__).parent / "records" / "streamed")])

    def helps(python, index):
        seconds = {"python / other": python, "aten::index": index}
        rows = [row for row in streamed.profile.operators if row.name in seconds]
        rows = [replace(row, seconds=seconds[row.name]) for row in rows]
        made_up = replace(streamed, profile=replace(streamed.profile, operators=tuple(rows)))
        return [found.helps for found in findings(made_up) if "A recorded step took" in found.text]

    (blamed,) = helps(python=0.03, index=0.02)
    assert "what Python takes" in blamed
    assert helps(python=0.02, index=0.03) == [""]


COMMON = ["Time", "Memory", "Bandwidths", "Data, machine and versions", "Configuration"]
CONTENT = {
    ("plain",): ["Summary and verdict", "Accuracy", *COMMON],
    ("closed",): ["Summary and verdict", *COMMON],
    ("interrupted",): ["Summary and verdict", "Accuracy", *COMMON],
    ("streamed",): ["Summary and verdict", "Accuracy", "Time", "Tiers of memory", *COMMON[1:]],
    ("plain", "recorded", "profiled"): [
        "Summary and verdict", "Accuracy", "Time", "Roofline", "Tiers of memory: recorded", *COMMON[1:]
    ],
    ("plain", "simulated"): [
        "Summary and verdict", "Accuracy", "Time", "Tiers of memory: simulated", *COMMON[1:]
    ],
}  # fmt: skip


@pytest.fixture(scope="module", params=CONTENT, ids=", ".join)
def written(request, folder, tmp_path_factory):
    """The names of runs, the folder of their report, its page and Markdown."""
    out = tmp_path_factory.mktemp("report")
    return request.param, out, *report(folder, out, *request.param)


def test_a_page_has_its_sections_and_needs_nothing_else(written):
    names, _, text, markdown = written
    page = Page(text)
    assert page.titles == CONTENT[names]
    assert re.findall("^## (.*)$", markdown, re.MULTILINE) == page.titles
    assert len(text) < 3e6
    assert re.search("https?:", text) is None
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert set(page.ids.values()) == {1}
    assert all(len({len(row) for row in rows}) == 1 and len(rows) > 1 for rows in page.tables.values())
    assert text.count("<th scope") == text.count('<button type="button">') > 0
    assert text.count("<svg") == text.count("<figure>") > 0


def test_csv_files_hold_what_the_tables_show(written):
    _, out, text, markdown = written
    tables = Page(text).tables
    assert {f"report-{name}.csv" for name in tables} == {file.name for file in out.glob("*.csv")}
    for name, rows in tables.items():
        with open(out / f"report-{name}.csv", newline="") as file:
            kept = list(csv.reader(file))
        assert [[value for value, _ in row] for row in rows[1:]] == kept[1:]
        assert all(column.startswith(text.strip()) for (_, text), column in zip(rows[0], kept[0], strict=True))
        for row in rows[1:]:
            assert "| " + " | ".join(re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text) for _, text in row) in markdown


def read(folder: Path, *names: str) -> list[records.Run]:
    return records.read_runs([str(folder / name) for name in names])


def test_equal_records_give_equal_bytes(folder, tmp_path):
    for out in ("a", "b"):
        report(folder, tmp_path / out, "plain", "simulated", "interrupted")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) > 10
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_the_best_epoch_is_the_one_that_was_kept(folder):
    for name in ("plain", "other", "streamed"):
        (found,) = read(folder, name)
        assert found.best_epoch == records._best(found.epochs, "recall@20")
        assert [epoch.epoch for epoch in found.epochs] == [1, 2, 3]


def test_several_runs_are_compared_with_the_first(folder, tmp_path):
    report(folder, tmp_path, "plain", "other")
    with open(tmp_path / "report-summary.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["", "plain", "other", "other − plain", "other / plain"]
    summaries = [json.loads((folder / name / "summary.json").read_text()) for name in ("plain", "other")]
    first, second = (summary["metrics"]["test"]["recall@20"] for summary in summaries)
    (row,) = [row for row in rows if row[0] == "test recall@20"]
    assert [float(value) for value in row[1:]] == [first, second, second - first, second / first]
    with open(tmp_path / "report-differences.csv", newline="") as file:
        assert list(csv.reader(file))[1:] == [["seed", "0", "1"]]


def test_the_verdict_names_what_bounds_a_step(folder):
    (plain,), (streamed,) = read(folder, "plain"), read(folder, "streamed")
    assert any("memory=auto plans" in finding.helps for finding in findings(plain))
    said = " ".join(finding.text for finding in findings(streamed))
    assert streamed.plan.binding == max(streamed.plan.resources, key=lambda name: streamed.plan.resources[name])
    assert f"By its plan a step is bound by {streamed.plan.binding}: busy " in said
    assert re.search(r"By its account a step took .* for transfers; .*: bound by (transfers|computation)\.", said)
    assert re.search(r"A step took .* where .* were predicted \([+-]\d+%\)", said)


def test_a_profile_is_shown_by_class_operator_and_bandwidth(folder, tmp_path):
    report(folder, tmp_path, "profiled")
    recorded = json.loads((folder / "profiled" / "profile.json").read_text())
    rows = {}
    for name in ("classes", "operators", "calibration"):
        with open(tmp_path / f"report-{name}.csv", newline="") as file:
            rows[name] = list(csv.DictReader(file))
    by_class = {row[""]: float(row["profiled"]) for row in rows["classes"]}
    assert by_class.pop("steps that were recorded") == recorded["steps"]
    assert by_class.pop("a step (seconds)") == recorded["seconds_per_step"]
    assert sum(by_class.values()) == pytest.approx(recorded["seconds_per_step"])
    assert {"SpMM (seconds)", "loss (seconds)", "optimizer (seconds)", "sampling (seconds)"} <= set(by_class)
    operators = {entry["operator"].removeprefix("gnnrec::"): {} for entry in recorded["operators"]}
    for entry in recorded["operators"]:
        operators[entry["operator"].removeprefix("gnnrec::")][entry["direction"] or ""] = entry
    counted = [row for row in rows["operators"] if row["intensity (flop/byte)"]]
    assert {row["operator"] for row in counted} == {"lightgcn_propagate", "bpr_loss", "bpr_loss_backward", "adam_step"}
    (ceiling,) = recorded["ceilings"]
    for row in counted:
        entry = operators[row["operator"]][row["direction"]]
        rate = ceiling["read_gb_per_s" if entry["class"] == "optimizer" else "gather_gb_per_s"]
        assert float(row["bandwidth (GB/s)"]) == pytest.approx(entry["gb_per_s"])
        assert float(row["of measured (share)"]) == pytest.approx(entry["gb_per_s"] / rate)
        assert float(row["intensity (flop/byte)"]) == pytest.approx(entry["flop"] / entry["bytes"])
        assert row["bound by"] == "memory"
    assert [(row["pattern"], float(row["bandwidth (GB/s)"])) for row in rows["calibration"]] == [
        ("read", 20), ("write", 15), ("mixed", 18), ("gather", 8), ("scatter", 8)
    ]  # fmt: skip


def test_layers_stand_beside_each_other_in_both_directions(folder, tmp_path):
    shutil.copytree(folder / "profiled", tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "data"))
    seconds = {("forward", 1): 0.25, ("forward", 2): 0.5, ("backward", 1): 1.0, ("backward", 2): 2.0}
    found = [{"direction": way, "layer": number, "seconds_per_step": time} for (way, number), time in seconds.items()]
    change("profile.json", layers=found)(tmp_path / "run")
    report(tmp_path, tmp_path, "run")
    assert (tmp_path / "report-layers.csv").read_text() == (
        "layer,forward (seconds),backward (seconds)\n1,0.25,1.0\n2,0.5,2.0\n"
    )


def test_an_interrupted_run_shows_what_there_is(folder, tmp_path):
    (found,) = read(folder, "interrupted")
    assert (found.state, [epoch.epoch for epoch in found.epochs]) == ("interrupted", [1])
    assert found.metrics == {}
    assert findings(found)[0].text == f"Interrupted after {found.steps} steps, 1 of 3 epochs."
    page, _ = report(folder, tmp_path, "interrupted")
    assert "resume=true goes on from its checkpoint" in page


def test_a_resumed_run_counts_every_epoch_once_and_trusts_no_summary_of_an_earlier_end(folder, tmp_path):
    shutil.copytree(folder / "interrupted", tmp_path / "run")
    run.train(config(resume=True), tmp_path / "run")
    (found,) = read(tmp_path, "run")
    assert (found.state, found.starts, [epoch.epoch for epoch in found.epochs]) == ("finished", 2, [1, 2, 3])
    assert found.metrics == read(folder, "plain")[0].metrics
    events = (tmp_path / "run" / "events.jsonl").read_text().splitlines(keepends=True)
    with open(tmp_path / "run" / "events.jsonl", "a") as file:
        file.write(events[0])
    (found,) = read(tmp_path, "run")
    assert (found.state, found.metrics, found.peak_rss_bytes) == ("unfinished", {}, None)


def test_simulated_numbers_are_stamped_and_others_are_not(folder, tmp_path):
    page, _ = report(folder, tmp_path, "streamed")
    assert "SIMULATED " not in page.replace('replace("SIMULATED ", "")', "")
    report(folder, tmp_path, "simulated")
    rows = {}
    for name in ("summary", "tensors", "steps", "rates", "epochs", "times", "memory"):
        with open(tmp_path / f"report-{name}.csv", newline="") as file:
            rows[name] = list(csv.reader(file))[1:]
    stamped = {name: {row[0] for row in table if "SIMULATED" in " ".join(row)} for name, table in rows.items()}
    assert stamped["summary"] == {"training (seconds)", "step, predicted (seconds)", "step, actual (seconds)"}
    assert stamped["tensors"] == {row[0] for row in rows["tensors"] if row[2] == "stream"} >= {"embedding", "exp_avg"}
    assert stamped["rates"] == {row[0] for row in rows["rates"]} - {"dram"} != set()
    assert len(stamped["epochs"]) == 3
    assert stamped["memory"] == set()
    assert all(
        find.text.startswith("SIMULATED") for find in findings(read(folder, "simulated")[0]) if " ms" in find.text
    )


def test_what_deviates_from_its_prediction_is_flagged(folder, tmp_path):
    shutil.copytree(folder / "streamed", tmp_path / "run")
    file = tmp_path / "run" / "summary.json"
    summary = json.loads(file.read_text())
    memory = summary["memory"]
    for factor, flagged in ((1.2, False), (1.3, True)):
        memory["actual_seconds_per_step"] = factor * memory["predicted_seconds_per_step"]
        file.write_text(json.dumps(summary | {"memory": memory}))
        _, markdown = report(tmp_path, tmp_path, "run")
        (row,) = [line for line in markdown.splitlines() if line.startswith("| step |")]
        assert ("over 25% off" in row) == flagged


def swept(tmp_path: Path) -> Path:
    """A sweep over seeds and epochs, with gaps, and a folder that is no run."""
    sweep = tmp_path / "sweep"
    for number, (seed, epochs) in {0: (0, 1), 2: (0, 2), 3: (1, 1), 10: (1, 2)}.items():
        run.train(config(seed=seed, trainer=TrainerConfig(epochs=epochs, batch_size=4096)), sweep / str(number))
    (sweep / "4").mkdir()
    return sweep


def test_a_sweep_is_a_table_of_settings_and_results(tmp_path):
    found = read_sweep(str(swept(tmp_path)))
    assert [run.label for run in found.runs] == ["0", "2", "3", "10"]
    assert [name for name, _ in found.failed] == ["1", "4", "5", "6", "7", "8", "9"]
    assert dict(found.failed)["1"] == "left no folder: it ended before it was a run"
    assert "is no run directory" in dict(found.failed)["4"]
    render.write_sweep(found, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert list(page.tables) == ["failed", "sweep", "seeds", "epochs", "data", "machine"]
    with open(tmp_path / "report-sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["seed"], row["trainer.epochs"]) for row in rows] == [
        ("0", "0", "1"), ("2", "0", "2"), ("3", "1", "1"), ("10", "1", "2")
    ]  # fmt: skip
    for row in rows:
        summary = json.loads((tmp_path / "sweep" / row["run"] / "summary.json").read_text())
        assert float(row["test recall@20"]) == summary["metrics"]["test"]["recall@20"]
    scores = [float(row["test recall@20"]) for row in rows]
    with open(tmp_path / "report-seeds.csv", newline="") as file:
        seeds = list(csv.DictReader(file))
    assert [(row["trainer.epochs"], row["seeds"]) for row in seeds] == [("1", "2"), ("2", "2")]
    assert float(seeds[0]["recall@20, mean"]) == pytest.approx((scores[0] + scores[2]) / 2)
    assert float(seeds[0]["recall@20, deviation"]) == pytest.approx(abs(scores[0] - scores[2]) / 2**0.5)
    titles = [figure.title for section in sweep_sections(found) for figure in section.figures]
    assert {"Test recall@20 over trainer.epochs", "Seconds of training over seed"} <= set(titles)


def test_tables_of_an_earlier_report_are_removed_and_nothing_else(folder, tmp_path):
    report(folder, tmp_path, "streamed")
    (tmp_path / "report-notes.csv").write_text("mine")
    assert (tmp_path / "report-tensors.csv").exists()
    text = tmp_path / "report.html"
    report(folder, tmp_path, "plain")
    names = {f"report-{name}.csv" for name in Page(text.read_text()).tables}
    assert {file.name for file in tmp_path.glob("*.csv")} == names | {"report-notes.csv"}
    text.write_text('<table id="table-notes">')
    report(folder, tmp_path, "plain")
    assert (tmp_path / "report-notes.csv").read_text() == "mine"


def drop(name: str):
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def change(name: str, **changes):
    def changed(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | changes))

    return changed


BROKEN = {
    "no config": (drop("config.yaml"), "is no run directory: it has no config.yaml. Give the directory that a"),
    "another config": (write("config.yaml", "a: 1"), "config.yaml: is not of a training by gnnrec: it has no section"),
    "no YAML": (write("config.yaml", "a: [1"), "config.yaml: cannot be read"),
    "no events": (drop("events.jsonl"), "events.jsonl: cannot be read: No such file"),
    "empty events": (write("events.jsonl", ""), "events.jsonl: the run ended before its first record. Start it again"),
    "torn events": (write("events.jsonl", '{"event": "start"}\n{"ev\n'), "events.jsonl, line 2: is not an event"),
    "bare start": (
        write("events.jsonl", '{"event": "start"}\n'),
        "events.jsonl: has no 'time'. Restore it from a copy",
    ),
    "half a summary": (write("summary.json", '{"metrics": {'), "summary.json: cannot be read"),
    "no object": (write("summary.json", "[]"), "summary.json: holds no JSON object"),
    "a text": (
        change("summary.json", train_seconds="4"),
        "summary.json: 'train_seconds' is '4', not a number. Restore",
    ),
    "no plan": (drop("plan.json"), "plan.json: is missing, though summary.json has an account of it"),
    "another plan": (change("plan.json", tensors=[1]), "plan.json: has 1 where a section should be"),
    "half a profile": (write("profile.json", '{"steps": 3'), "profile.json: cannot be read"),
    "another profile": (write("profile.json", '{"steps": "3"}'), "profile.json: 'steps' is '3', not a whole number"),
    "live files": (write("gnnrec-tier.json", ""), "holds live tensors of a training, not its records. Give the run"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_run_gets_one_message(name, folder, tmp_path):
    shutil.copytree(folder / "streamed", tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "tier", "data"))
    damage, says = BROKEN[name]
    damage(tmp_path / "run")
    with pytest.raises((CheckpointError, ConfigError), match=re.escape(says)):
        read(tmp_path, "run")


def test_the_command_writes_beside_the_run_or_where_it_is_told(folder, tmp_path):
    shutil.copytree(folder / "plain", tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "data"))
    told = forked.gnnrec("report", "run=run", cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout == "run/report.html, with report.md and 6 tables as report-*.csv\n"
    runs = f"run=[run,{folder / 'other'}]"
    assert forked.gnnrec("report", runs, "out=both.html", cwd=tmp_path).returncode == 0
    assert {path.suffix for path in tmp_path.glob("both*")} == {".html", ".md", ".csv"}
    sweep = Path(__file__).parent / "records" / "sweep"
    told = forked.gnnrec("report", f"sweep={sweep}", "out=swept.html", cwd=tmp_path)
    assert told.stdout == "swept.html, with swept.md and 5 tables as swept-*.csv\n"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("", "run: is not set. Add run=DIR"),
        ("run=nowhere", "nowhere: is no folder. Give the directory"),
        ("run=. out=page.txt", "out: is 'page.txt'. Give a name that ends in .html"),
        ("run=. out=there/page.html", "out: is 'there/page.html', but there is no folder 'there'. Create it"),
        ("run=[{run},{run}]", "twice. Give each run once"),
        ("run={run} sweep={run}", "sweep: is set beside run. Give one of them"),
        ("sweep=nowhere", "nowhere: is no folder. Give the folder that holds the runs' folders"),
        ("sweep={run}", "is the directory of one run. Give it as run="),
        ("sweep=.", ".: holds no run. Give the folder that holds the runs' folders"),
    ],
)
def test_a_mistake_ends_with_2_and_one_message(args, says, folder, tmp_path):
    told = forked.gnnrec("report", *args.format(run=folder / "plain").split(), cwd=tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    (line,) = told.stderr.splitlines()
    assert says in line
    assert list(tmp_path.iterdir()) == []


def test_names_are_no_markup(folder, tmp_path):
    name = '_<b>&"$x$|*'
    shutil.copytree(folder / "plain", tmp_path / name, ignore=shutil.ignore_patterns("checkpoints", "data"))
    shutil.copytree(folder / "plain", tmp_path / "$x$", ignore=shutil.ignore_patterns("checkpoints", "data"))
    text, markdown = report(tmp_path, tmp_path, name, "$x$")
    Page(text)
    assert "<b>" not in text
    assert markdown.startswith('# gnnrec report: \\_\\<b\\>&"$x$\\|\\*, $x$\n')
    (legend,) = re.findall('id="loss-legend_1".*', text, re.DOTALL)
    assert "_&lt;b&gt;&amp;" in legend.split("</svg>")[0]


def luminance(colour: str) -> float:
    """Relative, as WCAG defines it."""
    digits = "".join(2 * digit for digit in colour) if len(colour) == 3 else colour
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_colours_differ_enough_from_the_paper_in_light_and_dark_and_print(written):
    """WCAG AA: 4.5 for text, 3 for lines and bars."""
    themes = [dict(re.findall(r"--([\w-]+): #(\w+)", theme)) for theme in re.findall(r":root \{([^}]*)\}", written[2])]
    assert [len(theme) for theme in themes] == [13, 13, 6]
    for theme in themes:
        for name, colour in theme.items():
            for paper in ("paper", "shade"):
                ends = sorted((luminance(colour), luminance(theme[paper])))
                least = 3 if name.startswith("series") else 4.5
                assert name in ("paper", "shade", "rule") or (ends[1] + 0.05) / (ends[0] + 0.05) >= least, name


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_package_that_is_not_installed_is_named(package, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(GnnrecError, match=rf"{package}.* is not installed. Install it: pip install gnnrec\[report\]"):
        report(folder, tmp_path, "plain")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_said(folder, tmp_path):
    (tmp_path / "report.md").mkdir()
    with pytest.raises(StorageError, match=r"report\.md: cannot be written"):
        report(folder, tmp_path, "plain")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/srv/me/data", "…/data"),
        ("root: /srv/me/data\nfolder: /mnt/nvme", "root: …/data\nfolder: …/nvme"),
        ("busy: /mnt/a b (stream)", "busy: …/a b (stream)"),
        ("'/tmp/x/tier' has 2 GB/s, 1/3 of /tmp", "'…/tier' has 2 GB/s, 1/3 of …/tmp"),
        ("in path=file:///srv/me/conf, file:/srv/a", "in path=file://…/conf, file:…/a"),
        ("outputs/run/tier ./a/b ~/c https://a.org/b/c a / b", "outputs/run/tier ./a/b ~/c https://a.org/b/c a / b"),
    ],
)
def test_a_report_leaves_out_the_folders_of_absolute_paths(text, shown):
    assert elided(text) == shown
