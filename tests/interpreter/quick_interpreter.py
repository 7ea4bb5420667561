"""What Triton's interpreter does again and again, done once: a third of its time. It computes as it did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from triton.language import core
from triton.runtime import interpreter


def install() -> None:
    """Replace functions of the interpreter; those that this version of Triton does not have stay away."""
    core.block_type.__init__ = _described(core.block_type.__init__)
    core.tensor.__init__ = _typed(core.tensor.__init__)
    if hasattr(interpreter, "_LangPatchScope"):
        interpreter._patch_lang = _once(interpreter._patch_lang)
    if hasattr(interpreter, "_get_np_dtype"):
        interpreter._get_np_dtype = _remembered(interpreter._get_np_dtype)


def _once(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """triton.language becomes numpy's where a kernel, or a function that it calls, sees it; and stays so."""
    seen = set()

    def patch_lang(fn: Any) -> Any:
        if fn not in seen:
            patch(fn)
            seen.add(fn)
        return interpreter._LangPatchScope()  # with nothing to restore

    return patch_lang


def _remembered(get: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """numpy's types by the names of Triton's, for which it makes a table at every call."""
    known: dict[str, Any] = {}

    def dtype(of: Any) -> Any:
        scalar = of.scalar
        if scalar.name not in known:
            known[scalar.name] = get(scalar)
        return known[scalar.name]

    return dtype


def _described(init: Callable[..., None]) -> Callable[..., None]:
    """Types of blocks, which follow from the type of an element and the shape."""
    known: dict[Any, dict[str, Any]] = {}

    def describe(self: Any, element_ty: Any, shape: Any) -> None:
        pointer = getattr(element_ty, "address_space", None), getattr(element_ty, "const", None)
        key = element_ty.name, *pointer, *(s.value if isinstance(s, core.constexpr) else s for s in shape)
        if key not in known:
            init(self, element_ty, shape)
            known[key] = dict(vars(self))
        vars(self).update(known[key])

    return describe


def _typed(init: Callable[..., None]) -> Callable[..., None]:
    """Tensors, of which all but the numbers follows from the type."""

    def fill(self: Any, handle: Any, type: Any) -> None:
        known = vars(type).get("_of_tensors")
        if known is None:
            init(self, handle, type)
            known = {name: value for name, value in vars(self).items() if name != "handle"}
            type._of_tensors = known
        vars(self).update(known, handle=handle)

    return fill
