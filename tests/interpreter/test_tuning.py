"""Launch shapes: measured by a clock that is made up here, kept, found again; nothing is measured otherwise."""

import json

import pytest
import torch

from gnnrec import ops
from gnnrec.device import DeviceError
from gnnrec.errors import ConfigError
from gnnrec.ops import tuner, tuning
from gnnrec.ops._operator import case_matrices


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path / "gnnrec/launches.json"
    tuning._load.cache_clear()
    tuning._lookup.cache_clear()


@pytest.fixture
def matrix():
    return case_matrices()["square"]


class Clock:
    """Seconds by the launch shape that is forced; every seventh time is an outlier."""

    def __init__(self, operator, fast, gain=2.0):
        self.operator, self.fast, self.gain, self.calls = operator, fast, gain, 0

    def __call__(self, call):
        self.calls += 1
        seconds = 1.0 / self.gain if tuning._forced[self.operator] == self.fast else 1.0
        return seconds + 0.001 * (self.calls % 3) if self.calls % 7 else 1000.0 * (self.calls % 2)


def test_the_fastest_shape_is_kept_and_found_again(cache, matrix):
    fast = tuning.CANDIDATES["spmm"][3]
    (tuned,) = tuner.tune(matrix, operators=["spmm"], dims=[16], clock=Clock("spmm", fast))
    assert tuned.shape == fast
    assert tuned.default_seconds == pytest.approx(1, abs=0.01)
    assert tuned.seconds == pytest.approx(0.5, abs=0.01)
    assert len(tuned.keys) == 2  # forward, and backward over the transpose
    case = 16, 1, torch.float32, matrix.histogram.tolist(), matrix.device
    assert tuning.choose("spmm", *case) == tuning.CANDIDATES["spmm"][0]
    assert tuning.keep(dict.fromkeys(tuned.keys, tuned.shape)) == cache
    assert tuning.choose("spmm", *case) == fast
    assert tuning.choose("spmm", 17, *case[1:]) == tuning.CANDIDATES["spmm"][0]
    assert tuning.choose("sddmm", *case) == tuning.CANDIDATES["sddmm"][0]


def test_a_gain_within_the_noise_keeps_the_default(cache, matrix):
    clock = Clock("spmm", tuning.CANDIDATES["spmm"][1], 1.01)
    (tuned,) = tuner.tune(matrix, operators=["spmm"], dims=[16], clock=clock)
    assert tuned.shape == tuning.CANDIDATES["spmm"][0]


@pytest.mark.parametrize("operator", list(tuning.CANDIDATES))
def test_every_operator_can_be_tuned(cache, matrix, operator):
    fast = tuning.CANDIDATES[operator][-1]
    (tuned,) = tuner.tune(
        matrix, operators=[operator], dims=[8], heads=2, batches=[20], ks=[3], clock=Clock(operator, fast)
    )
    assert tuned.shape == fast
    assert tuned.keys
    assert not tuned.failed


def test_choices_are_added_to_those_of_the_file(cache):
    first, second = tuning.CANDIDATES["spmm"][:2]
    tuning.keep({"spmm/a": second})
    tuning.keep({"spmm/b": first})
    assert json.loads(cache.read_text()) == {"shapes": {"spmm/a": dict(second), "spmm/b": dict(first)}}


def test_a_shape_that_is_no_candidate_any_more_is_passed_over(cache, matrix):
    name = tuning.key("spmm", 16, 1, torch.float32, matrix.histogram.tolist(), matrix.device)
    tuning.keep({name: {"numbers": 3}})
    assert (
        tuning.choose("spmm", 16, 1, torch.float32, matrix.histogram.tolist(), matrix.device)
        == tuning.CANDIDATES["spmm"][0]
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"shapes": 3}', "{}"])
def test_a_damaged_file_is_named(cache, matrix, text):
    cache.parent.mkdir()
    cache.write_text(text)
    with pytest.raises(ConfigError, match=r"launches.json: is damaged.*gnnrec tune"):
        ops.spmm(matrix, torch.ones(50, 16))


def test_calls_measure_and_write_nothing(cache, matrix, monkeypatch):
    monkeypatch.setattr(tuner, "_tune", None)
    ops.spmm(matrix, torch.ones(50, 16, requires_grad=True)).sum().backward()
    assert not cache.exists()


def test_what_cannot_be_tuned(matrix, monkeypatch):
    with pytest.raises(ValueError, match="got spmv"):
        list(tuner.tune(matrix, operators=["spmv"]))
    with pytest.raises(ValueError, match=r"got .*40 x 23"):
        list(tuner.tune(case_matrices()["user_item"], operators=["sddmm"]))
    monkeypatch.setattr("gnnrec.device.on_gpu", lambda x: False)
    with pytest.raises(DeviceError, match="the graph lies on the CPU"):
        list(tuner.tune(matrix))


def test_the_shipped_table_holds_candidates_only():
    shapes = json.loads(tuning.shipped_file().read_text())["shapes"]
    assert set(shapes) == set(tuning._load(tuning.shipped_file()))


def test_what_was_forced_before_is_not_tuned(cache, matrix):
    with tuning.forced("spmm", tuning.CANDIDATES["spmm"][1]):
        ops.spmm(case_matrices()["user_item"], torch.ones(23, 16))
    (tuned,) = tuner.tune(matrix, operators=["spmm"], dims=[16], clock=Clock("spmm", tuning.CANDIDATES["spmm"][3]))
    assert len(tuned.keys) == 2
