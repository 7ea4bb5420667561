"""Recordings of what users' models do on a CPU: nothing of it changes, and nothing of it gets lost."""

import gc
import json
import threading
from pathlib import Path

import pytest
import torch
from alone import alone
from torch.profiler import record_function

from gnnrec import profiler
from gnnrec.training import recording, trace

CPU = torch.device("cpu")


def recorded(step, begun=None):
    """The events of a step, and what it gives."""
    record = begun or recording.begin(CPU, Path())
    try:
        with record.step():
            result = step()
    finally:
        events = json.loads(record.end())["traceEvents"]
    return events, result


def rows(events):
    return {(key.operator, key.direction): row for key, row in trace.rows_of(events).rows.items()}


def test_control_flow_of_torch_has_a_row():
    x = torch.ones(3)

    def chosen():
        return torch.cond(x.sum() > 2, lambda x: x + 1, lambda x: x - 1, (x,))

    events, result = recorded(chosen)
    assert torch.equal(result, x + 1)
    assert rows(events)["higher_order::cond", None].calls == 1


@alone
def test_compiled_functions_stay_compiled():
    runs, x = [], torch.linspace(-1, 1, 64).reshape(8, 8)

    def backend(graph, _):
        runs.append("compiled")

        def called(*inputs):
            runs.append("run")
            return graph(*inputs)

        return called

    @torch.compile(backend=backend)
    def function(x):
        y = torch.tanh(x) * 1.7
        if y.sum() > 100:  # two parts
            return y
        return torch.softmax(y, -1)

    expected = function(x)
    function(x)
    assert runs.count("compiled") == 2
    frames = torch._dynamo.utils.counters["frames"].copy()
    events, result = recorded(lambda: function(x))
    assert torch.equal(result, expected)
    assert runs.count("compiled") == 2
    assert runs[-2:] == ["run", "run"]
    assert torch._dynamo.utils.counters["frames"] == frames  # not even what records was compiled
    assert ("aten::gt", None) in rows(events)  # between the parts


def test_a_users_operator_has_a_row():
    with torch.library._scoped_library("of_a_test", "FRAGMENT"):

        @torch.library.custom_op("of_a_test::product", mutates_args=())
        def product(x: torch.Tensor) -> torch.Tensor:
            return x @ x

        product.register_autograd(lambda ctx, gradient: product(gradient))
        x = torch.ones(4, 4, requires_grad=True)
        found = rows(recorded(lambda: product(x).sum().backward())[0])
    assert [found["of_a_test::product", way].calls for way in ("forward", "backward")] == [1, 1]
    assert found["of_a_test::product", "forward"].bytes is None


class Ranged(torch.autograd.Function):
    """Begins its backward pass with a range and ends it with another."""

    @staticmethod
    def forward(ctx, x):
        return x.sum()

    @staticmethod
    def backward(ctx, gradient):
        with record_function("first"):
            gradient = gradient * 2
        with record_function("last"):
            return gradient.expand(5)


def test_ranges_within_a_backward_pass_lie_within_its_event():
    x = torch.ones(5, requires_grad=True)
    # No call of autograd follows.
    events, _ = recorded(lambda: torch.autograd.grad(Ranged.apply(x), x))
    named = {event["name"]: (event["ts"], event["ts"] + event["dur"]) for event in events}
    begin, end = named[trace.ENGINE_EVENT]
    assert begin <= named["first"][0] < named["last"][1] <= end
    profile = trace.rows_of(events)
    assert sum(row.seconds for row in profile.rows.values()) == pytest.approx(profile.seconds, rel=1e-6)


def test_a_range_from_before_the_step_may_end_in_it():
    before = record_function("before")
    before.__enter__()
    events, _ = recorded(lambda: before.__exit__(None, None, None))
    assert [event["name"] for event in events] == [trace.STEP]


def test_kernels_of_other_threads_are_not_taken_for_those_of_the_step():
    def kernel(name):
        with profiler.kernel(name):
            pass

    def both():
        other = threading.Thread(target=kernel, args=("gnnrec::other",))
        other.start()
        other.join()
        kernel("gnnrec::own")

    assert [event["name"] for event in recorded(both)[0]] == ["gnnrec::own", trace.STEP]


@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_frozen_before_a_recording_is_frozen_after_it(frozen):
    assert gc.get_freeze_count() == 0
    if frozen:
        gc.freeze()
    try:
        recorded(lambda: None)
        assert (gc.get_freeze_count() > 0) == frozen
        record = recording.begin(CPU, Path())
        assert gc.get_freeze_count() > 0
        record.end()
        gc.freeze()
        record.end()  # again
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
