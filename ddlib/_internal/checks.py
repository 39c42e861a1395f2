"""What a wrong argument is told: the value, and what is allowed.  What is right comes back as Python's own type."""

import difflib
import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np


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
    return f"{named.__module__}.{named.__qualname__}"


def print_of(thing: Any) -> str:
    """`name_of`, and a print of a function's code, which tells two lambdas apart; or how an object shows itself."""
    code = getattr(thing, "__code__", None)
    if code is None:
        return name_of(thing) if hasattr(thing, "__qualname__") else repr(thing).partition(" at 0x")[0]
    text = code.co_code + repr([c for c in code.co_consts if not hasattr(c, "co_code")]).encode()
    return f"{name_of(thing)} {hashlib.sha256(text).hexdigest()[:8]}"


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
