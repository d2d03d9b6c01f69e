"""The machine a run happens on: device, seeds, floating-point mode, versions, disk."""

import os
import platform
import random
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsedet.common.errors import ConfigError, StorageError
from sparsedet.common.processes import num_processes


def choose_device(name: str) -> torch.device:
    """Return the torch device for ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps`` and so on.

    Raises:
        ConfigError: the device is unknown or absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(
            f"device: expected an available device, got '{name}' ({reason}). Use 'auto' or 'cpu'."
        ) from error
    return device


def start(seed: int, device: torch.device) -> None:
    """Seed Python, NumPy and torch, and flush denormals on CPU.

    A pruned network keeps weights and activations so small that they become denormal numbers, which made a pruned
    CPU run 3.8 times slower.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if device.type == "cpu":
        torch.set_flush_denormal(True)


def mix(*numbers: int) -> int:
    """Return a 63-bit seed that depends on all `numbers`."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def environment(device: torch.device) -> dict[str, Any]:
    """Return what a record must say about the machine: versions, device, threads."""
    packages = ("sparsedet", "torch", "torchvision", "numpy", "hotcoco")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
        "device": str(device),
        "device_name": name,
        "num_threads": torch.get_num_threads(),
        "num_processes": num_processes(),
        "flush_denormal": device.type == "cpu",
    }


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the most memory that tensors on a GPU, or else this process, have held so far; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def writable_folder(path: Path, need_bytes: int = 0) -> Path:
    """Create `path` if it is missing and check that it can be written and has room.

    Raises:
        StorageError: it cannot be created or written, or fewer than `need_bytes` are free.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise StorageError(
            f"{path}: expected a folder that can be written, got '{error.strerror}'. Choose another with --output."
        ) from error
    require_space(path, need_bytes)
    return path


def require_space(folder: Path, need_bytes: int) -> None:
    """Raise StorageError when the disk under `folder` has fewer than `need_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise StorageError(
            f"{folder}: expected {need_bytes / 2**20:.0f} MiB of free disk, got {free / 2**20:.0f} MiB. "
            "Free some space or choose another folder with --output."
        )
