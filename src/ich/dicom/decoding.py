"""Compressed pixel data, decoded by a process beside this one: at some damaged streams a decoder ends its process.

The process starts at the first compressed slice, and ends with its input: when this process ends, however it does. It
is no worker of multiprocessing, which a worker of Keras could not have.
"""

import atexit
import json
import math
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.pixels import pixel_array
from pydicom.pixels.utils import get_j2k_parameters
from pydicom.uid import UID, JPEG2000TransferSyntaxes

from ich.dicom.slice_error import DicomError
from ich.errors import IchError, one_line

_LONGEST = 60.0  # seconds of processor time for a slice; the largest takes a tenth
_IMAGE = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
    *("PhotometricInterpretation", "NumberOfFrames", "PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
"""The elements that pydicom decodes by."""

_SERVE = "import sys; sys.path[:] = sys.argv[1:]; from ich.dicom.decoding import serve; serve()"
_FROM_OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM}
_READY = "ready"


def decode(ds: Dataset, syntax: UID, signed: bool) -> tuple[np.ndarray, bool]:
    """Decode the pixel data of a slice by pydicom; compressed ones in a process beside this one.

    Args:
        ds: a dataset with the elements of an image, and its file meta information.
        syntax: its transfer syntax.
        signed: whether PixelRepresentation says so.

    Returns:
        The pixels, with all bits that are allocated to each; and whether their JPEG 2000 stream says that they are
        signed although PixelRepresentation does not.

    Raises:
        DicomError: they do not decode, or the decoder crashes at them or takes too long (bad_pixels), or its process
            was killed (unreadable).
        IchError: the process cannot be started.
    """
    try:
        answer = _ask(_image(ds, syntax), signed) if syntax.is_compressed else _decoded(ds, signed)
    except _Ended as end:
        if end.code in _FROM_OUTSIDE:
            raise DicomError("unreadable", f"the process that decodes it was killed ({one_line(end)})") from end
        raise DicomError("bad_pixels", f"{syntax.name} crashes the decoder ({one_line(end)})") from end
    if isinstance(answer, str):
        raise DicomError("bad_pixels", f"{syntax.name} does not decode ({answer})")
    return answer


def _image(ds: Dataset, syntax: UID) -> Dataset:
    """The elements of a dataset by which its pixel data are decoded."""
    image = Dataset()
    for keyword in _IMAGE:
        if keyword in ds:
            image[keyword] = ds.get_item(keyword)
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = syntax
    return image


class _Ended(Exception):
    """The decoding process ended.

    Args:
        code: the negative number of a signal, or its exit status.
        output: what it wrote as its last.
    """

    def __init__(self, code: int, output: str) -> None:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit status {code}"
        if code == -signal.SIGPROF:
            output = f"after {_LONGEST:.0f} seconds of processor time"
        super().__init__(one_line(f"{name}: {output}" if output else name))
        self.code = code


_NO_START = "the process that decodes compressed slices does not start"


class _Decoder:
    """A decoding process.

    Raises:
        IchError: it cannot be started.
    """

    def __init__(self) -> None:
        self._output: Any = tempfile.TemporaryFile()  # noqa: SIM115 - what libraries write, until the process ends
        self._before = 0  # bytes of it that are of earlier requests
        try:
            # In a session of its own, as Ctrl-C is for this process.
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._output,
                start_new_session=True,
            )
        except OSError as error:
            self._output.close()
            raise IchError(f"{_NO_START}: {one_line(error)}") from error
        try:
            self.ask(_READY)
        except _Ended as error:
            self.end()
            raise IchError(f"{_NO_START}: {one_line(error)}") from error

    def ask(self, request: object) -> tuple[np.ndarray, bool] | str:
        """Send a request and wait for the answer; after an error the process is not to be asked again.

        Raises:
            _Ended: it ended.
        """
        to, back = self._pipes()
        try:
            pickle.dump(request, to)
            to.flush()
            answer = _received(back)
        except (OSError, ValueError, LookupError, TypeError) as error:  # it ended, maybe within an answer
            code = self._process.wait(_LONGEST)
            output = os.pread(self._output.fileno(), 10_000, self._before).decode(errors="replace")
            raise _Ended(code, output) from error
        self._before = os.fstat(self._output.fileno()).st_size
        return answer

    def _pipes(self) -> tuple[Any, Any]:
        return self._process.stdin, self._process.stdout

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self.forget()

    def forget(self) -> None:
        """Close this process's ends of what leads to it."""
        for file in (*self._pipes(), self._output):
            file.raw.close()  # without what another thread may have been writing when this process was forked


