"""What this machine is, as far as speed depends on it: for `quota doctor` and the benchmarks."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

_CPU_INFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

# As Linux writes them: what the C++ kernels and torch's own choose their path by.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp", "i8mm")

DEFAULT_CACHE = 64 << 20
"""Bytes assumed where the system does not tell."""


def processor() -> str:
    """The processor's name, as "Intel(R) Xeon(R) Processor"."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def instructions() -> list[str]:
    """The instruction sets among those that matter here; empty where the system (other than Linux) does not tell."""
    present = (_cpu_info("flags") or _cpu_info("Features")).split()
    return [name for name in _INSTRUCTIONS if name in present]


def accelerators() -> list[str]:
    """Names of the CUDA devices that torch can use."""
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def name(device: torch.device) -> str:
    """What stands for a device: "cpu", or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def largest_cache() -> int:
    """Bytes of the processor's largest cache: data must exceed it to be read from memory."""
    sizes = [_bytes(file.read_text().strip()) for file in _CACHES.glob("index*/size")]
    return max(sizes, default=DEFAULT_CACHE)


def _bytes(size: str) -> int:
    """ "480M" -> 503316480."""
    return int(size[:-1]) * _UNITS[size[-1]] if size[-1:] in _UNITS else int(size)


def _cpu_info(key: str) -> str:
    """The first value of a key in Linux's list of processors; "" elsewhere."""
    if not _CPU_INFO.is_file():
        return ""
    for line in _CPU_INFO.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
