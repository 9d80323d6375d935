"""Arrays that a worker process hands to its parent without a copy, in memory that both have.

Python would pickle a worker's batch, send it through a pipe and unpickle it, which takes as long as to make it. An
array of `empty` is pickled as the place where it lies. That memory has no name and no file (memfd_create(2), on Linux):
the 64 MB that containers give to /dev/shm do not bound it, and it is freed when the processes end, however they end.
"""

import math
import mmap
import os
import weakref
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import numpy as np

from ich.errors import IchError, one_line

_LEAST = 2**17  # bytes of an array; a smaller one goes through the pipe as fast
_MOST = 32  # memories of a worker, each with two open files here and one in the parent
_HEADER = 64  # bytes before an array, a multiple of what TensorFlow aligns to; the first is 1 while the parent has it


class _Memory:
    """Memory of an array; it goes to the parent, comes back, and holds another array."""

    def __init__(self, size: int):
        self.file = os.memfd_create("ich")  # open as long as this process lives: the parent opens it by this number
        os.ftruncate(self.file, size)
        self.map = mmap.mmap(self.file, size)
        self.array: Any = lambda: None  # gives the array that lies here; None if nothing in this process holds it

    def is_free(self) -> bool:
        return self.map[0] == 0 and self.array() is None


class _Shared(np.ndarray):
    """An array in a `_Memory`; a part of it, or a sum, is pickled like any other array."""

    memory: _Memory | None = None

    def __reduce_ex__(self, protocol):
        memory, self.memory = self.memory, None  # it goes to one process, once
        if memory is None:
            return self.view(np.ndarray).__reduce_ex__(protocol)
        memory.map[0] = 1
        return _received, (os.getpid(), memory.file, self.shape, self.dtype)


_memories: list[_Memory] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_memories.clear)  # they are the worker's, not its children's


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an empty array that goes from this worker process to its parent without a copy.

    The parent can write to it. When it has dropped the array and all parts of it, the worker uses the memory again.

    It is an ordinary array outside of a worker or of Linux, below 128 kB, where a process must not look into another,
    or while the parent holds 32 of them.
    """
    size, parent = _HEADER + math.prod(shape) * dtype.itemsize, parent_process()
    if size < _LEAST or parent is None or not hasattr(os, "memfd_create"):
        return np.empty(shape, dtype)
    memory = next((memory for memory in _memories if len(memory.map) >= size and memory.is_free()), None)
    try:
        # The parent can open our files in /proc if we can open its (proc(5), /proc/pid/fd).
        Path(f"/proc/{parent.pid}/exe").readlink()
        if memory is None and len(_memories) < _MOST:
            memory = _Memory(size)
            _memories.append(memory)
    except OSError:  # no rights, no more files, or no memory: the pipe needs none of them
        memory = None
    if memory is None:
        return np.empty(shape, dtype)
    array = _Shared(shape, dtype, memory.map, _HEADER)
    array.memory, memory.array = memory, weakref.ref(array)
    return array


def _received(pid: int, file: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | IchError:
    """Return the array, for unpickling, or an error in its place, on which whoever takes batches fails.

    Raised here, it would end the thread that Keras waits for, and Keras would wait for ever.
    """
    try:
        with Path(f"/proc/{pid}/fd/{file}").open("r+b", buffering=0) as opened:
            memory = mmap.mmap(opened.fileno(), 0)
    except OSError as error:
        return IchError(f"a batch cannot be had from the process {pid} that made it: {one_line(error)}")
    array = np.ndarray(shape, dtype, memory, _HEADER)
    weakref.finalize(array, _give_back, memory, os.getpid())
    return array


def _give_back(memory: mmap.mmap, receiver: int) -> None:
    if os.getpid() == receiver:  # a process forked from it drops what it still reads
        memory[0] = 0
