"""What is installed: a wheel and a checkout hold every config, start quickly and name no machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GNNREC = Path(sys.executable).with_name("gnnrec")
CONFIGS = {file.relative_to(ROOT / "conf") for file in (ROOT / "conf").rglob("*.yaml")}

# Prints where gnnrec is and every config that it composes, by app and group option.
COMPOSE = """
import json, gnnrec
from gnnrec.cli import CONF
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

found = {}
with initialize_config_dir(str(CONF), version_base="1.3"):
    for file in sorted(CONF.rglob("*.yaml")):
        name = file.relative_to(CONF).as_posix()
        app = "plan" if file.parent.name == "hardware" else "train"
        app, options = (app, [f"{file.parent.name}={file.stem}"]) if "/" in name else (file.stem, [])
        found[name] = OmegaConf.to_container(compose(app, overrides=options))
print(json.dumps({"package": gnnrec.__file__, "configs": found}))
"""


def python(code: str, cwd: Path, **environment: str) -> str:
    """What the code prints, run in a folder without gnnrec."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=cwd, env=inherited | environment, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of this checkout, built from a copy: setuptools leaves folders behind that end up in the next wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("gnnrec", "conf", "tests"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True, capture_output=True, text=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_carries_code_configs_and_marker_and_nothing_else(unpacked):
    files = {file.relative_to(unpacked) for file in unpacked.rglob("*") if file.is_file()}
    meta = f"gnnrec-{importlib.metadata.version('gnnrec')}.dist-info"
    code = {file.relative_to(ROOT) for file in (ROOT / "gnnrec").rglob("*.py")}
    data = {Path("gnnrec/py.typed"), Path("gnnrec/ops/launches.json"), Path("gnnrec/report/page.html.j2")}
    expected = code | data | {Path("gnnrec/conf") / config for config in CONFIGS}
    assert {file for file in files if file.parts[0] != meta} == expected
    for config in CONFIGS:
        assert (unpacked / "gnnrec" / "conf" / config).read_bytes() == (ROOT / "conf" / config).read_bytes()
    metadata = (unpacked / meta / "METADATA").read_text()
    assert "Requires-Python: >=3.11" in metadata
    assert {f"Provides-Extra: {extra}" for extra in ("dev", "cuda", "dgl", "tracking", "hpo")} <= set(
        metadata.splitlines()
    )
    assert "gnnrec = gnnrec.cli:main" in (unpacked / meta / "entry_points.txt").read_text()
    assert (unpacked / meta / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_every_config_composes_from_the_wheel_and_from_the_checkout(unpacked, tmp_path):
    installed = json.loads(python(COMPOSE, tmp_path, PYTHONPATH=str(unpacked)))
    assert Path(installed["package"]) == unpacked / "gnnrec" / "__init__.py"
    assert set(installed["configs"]) == {config.as_posix() for config in CONFIGS}
    checkout = json.loads(python(COMPOSE, tmp_path))
    if Path(checkout["package"]).parent != ROOT / "gnnrec":
        pytest.skip(f"gnnrec is installed in {checkout['package']}, not from this checkout (pip install -e .)")
    assert checkout["configs"] == installed["configs"]


def test_the_command_runs_from_the_wheel(unpacked, tmp_path):
    code = (
        "import sys; sys.argv = ['gnnrec', 'train', '--cfg', 'job', 'data=files']; from gnnrec.cli import main; main()"
    )
    printed = python(code, tmp_path, PYTHONPATH=str(unpacked))
    assert "source: files" in printed
    assert list(tmp_path.iterdir()) == []


def test_the_package_reaches_the_configs_through_a_link():
    assert os.readlink(ROOT / "gnnrec" / "conf") == "../conf"


def test_help_is_quick():
    """By the processor's time, which others that run do not lengthen by much."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([GNNREC, "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert statistics.median(seconds) < 0.5


@pytest.mark.parametrize("module", ["gnnrec", "gnnrec.cli", "gnnrec.data.readers"])
def test_what_is_slow_to_import_is_not_imported_before_it_is_needed(module, tmp_path):
    slow = {"torch", "numba", "pandas", "dgl", "torch_geometric", "hydra"}
    loaded = python(f"import sys, {module}; print(*sys.modules)", tmp_path).split()
    assert module in loaded
    assert slow & set(loaded) == set()


def test_the_version_is_the_packages():
    printed = subprocess.run([GNNREC, "--version"], check=True, capture_output=True, text=True).stdout
    assert printed == f"gnnrec {importlib.metadata.version('gnnrec')}\n"


# Folders of one machine, and hosts that an installation must not be tied to.
NAMES_A_MACHINE = re.compile(r"(?<![\w./~-])/(?:work|root|home|Users)/\w")
NAMES_A_REGISTRY = re.compile(r"pypi\.org|pythonhosted\.org|(?:download|data)\.(?:pytorch|dgl|pyg)\.\w+|anaconda\.org")
MAY_NAME_A_REGISTRY = {"README.md"}  # where it says how to get a build of torch


def misplaced(name: str, text: str) -> list[str]:
    """What a tracked file must not name, one line each."""
    return [
        f"{name}:{number}: {line.strip()}"
        for number, line in enumerate(text.splitlines(), start=1)
        if NAMES_A_MACHINE.search(line) or (NAMES_A_REGISTRY.search(line) and name not in MAY_NAME_A_REGISTRY)
    ]


def test_no_tracked_file_names_a_machine_or_a_registry():
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git does not know this folder: it is no checkout")
    files = [ROOT / name for name in listed.split("\0") if name]
    assert ROOT / "pyproject.toml" in files
    texts = {file: file.read_text(errors="replace") for file in files if file.is_file()}
    assert [found for file, text in texts.items() for found in misplaced(str(file.relative_to(ROOT)), text)] == []


MACHINES = ["cd " + "/work" + "/main", 'open("' + "/home" + '/me/data")']
REGISTRIES = ["https://" + "pypi" + ".org/simple", "https://download." + "pytorch.org/whl/cpu"]
HARMLESS = ["https://example.org" + "/home" + "/page", "../shared/data and outputs/work/1", "~/.cache/gnnrec/data"]


@pytest.mark.parametrize("line", MACHINES + REGISTRIES + HARMLESS)
def test_the_scan_finds_what_it_should(line):
    assert bool(misplaced("gnnrec/cli/show.py", line)) == (line not in HARMLESS)
    assert bool(misplaced("README.md", line)) == (line in MACHINES)
