"""A bar for what takes long."""

import os
import sys
from typing import Any


def progress_bar(title: str, total: int | None, done: int = 0, shown: bool = True, **options: Any):
    """A tqdm bar that goes when it ends; silent with `shown=False` or the environment variable DDLIB_PROGRESS=0."""
    from tqdm import tqdm

    quiet = not shown or os.environ.get("DDLIB_PROGRESS") == "0"
    file = sys.stdout if "ipykernel" in sys.modules else sys.stderr  # a notebook sets stderr on red
    chosen = {"disable": quiet, "leave": False, "mininterval": 0.5, "file": file} | options
    return tqdm(total=total, initial=done, desc=title, **chosen)
