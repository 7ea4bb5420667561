"""The study of recommenders on slower memory: its cells, its records, and guidance that follows from the figures."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from made_up_tiers import dram

from gnnrec.config.recipes import composed
from gnnrec.data import dataset
from gnnrec.errors import ConfigError
from gnnrec.memtier import calibrate
from gnnrec.memtier.discover import discover
from gnnrec.memtier.tiers import Rate
from gnnrec.training import placing
from gnnrec.training.run import graph_of
from gnnrec.units import in_bytes

PROFILING = Path(__file__).parent.parent / "profiling"
SYNTHETIC = "num_users=300", "num_items=200", "num_interactions=3000", "communities=4"
TINY = (
    *("models=[lightgcn]", "data=[tiny]", "centre.data=tiny", "centre.layers=1", "centre.dim=16", "centre.batch=512"),
    *("layers=[1]", "dim=[16]", "batch=[512]", "steps=2", "dram_share=20", "options=[threads=2]"),
    f"sources.tiny=[data=synthetic,{','.join(f'data.synthetic.{one}' for one in SYNTHETIC)}]",
)


@pytest.fixture(scope="module")
def study() -> Any:
    """The script's modules; they import each other from their own folder."""
    sys.path.insert(0, str(PROFILING))
    try:
        import study_findings
        import study_model
        import study_records
        import study_report
        import study_settings
    finally:
        sys.path.remove(str(PROFILING))
    return SimpleNamespace(
        settings=study_settings.settings,
        findings=study_findings.findings,
        model=study_model,
        records=study_records,
        report=study_report,
    )


# Settings and cells


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("preset=papr", "preset: is 'papr'. Did you mean paper"),
        ("modls=[ngcf]", "modls: unknown key. Did you mean models"),
        ("models=[gcn]", "models: is 'gcn'. Known are: lightgcn, ngcf"),
        ("data=[gowala]", "data: is 'gowala'. Did you mean gowalla"),
        ("placements=[optane]", "placements: is 'optane'"),
        ("layers=[]", "layers: is empty"),
        ("centre.dim=0", "centre.dim: is 0. It must be at least 1"),
        ("dram_share=0", "dram_share: is 0.0. It must be above 0"),
        ("simulate.read_gb_per_s=1", "memory.simulate.write_gb_per_s: is not set"),
        ("centre.batch=3 every_combination=true", "centre.batch: is '3'. Known are: 131072, 2048, 32768, 8192"),
        ("hardware.memory_mode=cxl", "hardware.memory_mode: is 'cxl'"),
    ],
)
def test_a_wrong_setting_is_named(study, override, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        study.settings(override.split())


@pytest.mark.parametrize("preset", ["quick", "paper"])
def test_each_factor_varies_alone_and_models_are_crossed_with_placements(study, preset):
    settings = study.settings([f"preset={preset}"])
    cells, centre = settings.cells(), settings.centre
    assert len(set(cells)) == len(cells)
    off = [
        sum(getattr(cell, name) != getattr(centre, name) for name in ("layers", "dim", "batch", "data"))
        + (cell.placement != "dram")
        for cell in cells
    ]
    assert set(off) == {0, 1}
    crossed = {(cell.model, cell.placement) for cell in cells}
    assert crossed == {(model, placement) for model in settings.models for placement in settings.placements}
    for name in ("layers", "dim", "batch", "data"):
        assert {getattr(cell, name) for cell in cells} == {*getattr(settings, name), getattr(centre, name)}


def test_full_is_every_combination(study):
    settings = study.settings(["preset=full"])
    sizes = [len(getattr(settings, name)) for name in ("models", "layers", "dim", "batch", "data", "placements")]
    cells, product = settings.cells(), 1
    for size in sizes:
        product *= size
    assert len(cells) == len({cell.name for cell in cells}) == product


# From the command line


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny study twice, on a machine that was measured; what it printed, and its folder."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "disk").mkdir()
    slow = tuple(Rate(way, speed, threads=count) for way in ("read", "write") for count, speed in ((1, 1.0), (4, 2.0)))
    rates = {"dram": dram().rates, "file": slow}
    tiers = [
        replace(
            tier, provenance="measured", rates=rates[tier.kind], latency_ns=100.0, facts={calibrate.FACT: "made up"}
        )
        for tier in discover([folder / "disk"])
        if tier.kind in rates
    ]
    calibrate.keep(tiers, folder / "cache" / "gnnrec" / "calibration.json")
    given = "simulate.read_gb_per_s=0.5", "simulate.write_gb_per_s=0.25"
    printed = [
        run(folder, "placements=[app_direct,app_direct_streamed,app_direct_in_place,memory_mode]", *given)
        for _ in range(2)
    ]
    content = json.loads((folder / "out" / "study.json").read_text())
    return SimpleNamespace(folder=folder, out=folder / "out", content=content, printed=printed)


def run(folder: Path, *overrides: str, code: int = 0) -> str:
    """What the study of these settings prints, its error last."""
    command = [sys.executable, str(PROFILING / "study.py"), *TINY, "out=out", f"folder={folder / 'disk'}", *overrides]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=folder)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def of(content: Any, placement: str) -> Any:
    (row,) = (row for row in content["cells"] if row["placement"] == placement)
    return row


