"""What a wrong argument is told: the value, and what is allowed.  What is right comes back as Python's own type."""

import difflib
import functools
import hashlib
import re
import types
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import files

ADDRESS = " at 0x[0-9a-f]+"
VALUES = (str, bytes, int, float, complex, types.NoneType)
OF_MODULES = {*vars(nn.Module())}  # hooks, modes and the like


def one_of(what: str, value: Any, allowed: Iterable[str]) -> str:
    """Return `value` when it is among `allowed`; otherwise a ValueError that names the nearest one."""
    allowed = list(allowed)
    if not isinstance(value, str | int | float | None):
        raise ValueError(f"{what} must be one of {', '.join(map(repr, allowed))}, got a {type(value).__name__}.")
    if isinstance(value, str) and value in allowed:
        return str(value)
    near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {what} {value!r}.{hint} Allowed: {', '.join(map(repr, allowed))}.")


def integer(what: str, value: Any, low: int, high: int | None = None) -> int:
    """Return `value` as an int in [low, high]; otherwise a ValueError that says so."""
    span = f"a whole number ≥ {low}" if high is None else f"a whole number from {low} to {high}"
    number = _number(int, value)
    if not low <= number <= (float("inf") if high is None else high) or number != value:
        raise ValueError(f"{what} must be {span}, got {value!r}.")
    return number


def real(what: str, value: Any, low: float, high: float = float("inf"), open_low: bool = False) -> float:
    """Return `value` as a finite float in [low, high] (low excluded with `open_low`)."""
    span = f"{'above' if open_low else 'at least'} {low}" + (f" and at most {high}" if high != float("inf") else "")
    number = _number(float, value)
    if not low <= number <= high or (open_low and number == low) or number == float("inf"):
        raise ValueError(f"{what} must be a number {span}, got {value!r}.")
    return number


def flag(what: str, value: Any) -> bool:
    """Return `value` when it is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{what} must be True or False, got {value!r}.")
    return bool(value)


def true(value: Any) -> bool:
    """Is `value` True, Python's, NumPy's or a tensor's?  What only counts as true, a number or a text, is not."""
    return (value.item() if getattr(value, "ndim", None) == 0 else value) is True


def name_of(thing: Any) -> str:
    """The qualified name of a function or class, or of an object's class."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{getattr(named, '__module__', None)}.{named.__qualname__}"


def print_of(thing: Any) -> str:
    """`name_of`, and a print of what a callable is made of, the same in every process: see `_made_of`."""
    return f"{name_of(thing)} {hashlib.sha256(_made_of(thing).encode()).hexdigest()[:8]}"


def _made_of(thing: Any, seen: dict[int, Any] | None = None) -> str:
    """Code, defaults, closure and attributes, and what these are made of; not globals, nor weights, which change."""
    seen = {} if seen is None else seen

    def parts(*several: Any) -> str:
        return f"{name_of(thing)}({', '.join(_made_of(part, seen) for part in several)})"

    if isinstance(thing, VALUES):
        return repr(thing)
    if id(thing) in seen or len(seen) > 1000:  # a part of itself, or of two; or a whole world
        return name_of(thing)
    seen[id(thing)] = thing
    match thing:
        case types.FunctionType():
            cells = [cell.cell_contents for cell in thing.__closure__ or () if cell != types.CellType()]
            return parts(thing.__code__, thing.__defaults__, thing.__kwdefaults__, *cells)
        case types.CodeType():
            return f"{thing.co_code.hex()} {thing.co_names} {parts(*thing.co_consts)}"
        case types.MethodType():
            return parts(thing.__func__, thing.__self__)
        case functools.partial():
            return parts(thing.func, thing.args, thing.keywords)
        case Tensor() if thing.requires_grad:
            return str(tuple(thing.shape))
        case Tensor() | np.ndarray():
            return f"{thing.dtype} {tuple(thing.shape)} {files.digest(torch.as_tensor(thing))}"
        case list() | tuple():
            return parts(*thing)
        case dict():
            return parts(*sorted(thing.items(), key=str))
        case set() | frozenset():
            return f"{name_of(thing)}{sorted(_made_of(part) for part in thing)}"
        case nn.Module():  # a loss, say; one with weights is a network, and counts by its layers
            own = {name: value for name, value in vars(thing).items() if name not in OF_MODULES}
            learns = next(thing.parameters(), None) is not None
            return re.sub(ADDRESS, "", repr(thing)) + ("" if learns else parts(own, dict(thing.named_buffers())))
    if hasattr(thing, "__qualname__"):
        return name_of(thing)
    return re.sub(ADDRESS, "", repr(thing)) + (parts(vars(thing)) if hasattr(thing, "__dict__") else "")


def finite(what: str, values: Any) -> Any:
    """Return a tensor in which every entry is a number; otherwise a ValueError that counts the images (axis 0)."""
    if bool((wrong := ~values.isfinite()).any()):
        count = int(wrong.flatten(1).any(1).sum()) if values.ndim > 1 else int(wrong.sum())
        raise ValueError(f"{what} is no number (NaN) for {count} of {len(values)} images: a training has diverged.")
    return values


def _number(kind: type, value: Any) -> float:
    """`value` as an int or a float; NaN where it is none."""
    try:
        return float("nan") if isinstance(value, (bool, np.bool_, str, bytes)) else kind(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
