"""Versions, commit and machine of a result, for environment.json."""

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
    """Return versions, commit and machine, which a result depends on; `ich.folders.RESULT` names some of the keys."""
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
    """Return the CPU's name from Linux, or what Python knows of it on other systems."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, name = line.partition(":")
            if key.strip() == "model name":
                return name.strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """Return name, memory and driver of each NVIDIA GPU, for any backend; none without a driver."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def _version(package: str) -> str | None:
    """Return a package's version, None if it is not installed, such as opencv-python or another backend of Keras."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the code, with `-dirty` if it was changed since; None outside its git checkout."""
    module = Path(__file__)
    commands = (
        ["git", "ls-files", "--error-unmatch", module.name],  # fails if installed inside another repository
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
    )
    try:
        for command in commands:
            done = subprocess.run(command, cwd=module.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