def test_a_second_call_measures_nothing_again(studied):
    first, second = ([line for line in text.splitlines() if " of 5: " in line] for text in studied.printed)
    assert (len(first), len(second)) == (5, 0)


def test_cells_have_figures_with_their_provenance(studied):
    content = studied.content
    assert [row["status"] for row in content["cells"]] == ["done"] * 5
    found = {row["placement"]: row["provenance"] for row in content["cells"]}
    modelled = dict.fromkeys(("app_direct_streamed", "app_direct_in_place", "memory_mode"), "MODELLED")
    assert found == {"dram": "measured", "app_direct": "SIMULATED"} | modelled
    for row in content["cells"]:
        assert row["slowdown_ratio"] == pytest.approx(row["seconds_per_step"] / row["dram_seconds_per_step"])
        assert row["edge_wise_dram_bytes"] > row["all_dram_bytes"] > 0
    for placement in ("app_direct", "app_direct_streamed"):
        streamed = of(content, placement)
        assert (streamed["mode"], streamed["panel_columns"]) == ("stream", 16)
        assert streamed["slow_bytes"] > 0
    declared = {row["dram_seconds_per_step"] for row in content["cells"] if row["provenance"] == "MODELLED"}
    assert len(declared) == 1, "what is ranked is compared with the DRAM of one machine"
    assert of(content, "app_direct_in_place")["slowdown_ratio"] > 1
    assert {one["tensor"] for one in content["tensors"]} == {"graph", "embedding", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("model", ["lightgcn", "ngcf"])
def test_memory_mode_costs_what_its_cache_does_not_hold(study, model):
    given = [f"data.synthetic.{one}" for one in ("num_users=30000", "num_items=40000", "num_interactions=300000")]
    config = composed(["data=synthetic", *given, "data.valid_ratio=0", f"model={model}", "device=cpu", "loss.reg=1e-4"])
    data = dataset.load(config.data)
    workload = placing.workload(config, graph_of(data.train), [], held_out=placing.held_out(config, data))
    hardware = {"app_direct": "optane_app_direct", "memory_mode": "optane_memory_mode"}

    def slowdown(share: float) -> float:
        found = study.model.modelled(
            replace(workload, flops=1e11), {"placement": "memory_mode", "dram_share": share, "hardware": hardware}
        )
        return found["seconds_per_step"] / found["dram_seconds_per_step"]

    small, middle, most, twice = map(slowdown, (0.1, 0.5, 1.0, 2.0))
    assert most == pytest.approx(1.0, abs=1e-3)
    assert twice == pytest.approx(1.0, abs=1e-3)
    assert small > 1.3
    assert most + 0.05 < middle < small - 0.05


def test_a_step_is_broken_down_into_operators(studied):
    content = studied.content
    own = [row for row in content["operators"] if row["placement"] == "dram"]
    assert {"SpMM", "loss", "optimizer", "sampling"} <= {row["class"] for row in own}
    profile = json.loads((studied.out / "runs" / "lightgcn-l1-d16-b512-tiny-dram" / "profile.json").read_text())
    assert sum(row["seconds"] for row in own) == pytest.approx(profile["seconds_per_step"], rel=1e-6)


def test_every_figure_has_a_unit(studied):
    content = studied.content
    rows = [row for name in ("cells", "operators", "tensors", "rates") for row in content[name]]
    assert {field for row in rows for field in row} <= set(content["fields"])
    assert all(field["unit"] and field["meaning"] for field in content["fields"].values())
    frame = pd.read_parquet(studied.out / "study.parquet")
    assert list(frame["placement"]) == [row["placement"] for row in content["cells"]]


def test_the_report_stamps_what_was_not_measured_and_names_no_folder(studied):
    with open(studied.out / "study-placements.csv") as file:
        header, *rows = csv.reader(file)
    step, placement = header.index("step (seconds)"), header.index("placement")
    stamps = {row[placement]: row[step].split()[0] for row in rows}
    assert stamps["app_direct"] == "SIMULATED"
    assert stamps["memory_mode"] == stamps["app_direct_in_place"] == "MODELLED"
    assert float(stamps["dram"]) > 0
    page, text = (studied.out / "study.html").read_text(), (studied.out / "study.md").read_text()
    for shown in (page, text):
        assert "SIMULATED" in shown
        assert str(studied.folder) not in shown
    assert len(page) < 1e6
    assert "<svg" in page
    assert not re.search(r'(src|href)="(?!#)', page)


def test_each_cell_keeps_the_conditions_that_it_was_run_under(studied, study):
    content = studied.content
    assert [one["placement"] for one in content["conditions"]] == [row["placement"] for row in content["cells"]]
    one = content["conditions"][0]
    assert {"date", "cpu_model", "cores", "load_per_core", "torch"} <= one.keys()
    later = content | {"conditions": [*content["conditions"][1:], one | {"date": "2001-02-03"}]}
    (table,) = (table for table in study.report.sections(later)[-1].tables if table.name == "machine")
    dates = {row[1].value: row[2].value for row in table.rows if row[0].value == "date"}
    assert dates == {one["date"]: 4, "2001-02-03": 1}


def test_what_cannot_be_done_is_recorded_and_the_others_go_on(studied):
    words = run(studied.folder, "dram_share=0.01", "placements=[auto]", "title=short")
    assert "infeasible: memory=auto: no placement fits" in words
    found = json.loads((studied.out / "short.json").read_text())
    assert [row["status"] for row in found["cells"]] == ["done", "infeasible"]
    assert "no placement fits" in of(found, "auto")["reason"]
    assert "no placement fits" in (studied.out / "short.md").read_text()


def test_a_cell_that_failed_is_the_exit_codes_matter(studied):
    words = run(studied.folder, "timeout=0.1", "placements=[direct]", "title=failed", code=2)
    assert "failed: it took more than 0.1 s" in words
    assert "error: out/runs: 1 of 2 cells failed, 1 have figures" in words
    assert "it took more than 0.1 s" in (studied.out / "failed.md").read_text()
    words = run(studied.folder, "sources.tiny=[data=files,data.log=gone.csv]", "out=none", "placements=[dram]", code=2)
    assert "error: none/runs: 0 of 1 cells failed, 0 have figures" in words


@pytest.mark.parametrize(
    "wrong", ["options=[trainer.bach_size=1]", "options=[threads=none]", "sources.tiny=[data=synthetik]"]
)
def test_an_option_that_cannot_be_used_is_said_before_a_process_is_started(studied, wrong):
    words = run(studied.folder, wrong, "out=wrong", code=2)
    assert words.startswith("error: ")
    assert len(words.splitlines()) == 1
    assert not (studied.folder / "wrong").exists()


def test_a_report_is_made_again_from_its_file_alone(study, studied, tmp_path):
    assert study.report.main([str(studied.out / "study.json"), str(tmp_path / "again.html")]) == 0
    for name in ("md", "html"):
        assert (tmp_path / f"again.{name}").read_bytes() == (studied.out / f"study.{name}").read_bytes()
    (tmp_path / "other.json").write_text("{}")
    assert study.report.main([str(tmp_path / "other.json")]) == 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content.pop("cells"), "has no 'cells'"),
        (lambda content: content.pop("conditions"), "has no 'conditions'"),
        (lambda content: content["centre"].pop("dim"), "centre: has no 'dim'"),
        (lambda content: content["cells"][0].pop("dim"), "cells: has no 'dim'"),
        (lambda content: content["cells"].append("ngcf"), "cells: has 'ngcf' where a section should be"),
        (lambda content: content["rates"][0].update(gb_per_s="fast"), "rates: 'gb_per_s' is 'fast', not a number"),
    ],
)
def test_what_is_missing_from_a_damaged_file_is_named(study, studied, tmp_path, capsys, damage, words):
    content = json.loads((studied.out / "study.json").read_text())
    damage(content)
    (tmp_path / "study.json").write_text(json.dumps(content))
    assert study.report.main([str(tmp_path / "study.json")]) == 2
    assert words in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["study.json"]


