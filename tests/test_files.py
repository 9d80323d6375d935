import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ich.errors import IchError
from ich.files import replacing, sweep


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_writes_the_file_and_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "image.png"
    with replacing(path) as temporary:
        assert temporary.suffix == ".png"  # encoders choose the format by it
        assert temporary.parent == path.parent
        temporary.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["image.png"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), IchError("no")])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "image.png"
    path.write_bytes(b"old")

    def write():
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)) as caught:
        write()
    assert caught.value is error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["image.png"]


def test_a_full_disk_is_told_in_a_sentence(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"old")

    def write():
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(IchError, match=r"cannot write .*image\.png: No space left on device; make room"):
        write()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["image.png"]


def test_a_rename_that_is_refused_leaves_nothing_behind(tmp_path, monkeypatch):
    def refuse(self, target):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(IchError, match="Permission denied"), replacing(tmp_path / "image.png") as temporary:
        temporary.write_bytes(b"new")
    assert names(tmp_path) == []


@pytest.mark.parametrize("place", ["file/image.png", "file/deeper/image.png", "x" * 300 + ".png"])
def test_a_place_that_cannot_be_is_told_in_a_sentence(tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(IchError, match="cannot write"), replacing(tmp_path / place) as temporary:
        temporary.write_bytes(b"new")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["ID_0123456ab.png", "slices.parquet", "settings.json", "no_suffix", "a.b.c.csv"])
def test_what_a_killed_process_left_is_swept(tmp_path, name):
    script = """
import os, signal, sys
from pathlib import Path
from ich.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "other.png").write_bytes(b"whole")
    (tmp_path / ".hidden").write_bytes(b"the user's")
    killed = subprocess.run([sys.executable, "-c", script, tmp_path / name], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 3
    assert sorted(sweep(tmp_path)) == [".hidden", "other.png"] == names(tmp_path)


def test_sweeping_no_folder_is_no_error_but_a_file_is(tmp_path):
    assert sweep(tmp_path / "missing") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(IchError, match=r"cannot tidy .*file: Not a directory"):
        sweep(tmp_path / "file")
