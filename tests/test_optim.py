"""Optimisers against torch's and against their equations, and what adam_step does beyond the walk over operators."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from test_dropout import scalar_word
from walk import assert_bit_equal, draw

from gnnrec import ops
from gnnrec.config import OptimizerConfig, fill
from gnnrec.config.recipes import CONF
from gnnrec.errors import ConfigError
from gnnrec.ops._numba import num_threads
from gnnrec.ops.adam import _step, cpu
from gnnrec.training import optim

TESTS = Path(__file__).parent
NAMES = ("adam", "adamw", "lamb", "lars", "rowwise_adagrad", "sgd")
SHAPES = ((50, 64), (2, 33, 64), (64,))
BFLOAT16 = {"state_dtype": "bfloat16"}


class Model(torch.nn.Module):
    def __init__(self, shapes=SHAPES):
        super().__init__()
        self.parts = torch.nn.ParameterList(draw(shape, seed, torch.float32) for seed, shape in enumerate(shapes))


def build(name, model, **options):
    config = OptimizerConfig(name=name, lr=0.01, **options)
    config.validate()
    return optim.build(config, model)


def gradients(model, step):
    """Drawn ones, without the second parameter's in every other step."""
    drawn = [draw(x.shape, 10 * step + number, torch.float32) for number, x in enumerate(model.parts)]
    return [None if number == 1 and step % 2 else x for number, x in enumerate(drawn)]


def train(optimizer, model, steps):
    """The parameters after steps of these numbers."""
    for step in steps:
        for parameter, gradient in zip(model.parts, gradients(model, step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parts]


def assert_close(results, expected):
    for ours, theirs in zip(results, expected, strict=True):
        torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=3e-6, atol=3e-7)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_against_torch(name, decay):
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    ours, model = Model(), Model()
    options = {"momentum": 0.9} if name == "sgd" else {}
    theirs = kind(model.parameters(), lr=0.01, weight_decay=decay, **options)
    assert_close(train(build(name, ours, weight_decay=decay), ours, range(5)), train(theirs, model, range(5)))


def test_checkpoints_of_torch_are_read():
    """Those from before there was adam_step."""
    model, other = Model(), Model()
    theirs = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    train(theirs, model, range(3))
    other.load_state_dict(model.state_dict())
    ours = build("adam", other)
    state = {n: {k: v.clone() for k, v in part.items()} for n, part in theirs.state_dict()["state"].items()}
    ours.load_state_dict(ours.state_dict() | {"state": state})
    assert_close(train(ours, other, (3, 4)), train(theirs, model, (3, 4)))


def lamb(w, g, state, step):
    state["m"], state["v"] = 0.9 * state["m"] + 0.1 * g, 0.999 * state["v"] + 0.001 * g * g
    r = state["m"] / (1 - 0.9**step) / ((state["v"] / (1 - 0.999**step)).sqrt() + 1e-8) + 0.1 * w
    return w - 0.01 * w.norm() / r.norm() * r


def lars(w, g, state, step):
    local = w.norm() / (g.norm() + 0.1 * w.norm())
    state["m"] = 0.9 * state["m"] + 0.01 * local * (g + 0.1 * w)
    return w - state["m"]


def rowwise_adagrad(w, g, state, step):
    g = g + 0.1 * w
    state["v"] = state["v"] + g.square().mean(dim=-1, keepdim=True)
    return w - 0.01 * g / (state["v"].sqrt() + 1e-8)


@pytest.mark.parametrize("equations", [lamb, lars, rowwise_adagrad])
def test_against_the_equations(equations):
    model = Model()
    w = [x.detach().double() for x in model.parts]
    states = [{"m": torch.zeros(()), "v": torch.zeros(()), "step": 0} for _ in w]
    for step in range(5):
        for number, g in enumerate(gradients(model, step)):
            if g is not None:
                states[number]["step"] += 1
                w[number] = equations(w[number], g.double(), states[number], states[number]["step"])
    assert_close(train(build(equations.__name__, model, weight_decay=0.1), model, range(5)), w)