# Guidance follows from the figures


CENTRE = {"layers": 2, "dim": 64, "batch": 2048, "data": "made-up"}
SIZES = {"users_count": 1000, "items_count": 1000, "interactions_count": 10**6}


def cell(study: Any, seconds: float = 0.1, placement: str = "dram", **changes: Any) -> dict[str, Any]:
    """A row of a made-up study."""
    provenance = {"app_direct": "SIMULATED"} | dict.fromkeys(
        ("app_direct_streamed", "app_direct_in_place", "memory_mode"), "MODELLED"
    )
    row = dict.fromkeys(study.records.CELLS) | CENTRE | SIZES | {"model": "lightgcn", "placement": placement}
    row |= {"status": "done", "provenance": provenance.get(placement, "measured"), "seconds_per_step": seconds}
    row |= {"dram_seconds_per_step": 0.1, "slowdown_ratio": seconds / 0.1, "spread_ratio": 0.01, "steps_count": 5}
    row |= {"mode": "stream", "dram_bytes": 2**28, "slow_bytes": 2**29, "all_dram_bytes": 2**30}
    row |= {"node_dram_bytes": 2**28, "edge_dram_bytes": 2**28, "peak_rss_bytes": 2**31}
    return row | {"edge_wise_dram_bytes": 2**33} | changes


