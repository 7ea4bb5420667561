"""Imports point one way: read from the source, so that an import inside a function counts too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parent.parent / "gnnrec"

# Lowest first. A room is a top-level module or folder of gnnrec; it imports from its own level and those before it.
LEVELS = (
    ("errors", "process", "units", "storage", "kept", "device", "extensions", "ranks"),
    ("config",),
    ("profiler", "data"),
    ("graph",),
    ("ops",),
    ("memtier",),
    ("models", "losses"),
    ("training",),
    ("recommend", "report"),
    ("estimators", "sweeps", "matrix"),
    ("cli",),
    ("__init__", "__main__"),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
SCRIPTS = {"examples", "experiments", "profiling", "tests"}
HYDRA = {"hydra", "omegaconf"}
HYDRA_ROOMS = {"cli", "config"}


class Import(NamedTuple):
    where: str
    room: str
    target: str

    @property
    def target_room(self) -> str | None:
        """The room of gnnrec that is imported from, None for other packages. What is no room is a public name."""
        package, _, rest = self.target.partition(".")
        if package != "gnnrec":
            return None
        room = rest.partition(".")[0]
        return room if room in LEVEL else "__init__"


def imports(package: Path) -> Iterator[Import]:
    """Every import of every file of the package."""
    for file in sorted(package.rglob("*.py")):
        inside = file.relative_to(package)
        parent = ".".join((package.name, *inside.parts[:-1]))
        for node in ast.walk(ast.parse(file.read_text(), str(file))):
            targets = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = resolve_name("." * node.level + (node.module or ""), parent)
                targets = [f"{base}.{alias.name}" for alias in node.names]
            for target in targets:
                yield Import(f"{inside}:{node.lineno}", room_of(inside), target)


def room_of(inside: Path) -> str:
    return inside.parts[0].removesuffix(".py")


def defects(package: Path) -> list[str]:
    """What breaks the rules, one line each."""
    rooms = {room_of(file.relative_to(package)) for file in package.rglob("*.py")}
    found = [f"{room} has no place in LEVELS" for room in sorted(rooms - set(LEVEL))]
    arrows = [arrow for arrow in imports(package) if arrow.room in LEVEL]
    sideways = {(a.room, a.target_room) for a in arrows}
    for arrow in arrows:
        target, top = arrow.target_room, arrow.target.partition(".")[0]
        if top in SCRIPTS:
            found.append(f"{arrow.where} imports {arrow.target}, which is no part of the package")
        if top in HYDRA and arrow.room not in HYDRA_ROOMS:
            found.append(f"{arrow.where} imports {arrow.target}, which only cli.py and config may")
        if target is None or target == arrow.room:
            continue
        runs_back = LEVEL[target] > LEVEL[arrow.room]
        circles = LEVEL[target] == LEVEL[arrow.room] and (target, arrow.room) in sideways
        if runs_back or circles:
            found.append(f"{arrow.where} imports {arrow.target}: the arrow {arrow.room} -> {target} runs back")
    return found


def test_imports_point_one_way():
    assert defects(PACKAGE) == []


def test_the_reading_finds_arrows():
    arrows = {(arrow.room, arrow.target_room) for arrow in imports(PACKAGE)}
    assert {("ops", "graph"), ("data", "errors"), ("ops", "ops"), ("ops", None)} <= arrows


def test_every_room_has_one_place():
    assert len(LEVEL) == sum(map(len, LEVELS))


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("graph/csr.py", "import gnnrec.ops.spmm", "graph -> ops runs back"),
        ("graph/csr.py", "from gnnrec import ops", "graph -> ops runs back"),
        ("graph/csr.py", "from gnnrec.ops import spmm", "graph -> ops runs back"),
        ("graph/csr.py", "from ..ops import spmm", "graph -> ops runs back"),
        ("graph/csr.py", "from .. import ops", "graph -> ops runs back"),
        ("graph/csr.py", "def f():\n    from gnnrec.training.trainer import Trainer", "graph -> training runs back"),
        ("graph/csr.py", "import gnnrec", "graph -> __init__ runs back"),
        ("cli.py", "from gnnrec import LightGCN", "cli -> __init__ runs back"),
        ("data/readers.py", "import tests.helpers", "no part of the package"),
        ("data/readers.py", "from experiments import matrix", "no part of the package"),
        ("data/readers.py", "import profiling", "no part of the package"),
        ("training/trainer.py", "from omegaconf import DictConfig", "only cli.py and config may"),
        ("training/trainer.py", "import hydra.utils", "only cli.py and config may"),
        ("cellar/wine.py", "", "cellar has no place in LEVELS"),
        ("cellar.py", "", "cellar has no place in LEVELS"),
    ],
)
def test_a_made_up_import_is_found(tmp_path, file, line, complaint):
    path = tmp_path / "gnnrec" / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    (found,) = defects(tmp_path / "gnnrec")
    assert complaint in found


def test_rooms_of_one_level_may_not_circle(tmp_path):
    package = tmp_path / "gnnrec"
    package.mkdir()
    (package / "losses.py").write_text("from gnnrec.models import lightgcn")
    assert defects(package) == []
    (package / "models.py").write_text("from gnnrec import losses")
    assert len(defects(package)) == 2


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("cli.py", "import hydra"),
        ("config/train.py", "from omegaconf import OmegaConf"),
        ("ops/spmm/cpu.py", "from ...graph import sparse"),
        ("ops/spmm/cpu.py", "from .. import _vector"),
        ("ops/spmm/cpu.py", "import numpy as np"),
        ("training/trainer.py", "from gnnrec.models.lightgcn import LightGCN"),
        ("__init__.py", "from gnnrec.estimators import LightGCN"),
    ],
)
def test_an_arrow_forward_is_allowed(tmp_path, file, line):
    path = tmp_path / "gnnrec" / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert defects(tmp_path / "gnnrec") == []
