"""Import Keras without the messages that TensorFlow prints about its own build."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock
from uuid import uuid4

# Two formats of the same log: absl's, and that of older versions of TensorFlow.
_PREFIX = r"(?:[IWE]\d{4} [\d:.]+ +\d+ |\d{4}-\d\d-\d\d [\d:.]+: [IWE] )\S+:\d+\] "

BUILD_MESSAGES = (
    r"WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR",
    rf"{_PREFIX}oneDNN custom operations are on\.",
    rf"{_PREFIX}oneDNN supports DT_BOOL only on platforms with AVX-512\.",
    rf"{_PREFIX}This TensorFlow binary is optimized ",
    r"To enable the following instructions: .* rebuild TensorFlow with the appropriate compiler flags\.",
    rf"{_PREFIX}Unable to register cu(?:DNN|FFT|BLAS) factory: ",
    rf"{_PREFIX}computation placer already registered\.",
    rf"{_PREFIX}TF-TRT Warning: Could not find TensorRT",
    rf"{_PREFIX}successful NUMA node read from SysFS had negative value",
    rf"{_PREFIX}Created device /job:localhost/\S+ with ",
)
"""How the lines begin that TensorFlow prints on any machine, as regular expressions."""

NO_GPU_MESSAGES = (
    rf"{_PREFIX}[Cc]ould not find cuda drivers on your machine, GPU will not be used\.",
    rf"{_PREFIX}failed call to cuInit: ",
    rf"{_PREFIX}(?:env: CUDA_VISIBLE_DEVICES|CUDA_VISIBLE_DEVICES is set to )",
    rf"{_PREFIX}(?:verbose logging is disabled|retrieving CUDA diagnostic information for host: |hostname: )",
    rf"{_PREFIX}(?:libcuda|kernel) (?:reported )?version (?:is|seems to )",
    rf"{_PREFIX}kernel driver does not appear to be running on this host",
)
"""Those that it prints where there is no NVIDIA GPU. Where there is one, they say why it is not used."""

# In a process of its own: TensorFlow writes while it holds Python's lock, and its last words before it aborts count.
# It ends at the marker; what a child process still writes into the pipe later is passed on by a fork.
_FILTER = """
import os, re, sys
known, marker = re.compile(sys.argv[1].encode()), sys.argv[2].encode()
out, held = sys.stderr.buffer, []
for line in sys.stdin.buffer:
    line, end, outcome = line.partition(marker)
    if end:
        out.write(line)
        out.writelines(held if outcome == b"failed\\n" else [])
        out.flush()
        held.clear()
        known = re.compile(b"(?!)")
        if os.fork():
            os._exit(0)
    elif known.match(line):
        held.append(line)
    else:
        out.write(line)
        out.flush()
out.writelines(held)
"""

_one_at_a_time = RLock()


def import_keras() -> None:
    """Import Keras and have its backend look for devices; lines on stderr that are known to concern nobody are dropped.

    Scripts call this before they import what needs Keras, and so can a notebook. Any other line passes, and all lines
    do if the import fails.
    """
    with stderr_without(*BUILD_MESSAGES, *(() if _has_nvidia_gpu() else NO_GPU_MESSAGES)):
        import keras

        # Finds the devices; and TensorFlow says at the first such operation that oneDNN does not have it.
        keras.ops.transpose(keras.ops.zeros((2, 3), dtype="bool"))


@contextmanager
def stderr_without(*patterns: str) -> Iterator[None]:
    """Within the block, drop lines that anything in this process writes to file descriptor 2, if they match.

    Other lines are passed on as they come, from any thread, extension or child process; if the block raises, or the
    process dies in it, those held back follow. A closed descriptor 2 is left alone.

    Args:
        *patterns: regular expressions of lines' beginnings.
    """
    with _one_at_a_time:
        try:
            shown = os.dup(2)
        except OSError:  # it is closed
            yield
            return
        marker = uuid4().hex
        command = [
            sys.executable,
            "-I",
            "-S",
            "-c",
            _FILTER,
            "|".join(f"(?:{pattern})" for pattern in patterns),
            marker,
        ]
        reading, writing = os.pipe()
        # In a session of its own Ctrl-C does not reach it.
        passing = subprocess.Popen(command, stdin=reading, stderr=shown, start_new_session=True)
        os.close(reading)
        outcome = "failed"
        try:
            _flush()
            os.dup2(writing, 2)
            yield
            outcome = "ended"
        finally:
            _flush()
            os.dup2(shown, 2)
            with suppress(BrokenPipeError):
                os.write(writing, f"{marker}{outcome}\n".encode())
            os.close(writing)
            os.close(shown)
            passing.wait()


def _flush() -> None:
    with suppress(AttributeError, ValueError):  # there is no sys.stderr, or it is closed
        sys.stderr.flush()


def _has_nvidia_gpu() -> bool:
    """Whether the machine has one, be it with a driver or without."""
    if [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("dxg")]:
        return True
    for device in Path("/sys/bus/pci/devices").glob("*"):
        with suppress(OSError):
            kind, vendor = ((device / name).read_text().strip() for name in ("class", "vendor"))
            if vendor == "0x10de" and kind.startswith("0x03"):  # NVIDIA; a display controller
                return True
    return False