def content(study: Any, cells: list[Any], **changes: Any) -> dict[str, Any]:
    """What a study with these cells leaves."""
    made = {"cells": cells, "operators": [], "tensors": [], "rates": [], "conditions": [], "centre": CENTRE}
    return made | {"simulated_gb_per_s": {"read": 1.0, "written": 1.0}, "simulated_threads_count": 2} | changes


def said(study: Any, cells: list[Any], **changes: Any) -> str:
    """All guidance on them, a finding a line."""
    found = study.findings(content(study, cells, **changes))
    return "\n".join(f"{one.text} -> {one.helps}" for one in found)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ((0.1, 0.11, 0.14, 0.5), "Batch at least 32,768: there a step costs 1.40 times that of 2,048"),
        ((0.1, 0.12, 0.2, 0.8), "Batch at least 8,192"),
        ((0.1, 0.11, 0.12, 0.13), "Batch at least 131,072"),
        ((0.1, 0.4, 1.6, 6.4), "Batch 2,048 is enough for speed"),
    ],
)
def test_the_batch_is_as_large_as_is_nearly_free(study, seconds, words):
    rows = [cell(study, time, batch=batch) for batch, time in zip((2048, 8192, 32768, 131072), seconds, strict=True)]
    found = said(study, rows)
    assert words in found
    assert ("with trainer.lr_scaling" in found) == ("Batch at least" in found)


@pytest.mark.parametrize(
    ("writes", "words"),
    [
        ({1: 4.0, 4: 12.0, 24: 7.0}, "Use 16 reader threads and 4 writer threads"),
        ({1: 4.0, 4: 8.0, 24: 16.0}, "Use 16 reader threads and 24 writer threads"),
        ({1: 4.0, 4: 4.1, 24: 3.0}, "Use 16 reader threads and 1 writer thread"),
    ],
)
def test_as_many_writers_as_the_tier_is_fastest_with(study, writes, words):
    speeds = [("read", 1, 3.0), ("read", 16, 30.0), *(("write", count, speed) for count, speed in writes.items())]
    place = {"tier": "pmem0", "hardware": "here", "provenance": "measured"}
    rates = [place | {"pattern": way, "threads_count": count, "gb_per_s": speed} for way, count, speed in speeds]
    assert words in said(study, [cell(study)], rates=rates)


