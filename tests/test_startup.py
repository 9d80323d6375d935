import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ich import startup

KNOWN = [
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "I0000 00:00:1795842142.427379   18712 port.cc:153] oneDNN custom operations are on. You may see slightly",
    "2024-05-05 12:00:00.123456: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on. You may see",
    "E0000 00:00:1736.5      12 cuda_blas.cc:1418] Unable to register cuBLAS factory: Attempting to register factory",
    "To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow with the appropriate"
    " compiler flags.",
]
NO_GPU = [
    "I0000 00:00:1795842142.428212   18712 cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU will not"
    " be used.",
    "E0000 00:00:1795842147.300732   18712 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error: Failed"
    " call to cuInit: UNKNOWN ERROR (303)",
]


def run(body, **options):
    """What a process prints on stderr that runs this code, and how it ends."""
    code = f"import os, sys, threading, subprocess\nfrom ich.startup import stderr_without\n{body}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("line", KNOWN)
def test_messages_about_the_build_are_known(line):
    assert any(re.match(pattern, line) for pattern in startup.BUILD_MESSAGES)


@pytest.mark.parametrize("line", NO_GPU)
def test_messages_about_a_missing_gpu_are_known_where_there_is_none(line):
    assert any(re.match(pattern, line) for pattern in startup.NO_GPU_MESSAGES)
    assert not any(re.match(pattern, line) for pattern in startup.BUILD_MESSAGES)


@pytest.mark.parametrize(
    "line",
    [
        "W0000 00:00:1795.3  7 gpu_device.cc:2343] Cannot dlopen some GPU libraries. Please make sure the missing",
        "F0000 00:00:1795.3  7 cpu_feature_guard.cc:37] The TensorFlow library was compiled to use AVX instructions",
        "a line that quotes: oneDNN custom operations are on.",
        "warning: no GPU was found",
    ],
)
def test_messages_that_concern_the_user_are_not_known(line):
    assert not any(re.match(pattern, line) for pattern in (*startup.BUILD_MESSAGES, *startup.NO_GPU_MESSAGES))


def test_known_lines_alone_are_dropped_whoever_writes_them():
    done = run("""
print("noise before", file=sys.stderr)
with stderr_without("noise", "chatter"):
    os.write(2, b"noise of an extension\\nnews of an extension\\n")
    thread = threading.Thread(target=print, args=("news of a thread",), kwargs={"file": sys.stderr})
    thread.start()
    thread.join()
    subprocess.run(["sh", "-c", "echo chatter of a child >&2; echo news of a child >&2"])
    os.write(2, b"more than a pipe holds: " + b"x" * 200_000 + b"\\n")
    os.write(2, b"half a line")
    with stderr_without("other"):
        os.write(2, b"other\\n")
print(", noise after", file=sys.stderr)
""")
    news = ["news of an extension", "news of a thread", "news of a child"]
    lines = done.stderr.replace("x" * 200_000, "…").splitlines()
    assert lines == ["noise before", *news, "more than a pipe holds: …", "half a line, noise after"]


def test_all_lines_are_shown_if_the_block_raises_or_the_process_dies():
    for end, status in (("raise SystemExit(3)", 3), ("os.kill(os.getpid(), 9)", -signal.SIGKILL)):
        done = run(f"with stderr_without('noise'):\n    os.write(2, b'noise\\nnews\\n')\n    {end}")
        assert (done.returncode, done.stderr) == (status, "news\nnoise\n")


def test_a_child_that_outlives_the_block_is_not_waited_for_and_keeps_its_lines():
    done = run("""
with stderr_without("noise"):
    subprocess.Popen(["sh", "-c", "read line; echo noise of later >&2"], stdin=subprocess.PIPE)
print("ended", file=sys.stderr)
""")
    assert done.stderr == "ended\nnoise of later\n"


def test_a_closed_stderr_and_none_at_all():
    assert run("os.close(2)\nwith stderr_without('noise'): print('went on')").stdout == "went on\n"
    done = run("sys.stderr = None\nwith stderr_without('noise'): os.write(2, b'noise\\nnews\\n')")
    assert (done.returncode, done.stderr) == (0, "news\n")


def test_a_stderr_that_pytest_captures(capfd):
    with startup.stderr_without("noise"):
        os.write(2, b"noise\nnews\n")
    assert capfd.readouterr().err == "news\n"


def test_a_machine_without_a_gpu_imports_keras_without_a_line():
    if startup._has_nvidia_gpu():
        pytest.skip("a line that says why its GPU is not used is meant to be seen")
    code = """
from ich.startup import import_keras
import_keras()
import keras
print(keras.ops.transpose(keras.ops.zeros((1, 2), dtype="bool")).shape)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_CPP")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(2, 1)\n", "")


def test_every_script_that_needs_keras_imports_it_so():
    """Whatever imports ich's modules on Keras does it after import_keras()."""
    keras = {"fold", "inference", "embeddings"}
    for path in sorted(Path(__file__).parents[1].glob("scripts/*.py")):
        text = path.read_text(encoding="utf-8")
        named = [match for name in keras for match in re.finditer(rf"import (\w+, )*{name}\b", text)]
        named += re.finditer(r"from ich\.second_stage import", text)
        for match in named:
            assert "import_keras()" in text[: match.start()], f"{path}: {match[0]}"
