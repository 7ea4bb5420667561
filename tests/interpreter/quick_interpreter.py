"""What Triton's interpreter does again and again, done once: half of its time. It computes as it did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


def install() -> None:
    """Replace functions of the interpreter; those that this version of Triton does not have stay away."""
    core.block_type.__init__ = _described(core.block_type.__init__)
    core.tensor.__init__ = _typed(core.tensor.__init__)
    TritonSemantic.broadcast_impl_value = _broadcast(TritonSemantic.broadcast_impl_value)
    TritonSemantic.binary_op_type_checking_impl = _checked(TritonSemantic.binary_op_type_checking_impl)
    TritonSemantic.cast = _cast(TritonSemantic.cast)
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
        numbers = tuple(s.value if isinstance(s, core.constexpr) else s for s in shape)
        key = element_ty.name, *pointer, *numbers
        if key not in known:
            init(self, element_ty, shape)
            same = dict(vars(self), _numbers=numbers)
            known[key] = same | {"_same": same}
        vars(self).update(known[key])
        vars(self).update(self._same)

    return describe


def _typed(init: Callable[..., None]) -> Callable[..., None]:
    """Tensors, of which all but the numbers follows from the type. Equal types of blocks become one and the same."""

    def fill(self: Any, handle: Any, type: Any) -> None:
        known = vars(type).get("_of_tensors")
        if known is None:
            init(self, handle, type)
            known = {name: value for name, value in vars(self).items() if name != "handle"}
            type._of_tensors = known
            vars(type).get("_same", {})["_of_tensors"] = known  # for types that are made later
        vars(self).update(known, handle=handle)

    return fill


def _broadcast(spread: Callable[..., Any]) -> Callable[..., Any]:
    """Two tensors of one shape are left alone, two blocks spread to the shape that holds both."""

    def broadcast(self: Any, lhs: Any, rhs: Any) -> Any:
        left, right = lhs.type, rhs.type
        if left is right or not (left.is_block() or right.is_block()):
            return lhs, rhs
        if not (left.is_block() and right.is_block()):
            return spread(self, lhs, rhs)
        if left._numbers == right._numbers:
            return lhs, rhs
        length = max(len(left._numbers), len(right._numbers))
        sides = [(1,) * (length - len(side._numbers)) + side._numbers for side in (left, right)]
        if any(1 != a != b != 1 for a, b in zip(*sides)):
            return spread(self, lhs, rhs)  # says what is wrong
        shape = [b if a == 1 else a for a, b in zip(*sides)]
        return tuple(
            x
            if list(x.type._numbers) == shape
            else self.make_tensor(self.builder.create_broadcast(x.handle, shape), core.block_type(x.dtype, shape))
            for x in (lhs, rhs)
        )

    return broadcast


def _checked(check: Callable[..., Any]) -> Callable[..., Any]:
    """Two tensors of one type, which is that of the result, need no look at the rules of promotion."""

    def checked(self: Any, lhs: Any, rhs: Any, *given: Any, **options: Any) -> Any:
        if isinstance(lhs, core.tensor) and isinstance(rhs, core.tensor) and lhs.type is rhs.type:
            dtype = lhs.dtype
            if not dtype.is_ptr() and (dtype.is_int() or dtype.is_fp32() or dtype.is_fp64()):
                return lhs, rhs
        return check(self, lhs, rhs, *given, **options)

    return checked


def _cast(cast: Callable[..., Any]) -> Callable[..., Any]:
    """A tensor that has the type already is left alone."""

    def quick(self: Any, input: Any, dst_ty: Any, *given: Any, **options: Any) -> Any:
        return input if input.dtype is dst_ty.scalar else cast(self, input, dst_ty, *given, **options)

    return quick
