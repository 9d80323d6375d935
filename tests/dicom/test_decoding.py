"""Compressed pixel data whose decoder crashes, and the process that decodes: what ends it, and what it leaves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import crashing, jpeg_lossless, make_dicom
from pydicom.uid import ExplicitVRBigEndian

from ich.dicom import decoding, reader
from ich.dicom.slice_error import DicomError
from ich.errors import IchError

pytest.importorskip("gdcm")
STORED = np.random.default_rng(0).integers(0, 2000, (32, 32)).astype(np.uint16)


@pytest.fixture(scope="module")
def packed():
    """The bytes of a slice."""
    return jpeg_lossless(stored=STORED)


@pytest.fixture(autouse=True)
def _fresh():
    """Begin and end each test without the process."""
    decoding._end()
    yield
    decoding._end()


def is_read(data):
    hu, _ = reader.read(data)
    np.testing.assert_array_equal(hu, STORED.astype(int) - 1024)
    return decoding._decoder._process.pid


def is_gone(pid):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if os.waitpid(pid, os.WNOHANG) == (pid, 0):
                return True
        except ChildProcessError:  # not of this process
            pass
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def served_by(monkeypatch, change):
    """Have the process change something in itself first."""
    serve = decoding._SERVE.replace("import serve;", f"import serve; from ich.dicom import decoding; {change};")
    monkeypatch.setattr(decoding, "_SERVE", serve)


def test_a_crash_of_the_decoder_is_the_slices_own(packed):
    before = is_read(packed)
    maps = Path(f"/proc/{before}/maps")  # Linux has it
    assert not maps.exists() or "tensorflow" not in maps.read_text()
    for _ in range(2):  # after another slice, and as the first one of its process
        with pytest.raises(DicomError, match=r"crashes the decoder .*SIGABRT: .*gdcm::Exception") as raised:
            reader.read(crashing(packed))
        assert raised.value.kind == "bad_pixels"
        assert raised.value.identity["SOPInstanceUID"] in packed.decode("latin-1")
    assert is_read(packed) == is_read(packed) != before
    assert is_gone(before)


def test_a_crash_that_an_earlier_slice_prepared_is_not_blamed_on_the_next(packed):
    before = is_read(packed)
    os.kill(before, signal.SIGSEGV)
    assert is_read(packed) != before


def test_an_endless_decoder_is_ended(monkeypatch, packed):
    endless = "decoding._LONGEST = 0.2; decoding._decoded = lambda *_: list(iter(int, 1))"
    served_by(monkeypatch, endless)
    with pytest.raises(DicomError, match="SIGPROF: after 60 seconds of processor time") as raised:
        reader.read(packed)
    assert raised.value.kind == "bad_pixels"


def test_a_process_that_is_killed_makes_no_slice_a_bad_one(monkeypatch, packed):
    served_by(monkeypatch, "import os; decoding._decoded = lambda *_: os.kill(os.getpid(), 9)")
    with pytest.raises(DicomError, match=r"was killed \(SIGKILL\)") as raised:
        reader.read(packed)
    assert raised.value.kind == "unreadable"


def test_a_process_that_does_not_start_is_no_fault_of_a_slice(monkeypatch, packed):
    monkeypatch.setattr(decoding, "_SERVE", "import sys; sys.exit('no such library')")
    with pytest.raises(IchError, match="does not start: exit status 1: no such library") as raised:
        reader.read(packed)
    assert not isinstance(raised.value, DicomError)


def test_what_a_library_writes_is_no_answer(monkeypatch, packed):
    served_by(
        monkeypatch, "import os; own = decoding._decoded; decoding._decoded = lambda *a: os.write(1, b'x') and own(*a)"
    )
    is_read(packed)


def test_what_interrupts_the_wait_loses_no_answer_to_the_next_slice(monkeypatch, packed):
    other = jpeg_lossless(stored=STORED[::-1].copy())
    reader.read(other)
    before = decoding._decoder._process.pid

    def interrupt(file):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(decoding, "_received", interrupt)
    with pytest.raises(KeyboardInterrupt):
        reader.read(other)
    assert is_read(packed) != before
    assert is_gone(before)


def test_uncompressed_slices_start_nothing():
    reader.read(make_dicom())
    reader.read(make_dicom(STORED.astype(np.uint8), syntax=ExplicitVRBigEndian, BitsStored=8))
    assert decoding._decoder is None


PARENT = """
import os, sys, time
from ich.dicom import decoding, reader
data = open(sys.argv[1], "rb").read()
reader.read(data)
pid = decoding._decoder._process.pid
child = os.fork()
if child == 0:
    assert decoding._decoder is None
    reader.read(data)
    print(decoding._decoder._process.pid, end=" ", flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
reader.read(data)
assert decoding._decoder._process.pid == pid
print(pid, flush=True)
if sys.argv[2] == "wait":
    time.sleep(60)
"""


@pytest.mark.parametrize("way", ["return", signal.SIGKILL, signal.SIGINT])
def test_no_process_stays(packed, tmp_path, way):
    (tmp_path / "slice").write_bytes(packed)
    arguments = [sys.executable, "-c", PARENT, str(tmp_path / "slice"), "return" if way == "return" else "wait"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(set(pids)) == 2
        if way != "return":
            parent.send_signal(way)
    assert all(is_gone(pid) for pid in pids)
