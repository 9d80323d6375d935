"""RSNA Intracranial Hemorrhage Detection: from DICOM to a submission."""

import sys

if sys.platform in ("win32", "cygwin"):
    _unsupported = ImportError("ich runs on Linux and macOS; on Windows, run it in WSL 2, which is a Linux")
    _usual = sys.excepthook

    def _say(kind, error, trace):
        """Of this error the sentence alone, as scripts say theirs; of all others what is usual."""
        if error is _unsupported:
            print(f"error: {error}", file=sys.stderr)
        else:
            _usual(kind, error, trace)

    sys.excepthook = _say
    raise _unsupported
