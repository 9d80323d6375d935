"""What a result depends on beside config, data and devices: environment.json."""

import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = (
    "albumentations",
    "keras",
    "numpy",
    "opencv-python-headless",
    "pandas",
    "pydicom",
    "scipy",
    "tensorflow",
    "jax",
    "torch",
)


def environment() -> dict:
    """Return what a result depends on beside config, data and devices; `ich.folders.RESULT` names keys of it."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "gpus": _gpus(),
    }


def _cpu() -> str:
    """The CPU's name as Linux tells it, or what Python knows elsewhere."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, name = line.partition(":")
            if key.strip() == "model name":
                return name.strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """Name, memory and driver of each NVIDIA GPU, of whichever backend is to use it; none without a driver."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def _version(package: str) -> str | None:
    """None where another package takes its place: opencv-python, another backend of Keras."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the code, with `-dirty` if it was changed since; None outside a git checkout of it."""
    here = Path(__file__)
    commands = (
        ["git", "ls-files", "--error-unmatch", here.name],  # fails if installed within some other repository
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
    )
    try:
        for command in commands:
            done = subprocess.run(command, cwd=here.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
