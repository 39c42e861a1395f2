"""A bar for what takes long, and one for several trainings that together take longer.

Set the environment variable DDLIB_PROGRESS=0 for none at all, as in logs and committed notebooks.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_whole: list["Whole"] = []  # the one that trainings move, where there is one


def progress_bar(title: str, total: int | None, done: int = 0, shown: bool = True, **options: Any):
    """A tqdm bar that goes when it ends; silent with `shown=False` or the environment variable DDLIB_PROGRESS=0.

    Of a training that is part of a `whole_bar`: that bar, moved by the training's share.
    """
    if shown and _whole and _whole[-1].share(title) is not None:
        return _Share(_whole[-1], title, total, done)
    from tqdm import tqdm

    quiet = not shown or os.environ.get("DDLIB_PROGRESS") == "0"
    file = sys.stdout if "ipykernel" in sys.modules else sys.stderr  # a notebook sets stderr on red
    chosen = {"disable": quiet, "leave": False, "mininterval": 0.5, "file": file} | options
    return tqdm(total=total, initial=done, desc=title, **chosen)


class Whole:
    """A bar over parts, each of several trainings, so that it tells the time that is left of all of them.

    Args:
        parts: of each part, what its trainings are worth, by name: their epochs.
    """

    def __init__(self, bar: Any, parts: list[Mapping[str, float]]):
        self.bar, self.parts, self.part, self.end = bar, parts, -1, 0.0

    def begin(self) -> None:
        """The next part; what the last one had no training for, since another had made it, counts as done."""
        self._to(self.end)
        self.part += 1
        self.end += sum(self.parts[self.part].values())

    def finish(self) -> None:
        self._to(self.end)

    def share(self, training: str) -> float | None:
        """What a training of this part is worth; None for what is none ("local, fold 1" is worth a "local")."""
        return self.parts[self.part].get(training.partition(",")[0])

    def move(self, by: float, title: str, **facts: Any) -> None:
        self.bar.set_description(f"{self.part + 1} of {len(self.parts)}, {title}", refresh=False)
        if facts:
            self.bar.set_postfix(facts, refresh=False)
        self._to(min(self.bar.n + by, self.end))

    def _to(self, place: float) -> None:
        self.bar.update(max(0.0, place - self.bar.n))


class _Share:
    """What a training takes for its own bar."""

    def __init__(self, whole: Whole, title: str, total: int | None, done: int):
        self.whole, self.title, self.step = whole, title, (whole.share(title) or 0.0) / (total or 1)
        self.update(done)

    def update(self, steps: int = 1) -> None:
        self.whole.move(steps * self.step, self.title)

    def set_postfix(self, **facts: Any) -> None:
        self.whole.move(0.0, self.title, **facts)

    def __enter__(self) -> "_Share":
        return self

    def __exit__(self, *_: Any) -> None:
        pass


@contextmanager
def whole_bar(parts: list[Mapping[str, float]], shown: bool = True) -> Iterator[Whole]:
    """A `Whole`, which the trainings within move; what they take for a bar of their own is its share of it."""
    form = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
    total = sum(sum(part.values()) for part in parts)
    with progress_bar("points", total, shown=shown and total > 0, smoothing=0.05, bar_format=form) as bar:
        whole = Whole(bar, parts)
        if shown:
            _whole.append(whole)
        try:
            yield whole
            whole.finish()
        finally:
            if shown:
                _whole.remove(whole)
