"""Where and in which precision to compute, and random numbers that are the same on every machine."""

import ctypes
import os
import random
from collections.abc import Iterable, Sequence
from functools import lru_cache
from threading import get_ident
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import checks

PRECISIONS = ("auto", "fp32", "bf16")
DEVICES = ("auto", "cuda", "mps", "cpu")


def check_device(name: str | torch.device) -> str:
    """A kind of `DEVICES`, "cuda:1", say, or a `torch.device`, as text."""
    kind, colon, index = str(name).partition(":")
    if not (colon and kind == "cuda" and index.isdecimal()):
        checks.one_of("device", str(name), DEVICES)
    return str(name)


def choose_device(name: str | torch.device = "auto", current: torch.device | None = None) -> torch.device:
    """The device of a recipe; "auto" is the current one of a model, if that is no CPU, else cuda, else mps, else cpu.

    Raises:
        ValueError: it is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind, _, index = check_device(name).partition(":")
    if kind == "auto":
        present = next(kind for kind, present in there.items() if present)
        return torch.device(present) if current is None or current.type == "cpu" else current
    if not there[kind] or (index and int(index) >= torch.cuda.device_count()):
        raise ValueError(f"device '{name}' is not there; present: {', '.join(k for k, v in there.items() if v)}.")
    return torch.device(str(name))


def choose_precision(name: str, device: torch.device) -> str:
    """ "fp32" or "bf16"; "auto" is bf16 where the device computes it in hardware.

    Raises:
        ValueError: bf16 is asked of a device that does not support it.
    """
    supported = {"cuda": torch.cuda.is_bf16_supported, "cpu": lambda: True}.get(device.type, lambda: False)()
    if checks.one_of("precision", name, PRECISIONS) == "auto":
        return "bf16" if supported and _bf16_is_fast(device) else "fp32"
    if name == "bf16" and not supported:
        raise ValueError(f"precision 'bf16' is not supported on device {device.type!r}; allowed: 'auto', 'fp32'.")
    return name


def _bf16_is_fast(device: torch.device) -> bool:
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return torch.cuda.get_device_capability(device)[0] >= 8


def autocast(device: torch.device, precision: str, dtype: torch.dtype) -> torch.autocast:
    """A context with bf16 computing, where `precision` says so and the weights are fp32.

    Enter it anew for each step: inside, autocast keeps bf16 copies of the weights.
    """
    bf16 = choose_precision(precision, device) == "bf16" and dtype == torch.float32
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def side_by_side(networks: Iterable[nn.Module], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of networks that have an input each; on a GPU, each computes on a stream of its own.

    Their backward passes do so too.  The streams wait for what is there already, and what comes next waits for them.
    """
    device, outputs = inputs[0].device, []
    if device.type != "cuda" or len(inputs) == 1:
        return [network(x) for network, x in zip(networks, inputs, strict=True)]
    here, streams = torch.cuda.current_stream(device), _streams(device, len(inputs), get_ident())
    for network, x, stream in zip(networks, inputs, streams, strict=True):
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            outputs.append(network(x))
    for stream in streams:
        here.wait_stream(stream)
    return outputs


@lru_cache
def _streams(device: torch.device, count: int, thread: int) -> list[Any]:
    """A thread's own: what another did on them could break off a capture."""
    return [torch.cuda.Stream(device) for _ in range(count)]


@lru_cache
def keep_memory() -> None:
    """Let what a step frees stay with this process: glibc gives large blocks back to Linux, which clears them anew.

    For training on a CPU.  Up to 2 GiB stay, from blocks below 1 GiB.  Whoever has set up the allocator (MALLOC_…,
    GLIBC_TUNABLES) keeps their settings, and other systems theirs.
    """
    own = [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]
    if os.name == "posix" and not own and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        mmap_threshold, trim_threshold = -3, -1  # malloc.h
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def memory_free(device: torch.device) -> int:
    """Bytes of memory that are free on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def seeded(*entropy: int) -> torch.Generator:
    """A CPU generator from a few whole numbers, the same on every machine."""
    mixed = 0
    for number in entropy:
        mixed = (mixed * 1_000_003 + number + 0x9E3779B9) % 2**63
    return torch.Generator().manual_seed(mixed)


def random_on_cpu() -> str:
    """The states of what draws random numbers on the CPU, as text: equal where nothing was drawn."""
    numpy = np.random.get_state(legacy=False)["state"]  # noqa: NPY002 - what others draw from
    return f"{random.getstate()} {numpy['key'].tobytes()} {numpy['pos']} {torch.get_rng_state().tolist()}"