@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_a_parameter_that_is_zero_moves(name):
    """A length of nothing gives no ratio."""
    model = Model([(3, 4)])
    model.parts[0].data.zero_()
    (moved,) = train(build(name, model), model, range(1))
    assert (moved != 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_bit_equal_whatever_the_threads(name):
    """Sums that torch would split among threads included."""
    results = []
    for threads in (1, 2):
        with num_threads(threads):
            model = Model([(40_000, 3), (50_000,)] if name not in ("adam", "adamw") else [(700, 64), (2, 300)])
            options = BFLOAT16 | {"clip": 5.0} if name in ("adam", "adamw") else {}
            results.append(train(build(name, model, weight_decay=0.1, **options), model, range(3)))
    assert_bit_equal(*results)


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in NAMES), ("adamw", BFLOAT16)])
def test_a_checkpoint_goes_on_with_the_same_bits(name, options):
    """By number and name, as the trainer keeps the state."""
    model, other = Model(), Model()
    optimizer, resumed = build(name, model, **options), build(name, other, **options)
    train(optimizer, model, range(3))
    parts = optimizer.state_dict()["state"]
    tensors = {f"{number}.{key}": x.clone() for number, part in parts.items() for key, x in part.items()}
    other.load_state_dict(model.state_dict())
    state = resumed.state_dict()
    for label, x in tensors.items():
        number, _, key = label.partition(".")
        state["state"].setdefault(int(number), {})[key] = x
    resumed.load_state_dict(state)
    kinds = {x.dtype for x in tensors.values() if x.dim()}
    assert kinds == {torch.bfloat16 if options else torch.float32}
    assert kinds == {x.dtype for part in resumed.state.values() for x in part.values() if x.dim()}
    assert_bit_equal(train(resumed, other, (3, 4)), train(optimizer, model, (3, 4)))


def test_a_closure_gives_the_loss():
    model = Model()
    optimizer = build("adam", model)

    def loss():
        optimizer.zero_grad()
        result = model.parts[0].square().sum()
        result.backward()
        return result

    assert optimizer.step(loss) > optimizer.step(loss)


# adam_step


def zeros(rows, dim, dtype=torch.float32):
    return torch.zeros(rows, dim, dtype=dtype)


def test_rows_of_a_gradient_are_clipped():
    gradient = draw((9, 33), 1, torch.float32)
    gradient[3], gradient[4] = 0.0, gradient[4] * 1e-3
    shorter = torch.stack([row * min(1.0, 2.0 / max(float(row.norm()), 1e-9)) for row in gradient])
    clipped, expected = ([draw((9, 33), 0, torch.float32), zeros(9, 33), zeros(9, 33)] for _ in range(2))
    ops.adam_step(clipped[0], gradient, *clipped[1:], lr=0.1, step=1, eps=0.1, clip=2.0)
    ops.adam_step(expected[0], shorter, *expected[1:], lr=0.1, step=1, eps=0.1)
    assert_close(clipped, expected)
    assert torch.equal(clipped[1][4], 0.1 * gradient[4])  # a short row as it is


def test_views_vectors_and_no_rows():
    """All tensors that are changed lie between others that are not."""
    gradient = draw((33, 3), 0, torch.float32).t()
    views, expected = [zeros(6, 40)[::2, 3:36] for _ in range(3)], [zeros(3, 33) for _ in range(3)]
    ops.adam_step(views[0], gradient, *views[1:], lr=0.1, step=torch.tensor(1.0))
    ops.adam_step(expected[0], gradient.contiguous(), *expected[1:], lr=0.1, step=1)
    assert_bit_equal(views, expected)
    assert all(x._base.count_nonzero() == 99 for x in views)
    vector = [torch.zeros(33) for _ in range(3)]
    assert ops.adam_step(vector[0], gradient[0], *vector[1:], lr=0.1, step=1) is vector[0]
    assert_bit_equal(vector, [x[0] for x in expected])
    ops.adam_step(*(zeros(0, 33) for _ in range(4)), lr=0.1, step=1, clip=1.0)


def rounded(x, seed, step, stream, shift):
    """x [rows, dim] rounded to bfloat16 by the words of Philox, one by one."""
    names = [(a, column) for a in range(len(x)) for column in range(x.shape[1])]
    halves = [scalar_word(seed, a, step, stream, column) >> shift & 0xFFFF for a, column in names]
    return (x.view(torch.int32) + torch.tensor(halves).int().view(x.shape) & -0x10000).view(torch.float32)