_lock = Lock()
_decoder: _Decoder | None = None


def _ask(*request: object) -> tuple[np.ndarray, bool] | str:
    """Ask the decoding process; a new one where there is none, or where one ended that had decoded before."""
    global _decoder
    with _lock:
        while True:
            used, _decoder = _decoder, None
            decoder = used or _Decoder()
            try:
                answer = decoder.ask(request)
            except _Ended:
                decoder.end()
                if used is None:
                    raise
                continue  # what it decoded before may have damaged its memory
            except BaseException:  # such as Ctrl-C: the answer would be taken for that of the next slice
                decoder.end()
                raise
            _decoder = decoder
            return answer


def _end() -> None:
    global _decoder
    decoder, _decoder = _decoder, None
    if decoder is not None:
        decoder.end()


def _forget() -> None:
    """In a process that was forked of this one: leave its decoding process to it."""
    global _decoder, _lock
    decoder, _decoder, _lock = _decoder, None, Lock()
    if decoder is not None:
        decoder.forget()


atexit.register(_end)
os.register_at_fork(after_in_child=_forget)


def serve() -> None:
    """Decode what comes in, until the input ends; what the decoding process does."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is told, and leaves no image of the memory
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries may write to what is their output
    with suppress(EOFError, BrokenPipeError):
        while True:
            request = pickle.load(requests)
            # By default the signal ends the process, within a library's endless loop too.
            signal.setitimer(signal.ITIMER_PROF, _LONGEST)
            answer = _READY if request == _READY else _decoded(*request)
            signal.setitimer(signal.ITIMER_PROF, 0)
            _send(answers, answer)


def _send(file: BinaryIO, answer: tuple[np.ndarray, bool] | str) -> None:
    """Write an answer: a line of JSON, and the bytes of the array if it has one.

    Not as a pickle, which would run what damaged bytes may have made of the process.
    """
    if isinstance(answer, str):
        head: dict[str, Any] = {"sentence": answer}
        data = b""
    else:
        words, contrary = answer
        head = {"dtype": words.dtype.str, "shape": words.shape, "contrary": contrary}
        data = words.tobytes()
    file.write(json.dumps(head).encode() + b"\n" + data)
    file.flush()


def _received(file: BinaryIO) -> tuple[np.ndarray, bool] | str:
    """Read what `_send` wrote.

    Raises:
        ValueError, LookupError, TypeError: there is no whole answer.
    """
    head = json.loads(file.readline())
    if "sentence" in head:
        return str(head["sentence"])
    dtype = np.dtype(head["dtype"])
    words = np.frombuffer(bytearray(file.read(math.prod(head["shape"]) * dtype.itemsize)), dtype)
    return words.reshape(head["shape"]), bool(head["contrary"])


def _decoded(image: Dataset, signed: bool) -> tuple[np.ndarray, bool] | str:
    """What `decode` returns; a sentence where the pixel data do not decode."""
    try:
        # Unused bits stay as they are: to cut them off would turn padding of -3000 into 1096, which is bone.
        words = pixel_array(image, correct_unused_bits=False)
        is_jpeg_2000 = image.file_meta.TransferSyntaxUID in JPEG2000TransferSyntaxes
        contrary = is_jpeg_2000 and not signed and _is_signed(image)
        if contrary:  # what the stream says, before pydicom makes of it what PixelRepresentation says
            words = pixel_array(image, correct_unused_bits=False, apply_j2k_sign_correction=False)
    except Exception as error:  # noqa: BLE001 - each decoder library has errors of its own
        return one_line(error, named=True)
    return words, contrary


def _is_signed(image: Dataset) -> bool:
    return get_j2k_parameters(get_frame(image.PixelData, 0, number_of_frames=1)).get("is_signed", False)
