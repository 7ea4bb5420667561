"""Compiles the Triton kernels that operators launch, without a GPU: `echo OPERATOR | python tests/compiled.py`.

A process of its own: operators run on CPU tensors as if these lay on a GPU, and every launch is compiled instead, for
each of the two architectures. Prints a line of JSON for every operator: what the compiler made of each kernel.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from inspect import signature
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from gnnrec import device, ops
from gnnrec.graph import schedule, sparse
from gnnrec.ops import tuning
from gnnrec.ops._operator import Case, Operator

device.on_gpu = lambda x: True
schedule.GPU_SHORT, schedule.GPU_LONG, sparse.GPU_LONG = 4, 16, 16  # small graphs have rows of every kind
ARCHITECTURES = (80, 90)
WIDTHS = (33, 64, 300)
VARIANTS = ({"deterministic": False}, {"dropout": 0.5, "training": True}, {"node_dropout": 0.5, "training": True})
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
POINTERS = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}
POINTERS |= {torch.int32: "i32", torch.int64: "i64", torch.bool: "i1", torch.uint8: "u8"}

launches: dict[str, tuple[ASTSource, dict[str, int]]] = {}


def record(kernel, *args, grid, warmup, num_warps, num_stages, enable_fp_fusion, maxnreg=None, **constants):
    """Note a launch as the compiler wants it, instead of running it."""
    given = dict(zip(kernel.arg_names, args)) | constants
    signature, constexprs, attributes = {}, {}, {}
    for parameter in kernel.params:
        value, at = given.get(parameter.name, parameter.default), (parameter.num,)
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constexprs[at] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = f"*{POINTERS[value.dtype]}"
            attributes[at] = [["tt.divisibility", 16]]  # as torch allocates; slices are left out
        elif parameter.annotation_type:
            signature[parameter.name] = parameter.annotation_type
        elif value == 1 and not parameter.do_not_specialize:
            signature[parameter.name], constexprs[at] = "constexpr", 1
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[at] = [["tt.divisibility", 16]]
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": enable_fp_fusion}
    options |= {} if maxnreg is None else {"maxnreg": maxnreg}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)
    # Alignment is that of the first call: whether a number of rows divides by 16 makes no other kernel.
    key = json.dumps([kernel.__module__, kernel.__name__, signature, str(constexprs), options])
    launches.setdefault(key, (source, options))


def call(op: Operator, case: Case, dtype: torch.dtype) -> None:
    """A forward and a backward call whose numbers do not matter."""
    tensors = {name: torch.ones(shape, dtype=dtype) for name, shape in case.tensors.items()}
    tensors = {name: x.requires_grad_(op.differentiable) for name, x in tensors.items()}
    out = op.function(**case.options, **tensors)
    if op.differentiable:
        torch.autograd.grad(out, list(tensors.values()), torch.ones_like(out), allow_unused=True)


def width(case: Case) -> int:
    return next(iter(case.tensors.values()))[-1]


def calls(op: Operator) -> Iterator[tuple[Case, torch.dtype]]:
    """Cases of the usual widths in float32, first 64; one of width 64 in the other dtypes."""
    cases = sorted((case for case in op.cases() if width(case) in WIDTHS), key=lambda case: width(case) != 64)
    for case in cases:
        yield case, torch.float32
    for dtype in op.dtypes[1:]:
        yield cases[0], dtype


@cache
def compiled(key: str, architecture: int) -> dict[str, object]:
    """What the compiler made of a launch, or why it did not; once for all operators that make it."""
    source, options = launches[key]
    row = {
        "module": source.fn.__module__,
        "kernel": source.fn.__name__,
        "architecture": architecture,
        "options": options,
        "constants": {source.fn.arg_names[at[0]]: str(value) for at, value in source.constants.items()},
        "pointers": {name: kind for name, kind in source.signature.items() if kind.startswith("*")},
    }
    try:
        made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    except triton.CompilationError as error:
        return row | {"error": f"{error.__cause__ or ''} {error}"}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))
    return row | {
        "registers": registers,
        "spilled_bytes": stack + local,
        "shared_bytes": made.metadata.shared,
        "loads": sorted(set(re.findall(r"ld\.global[\w:.]*", made.asm["ptx"]))),
    }


def launched(op: Operator) -> list[str]:
    """Keys of what an operator launches: its cases, those of width 64 with every option, then every launch shape."""
    launches_before = dict(launches)
    launches.clear()
    known = signature(op.function).parameters
    variants = [variant for variant in VARIANTS if set(variant) <= set(known)]
    for case, dtype in calls(op):
        for variant in [{}, *(variants if width(case) == 64 else ())]:
            call(op, replace(case, options=case.options | variant), dtype)
    by_default = set(launches)
    usual = next(case for case in op.cases() if width(case) == 64)
    for shaped, shapes in tuning.CANDIDATES.items():
        for shape in shapes[1:]:
            with tuning.forced(shaped, shape):
                call(op, usual, torch.float32)
    # Other operators' kernels meet all shapes when their own turn comes.
    own = f"{op.function.__module__}."
    keys = [key for key in launches if key in by_default or launches[key][0].fn.__module__.startswith(own)]
    launches.update(launches_before)
    return keys


def main() -> None:
    JITFunction.run = record
    operators = {op.name: op for op in ops.OPS}
    for name in sys.stdin:
        keys = launched(operators[name.strip()])
        rows = [compiled(key, architecture) for key, architecture in itertools.product(keys, ARCHITECTURES)]
        print(json.dumps(rows), flush=True)


if __name__ == "__main__":
    main()