@pytest.mark.parametrize(("rows", "dim"), [(3, 33), (2, 300), (1, 600)])
def test_bfloat16_is_rounded_by_philox(rows, dim):
    seed, step, half = 5 << 40, 2**31 + 3, torch.bfloat16
    gradient = draw((rows, dim), 0, half).float()  # whose square is exact
    parameter, mean, square = gradient.clone(), draw((rows, dim), 1, half), draw((rows, dim), 2, half).abs()
    expected = 0.5 * mean.float() + 0.5 * gradient, 0.5 * square.float() + 0.5 * gradient.square()
    ops.adam_step(parameter, gradient, mean, square, lr=0.1, betas=(0.5, 0.5), step=step, seed=seed)
    assert torch.equal(mean.float(), rounded(expected[0], seed, step, cpu.MOMENTS, 0))
    assert torch.equal(square.float(), rounded(expected[1], seed, step, cpu.MOMENTS, 16))
    # A step that only makes the parameter smaller.
    parameter, zero = draw((rows, dim), 3, half), [torch.zeros(rows, dim, dtype=half) for _ in range(3)]
    expected = 0.7499 * parameter.float()
    options = {"lr": 0.5, "weight_decay": 2 * (1 - 0.7499), "decoupled": True}
    ops.adam_step(parameter, *zero, step=step, seed=seed, **options)
    assert torch.equal(parameter.float(), rounded(expected, seed, step, cpu.PARAMETER, 0))


def test_rounding_has_no_bias():
    """The running mean of ones comes near 1, where a bfloat16 that is rounded to nearest stays below a third; the mean
    of many numbers is the number, up to their deviation."""
    half, near = torch.bfloat16, zeros(32, 64, torch.bfloat16)
    tensors = zeros(32, 64), torch.ones(32, 64), zeros(32, 64, half), zeros(32, 64, half)
    for step in range(1, 1501):
        ops.adam_step(*tensors, lr=0.0, step=step, betas=(0.999, 0.999))
        near = (0.999 * near.float() + 0.001).to(half)
    for moment in tensors[2:]:
        assert float(moment.double().mean()) == pytest.approx(1 - 0.999**1500, rel=2e-3)
    assert near.max() < 0.34
    tensors = zeros(3000, 64), torch.full((3000, 64), 1.003), zeros(3000, 64, half), zeros(3000, 64, half)
    ops.adam_step(*tensors, lr=0.0, step=1, betas=(0.0, 0.0))
    for moment, exact in zip(tensors[2:], (1.003, 1.003**2), strict=True):
        part = (exact - 1) * 128 % 1
        assert moment.unique().numel() == 2
        deviation = (part * (1 - part) / moment.numel()) ** 0.5 / 128
        assert abs(float(moment.double().mean()) - exact) < 5 * deviation


def test_no_number_is_made_of_nan_or_infinity():
    half, inf = torch.bfloat16, float("inf")
    bits = torch.tensor([0x7F800000, -0x800000, 0x7FFFFFFF, -1, 0x7F800001, 0]).int()  # of +-inf, NaNs, 0
    gradient = bits.view(torch.float32).repeat(40, 1)
    mean, square = zeros(40, 6, half), zeros(40, 6, half)
    ops.adam_step(zeros(40, 6), gradient, mean, square, lr=0.0, step=1, betas=(0.0, 0.0))
    assert mean[0, [0, 1, 5]].tolist() == [inf, -inf, 0.0]
    assert square[0, [0, 1, 5]].tolist() == [inf, inf, 0.0]
    for moment in (mean, square):
        assert moment[:, 2:5].isnan().all()
        assert torch.equal(moment[:, [0, 1, 5]], moment[:1, [0, 1, 5]].expand(40, 3))


def test_a_master_copy():
    master, parameter = draw((9, 64), 0, torch.float32), draw((9, 64), 0, torch.float32).bfloat16()
    state, exact = (zeros(9, 64), zeros(9, 64)), (master.clone(), zeros(9, 64), zeros(9, 64))
    for step in (1, 2, 3):
        gradient = draw((9, 64), step, torch.bfloat16)
        ops.adam_step(parameter, gradient, *state, lr=1e-4, step=step, master=master)
        ops.adam_step(exact[0], gradient.float(), *exact[1:], lr=1e-4, step=step)
        assert torch.equal(parameter, master.bfloat16())
    assert_bit_equal((master, *state), exact)


