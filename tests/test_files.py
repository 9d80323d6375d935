import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from ich import files
from ich.errors import IchError
from ich.files import check_own, copy_file, discard, names_in, replacing, sha256_of, sweep, sync_filesystem, write_json


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


def test_a_full_disk_is_reported_in_a_sentence(tmp_path):
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
def test_a_place_that_cannot_be_is_reported_in_a_sentence(tmp_path, place):
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
    assert names_in(tmp_path) == [".hidden", "other.png"]
    sweep(tmp_path)
    assert names(tmp_path) == [".hidden", "other.png"]


def test_a_copy_has_the_content_and_a_missing_source_leaves_the_target(tmp_path):
    (tmp_path / "a").write_bytes(b"new")
    copy_file(tmp_path / "a", tmp_path / "folder/b")
    assert (tmp_path / "folder/b").read_bytes() == b"new"
    with pytest.raises(IchError, match=r"cannot write .*b: No such file"):
        copy_file(tmp_path / "missing", tmp_path / "folder/b")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["b"]
    assert (tmp_path / "folder/b").read_bytes() == b"new"


def test_sweeping_no_folder_is_no_error_but_a_file_is(tmp_path):
    sweep(tmp_path / "missing")
    assert names_in(tmp_path / "missing") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(IchError, match=r"cannot tidy .*file: Not a directory"):
        sweep(tmp_path / "file")


def test_others_files_are_never_swept(tmp_path):
    """Hidden files with a number at the end, which zsh, vim and editors write."""
    others = [".zcompdump-host-5.9", ".viminfo.1", ".ID_0123456ab.4242.png", ".ich-1234.tmp", ".ich-lock", "a.tmp"]
    for name in others:
        (tmp_path / name).write_text("somebody's")
    sweep(tmp_path)
    assert names(tmp_path) == sorted(others)
    assert names_in(tmp_path) == sorted(set(others) - {".ich-lock"})


def test_discard_removes_what_has_the_name_and_a_folder_that_is_empty_then(tmp_path):
    for folder in ("ours", "mixed"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "000000001.npy").write_text("ours")
        (tmp_path / folder / f".ich-{'0' * 32}.tmp.npy").write_text("half of ours")
    (tmp_path / "mixed/notes.npy").write_text("somebody's")
    for folder in ("ours", "mixed", "missing"):
        discard(tmp_path / folder, r"[0-9]{9}\.npy")
    assert names(tmp_path) == ["mixed"]
    assert names(tmp_path / "mixed") == ["notes.npy"]


def test_what_cannot_be_removed_is_reported(tmp_path, monkeypatch):
    def refuse(self, missing_ok=False):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "1.npy").write_text("")
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(IchError, match=r"cannot tidy .*: Permission denied; make it a folder with rights to write"):
        discard(tmp_path, r"1\.npy")


def synced(monkeypatch):
    """What is synced, by path, and renamed, in order."""
    done = []
    real, rename = os.fsync, Path.replace

    def fsync(opened):
        done.append(Path(f"/proc/self/fd/{opened}").readlink().suffix or "folder")
        real(opened)

    def replace(self, target):
        done.append("renamed")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    return done


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="what is synced is looked up as Linux tells of it")
def test_a_file_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    done = synced(monkeypatch)
    with replacing(tmp_path / "table.parquet") as temporary:
        temporary.write_bytes(b"new")
    assert done == [".parquet", "renamed", "folder"]
    done.clear()
    with replacing(tmp_path / "image.png", durable=False) as temporary:
        temporary.write_bytes(b"new")
    assert done == ["renamed"]


@pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL])
def test_a_sync_that_fails_is_reported_but_where_there_is_none(tmp_path, monkeypatch, code):
    def fsync(opened):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    expectation = pytest.raises(IchError, match="Input/output error") if code == errno.EIO else nullcontext()
    with expectation, replacing(tmp_path / "a.json") as temporary:
        temporary.write_bytes(b"new")
    assert names(tmp_path) == ([] if code == errno.EIO else ["a.json"])


def test_a_file_system_is_synced_and_a_failure_reported(tmp_path, monkeypatch):
    sync_filesystem(tmp_path)
    monkeypatch.setattr(files, "_syncfs", lambda opened: -1)
    monkeypatch.setattr(files.ctypes, "get_errno", lambda: errno.ENOSPC)
    with pytest.raises(IchError, match=r"cannot write all of .* to its disk: No space left on device; make room"):
        sync_filesystem(tmp_path)
    done = []
    monkeypatch.setattr(files, "_syncfs", None)
    monkeypatch.setattr(os, "sync", lambda: done.append("all"))
    sync_filesystem(tmp_path)
    assert done == ["all"]


def test_files_are_removed_and_what_cannot_be_is_a_sentence(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "folder").mkdir()
    files.remove(tmp_path / "a", tmp_path / "none")
    assert not (tmp_path / "a").exists()
    with pytest.raises(
        IchError, match=r"cannot remove .*folder: .*; remove it, or make rights for that, then run again"
    ):
        files.remove(tmp_path / "folder")


def test_json_comes_back_and_a_hash_is_the_files(tmp_path):
    path = tmp_path / "a" / "score.json"
    content = {"loss": 0.1, "runs": ["é", None, True]}
    write_json(path, content)
    assert json.loads(path.read_text(encoding="utf-8")) == content
    assert path.read_bytes().endswith(b"}\n")
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_cannot_be_hashed_is_named(tmp_path):
    with pytest.raises(IchError, match=r"cannot read .*score\.json: No such file or directory; restore it"):
        sha256_of(tmp_path / "score.json")


def test_a_file_without_the_marker_is_not_replaced(tmp_path):
    check_own(tmp_path / "new.csv", "run,")
    (tmp_path / "own.csv").write_text("run,loss\n")
    check_own(tmp_path / "own.csv", "run,")
    (tmp_path / "folds.csv").write_text("SOPInstanceUID,fold\n")
    with pytest.raises(IchError, match=r"folds\.csv exists and was not written by this command, .*; name another file"):
        check_own(tmp_path / "folds.csv", "run,")
    with pytest.raises(IchError, match=r"cannot replace .*: Is a directory; name another file"):
        check_own(tmp_path, "run,")