@pytest.mark.parametrize(
    ("costs", "words"),
    [
        ({"embedding": 20e-3, "exp_avg": 1e-3}, ("Put exp_avg there first", "keep in DRAM embedding, because")),
        ({"embedding": 1e-3, "exp_avg": 20e-3}, ("Put embedding there first", "keep in DRAM exp_avg, because")),
        ({"embedding": 1.0e-3, "exp_avg": 1.1e-3}, ("put the largest there first",)),
    ],
)
def test_what_goes_to_the_slow_tier_first_costs_least_there(study, costs, words):
    row = cell(study, 0.2, "app_direct_in_place")
    gathered = {"embedding": 0.9, "exp_avg": 0.0}
    tensors = [
        CENTRE
        | {"model": "lightgcn", "placement": "app_direct_in_place", "tensor": name, "bytes": 2**20}
        | {"moved_bytes_per_step": 2**22, "gathered_ratio": gathered[name], "extra_seconds_per_step": cost}
        for name, cost in costs.items()
    ]
    found = said(study, [cell(study), row], tensors=tensors)
    assert all(part in found for part in words)
    assert "MODELLED lightgcn: alone on the slow tier" in found


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (
            {"app_direct_streamed": 0.12, "app_direct_in_place": 0.3, "memory_mode": 0.2},
            "Take App Direct and memory=stream",
        ),
        (
            {"app_direct_streamed": 0.32, "app_direct_in_place": 0.11, "memory_mode": 0.2},
            "Take App Direct and memory=direct",
        ),
        ({"app_direct_streamed": 0.32, "app_direct_in_place": 0.3, "memory_mode": 0.15}, "Take Memory mode"),
    ],
)
def test_persistent_memory_is_used_in_the_way_that_costs_least(study, seconds, words):
    rows = [cell(study), *(cell(study, time, placement) for placement, time in seconds.items())]
    (found,) = (line for line in said(study, rows).splitlines() if "on a socket with persistent memory" in line)
    assert words in found
    assert found.startswith("MODELLED lightgcn")
    assert f"streamed {seconds['app_direct_streamed'] / 0.1:.2f} times" in found
    assert f"Memory mode {seconds['memory_mode'] / 0.1:.2f} times" in found


def test_what_is_simulated_here_is_ranked_with_no_other_machine(study):
    rows = [cell(study), cell(study, 0.2, "app_direct_in_place"), cell(study, 0.3, "memory_mode")]
    place = {"tier": "pmem0", "hardware": "a_socket", "provenance": "declared", "threads_count": 16}
    rates = [place | {"pattern": way, "gb_per_s": speed} for way, speed in (("read", 8.0), ("write", 2.0))]
    alone, found = said(study, rows, rates=rates), said(study, [*rows, cell(study, 0.11, "app_direct")], rates=rates)
    added = set(found.splitlines()) - set(alone.splitlines())
    share = (
        "1.00 GB/s read (12% of the DIMMs') and 1.00 GB/s written (50% of the DIMMs'), what they give with threads=2"
    )
    assert [line for line in added if "cells: " not in line] == [
        f"SIMULATED lightgcn streamed here at {share}: 1.10 times the step in DRAM. -> "
    ]


def test_dram_is_bought_where_the_planner_cannot_do_without(study):
    found = said(study, [cell(study), cell(study, 0.11, "auto")])
    assert "Take memory=auto and buy less DRAM: a step takes 10% longer" in found
    assert "buy 1.00 GiB of DRAM; else take memory=auto" in said(study, [cell(study), cell(study, 0.3, "auto")])


def test_a_mapped_file_saves_no_dram_and_persistent_memory_does(study):
    rows = [cell(study), cell(study, 0.11, "direct")]
    rate = {"hardware": "here", "provenance": "measured", "pattern": "read", "threads_count": 1, "gb_per_s": 1.0}
    assert "this saves none" in said(study, rows, rates=[rate | {"tier": "file"}])
    assert "Take memory=direct and buy less DRAM" in said(study, rows, rates=[rate | {"tier": "pmem"}])