SCRIPT = """
import torch
from gnnrec import device, ops
def tensors():
    for rows, dim in ((5, 33), (3, 64), (2, 300), (1, 600)):
        generator = torch.Generator().manual_seed(dim)
        x = [torch.randn(rows, dim, generator=generator).bfloat16() for _ in range(4)]
        options = {"lr": 0.0, "betas": (0.5, 0.5), "step": 70_000, "seed": 5 << 40}
        yield x[0], x[1], x[2], x[3].abs(), options
        moved = torch.zeros(rows, dim).bfloat16()
        options |= {"lr": 0.5, "weight_decay": 0.5002, "decoupled": True}
        yield x[0].clone(), moved, moved.clone(), moved.clone(), options
results = []
for on_gpu in (False, True):
    device.on_gpu = lambda x: on_gpu
    for *given, options in tensors():
        ops.adam_step(*given, **options)
        results.append(given)
half = len(results) // 2
assert all(torch.equal(x, y) for a, b in zip(results[:half], results[half:]) for x, y in zip(a, b))
print("equal", half)
"""


def test_both_devices_round_by_the_same_bits():
    """Triton's kernel in the interpreter, for which it needs a process of its own."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "equal 8\n"), done.stderr


def test_registration_with_torch_library():
    numbers = [0.1, 0.9, 0.999, 1e-8, 0.0, 1.0, 2.0]
    tensors = [draw((5, 33), seed, torch.float32).abs() for seed in range(4)]
    torch.library.opcheck(_step, (*tensors, None, None, None, 3, numbers, 0))


def bad_calls():
    x, half = torch.ones(3, 4), torch.ones(3, 4, dtype=torch.bfloat16)
    return {
        "lr must be at least 0 and finite, got nan": {"lr": float("nan")},
        "eps must be at least 0 and finite, got -1": {"eps": -1},
        "weight_decay must be at least 0 and finite, got inf": {"weight_decay": float("inf")},
        r"betas must be two numbers within \[0, 1\), got \(0.9, 1.0\)": {"betas": (0.9, 1.0)},
        "clip must be above 0, or None, got 0": {"clip": 0},
        "seed must lie within 0 and 2\\^63 - 1, got -1": {"seed": -1},
        "step must lie within 1 and 2\\^32 - 1, got 0": {"step": 0},
        r"step must be one number, got \[2\]": {"step": torch.ones(2)},
        r"the rows of mean must be contiguous and apart, got strides \(1, 3\)": {"mean": torch.ones(4, 3).t()},
        r"the rows of parameter must be contiguous and apart, got strides \(0, 1\)": {
            "parameter": torch.ones(1, 4).expand(3, 4)
        },
        "parameter must not share a storage with square": {"square": x, "parameter": x},
        "square must be torch.bfloat16, got torch.float32": {"mean": half},
        "master is for a parameter of torch.bfloat16, got one of torch.float32": {"master": x},
        "mean must be torch.float64, got torch.float32": {"parameter": x.double(), "gradient": x.double()},
        r"gradient must have shape \[3, 4\], got \[2, 4\]": {"gradient": x[:2]},
        r"mean must have shape \[4\], got \[3, 4\]": {"parameter": x[0], "gradient": x[1]},
    }


@pytest.mark.parametrize(("message", "changed"), bad_calls().items())
def test_bad_calls_are_named(message, changed):
    given = {name: torch.ones(3, 4) for name in ("parameter", "gradient", "mean", "square")}
    with pytest.raises(ValueError, match=f"^adam_step: {message}"):
        ops.adam_step(**given | {"lr": 0.1, "step": 1} | changed)


# Configuration


@pytest.mark.parametrize("name", NAMES)
def test_the_files_hold_the_options_that_have_an_effect_with_the_defaults(name):
    values = OmegaConf.to_container(OmegaConf.load(CONF / "optimizer" / f"{name}.yaml"))
    assert fill(OptimizerConfig, values) == fill(OptimizerConfig, {"name": name})
    other = {"betas": [0.5, 0.5], "eps": 1e-3, "momentum": 0.5, "state_dtype": "bfloat16", "clip": 1.0}
    for option, value in other.items():
        config = fill(OptimizerConfig, values | {option: value})
        if option in values:
            config.validate()
        else:
            with pytest.raises(ConfigError, match=f"optimizer.{option}: has no effect on optimizer={name}. Leave it"):
                config.validate()


def test_there_is_a_file_for_every_name():
    assert {file.stem for file in (CONF / "optimizer").glob("*.yaml")} == set(NAMES)