def test_memory_to_buy_follows_from_the_footprint(study):
    assert "8.0 times" in said(study, [cell(study)])
    assert "2.0 times" in said(study, [cell(study, edge_wise_dram_bytes=2**31)])
    tensors = {"node_dram_bytes": 6 * 2000 * 64 * 4, "edge_dram_bytes": 20 * 10**6, "all_dram_bytes": 2**25}
    grows = tensors["node_dram_bytes"] + tensors["edge_dram_bytes"]
    found = said(study, [cell(study, **tensors, peak_rss_bytes=2**29)])
    assert "The process held 512.00 MiB at its peak" in found
    assert "Buy, all tiers together, 6.0 x (users + items) x dim x 4 bytes + 20.0 bytes x interactions" in found
    assert f"and {in_bytes(2**25 + 2**29 - 2 * grows)} for the batch, rankings, the log and Python" in found


def test_memory_to_buy_is_as_much_as_the_process_held(studied):
    row = of(studied.content, "dram")
    assert 0 < row["node_dram_bytes"] + row["edge_dram_bytes"] < row["all_dram_bytes"] < row["peak_rss_bytes"]
    assert row["node_dram_bytes"] % (4 * (row["users_count"] + row["items_count"]) * row["dim"]) == 0


def test_what_takes_a_step_decides_whether_memory_or_cores_count(study):
    def operators(**shares: float) -> list[Any]:
        row = CENTRE | {"model": "lightgcn", "placement": "dram", "operator": "one", "direction": ""}
        return [row | {"class": kind, "seconds": share, "bytes": None, "flop": None} for kind, share in shares.items()]

    assert "90% gather rows: buy bandwidth" in said(study, [cell(study)], operators=operators(SpMM=0.9, GEMM=0.1))
    assert "cores count for as much" in said(study, [cell(study)], operators=operators(SpMM=0.1, GEMM=0.9))


def test_layers_and_width_are_told_by_their_cost(study):
    rows = [cell(study, 0.1 * layers, layers=layers) for layers in (1, 2, 5)]
    rows += [cell(study, 0.2 * dim / 64, dim=dim) for dim in (16, 256)]
    found = said(study, rows)
    assert "a layer more takes 100.00 ms a step" in found
    assert "twice the width takes 2.00 times as long (from 16 to 256)" in found


def test_cells_without_figures_are_counted_and_leave_the_rest_alone(study, tmp_path):
    waiting = dict.fromkeys(study.records.CELLS) | CENTRE | {"model": "ngcf", "placement": "dram"}
    rows = [cell(study), waiting | {"status": "waiting", "reason": "it was not begun"}]
    assert "2 cells: 1 done, 1 waiting. -> The same command goes on" in said(study, rows)
    page, *_ = study.report.write(content(study, rows), tmp_path / "study.html")
    assert "it was not begun" in page.read_text()


def test_figures_of_a_busy_machine_are_not_to_be_relied_on(study):
    steady = [cell(study), cell(study, batch=4096, spread_ratio=0.9), cell(study, batch=8192)]
    assert "something else used the machine" not in said(study, steady)
    assert "Steps of a cell differ by 90%" in said(study, [row | {"spread_ratio": 0.9} for row in steady])


def test_the_page_of_the_full_study_stays_small(study, tmp_path):
    settings = study.settings(["preset=full"])
    rows = [cell(study) | asdict(one) for one in settings.cells()]
    operators = [
        asdict(one) | {"class": kind, "operator": kind, "direction": "", "seconds": 0.01, "bytes": 1000, "flop": None}
        for one in settings.cells()
        for kind in ("SpMM", "loss", "optimizer", "sampling", "other")
    ]
    made = content(study, rows, operators=operators, centre=asdict(settings.centre))
    page, *_ = study.report.write(made, tmp_path / "study.html")
    assert page.stat().st_size < 1e6
    assert "All cells are in the Parquet file" in page.read_text()
    assert "lightgcn: a step of batch" in page.read_text()
