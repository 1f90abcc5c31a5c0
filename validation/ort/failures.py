"""What onnxruntime raises, as a tuple to catch, and its reasons in one line.

Its exceptions have no common base but Exception; which there are differs from version to version.
"""

from __future__ import annotations

from onnxruntime.capi import onnxruntime_pybind11_state as _state

_OWN = tuple(each for each in vars(_state).values() if isinstance(each, type) and issubclass(each, Exception))
FAILURES: tuple[type[Exception], ...] = (*_OWN, RuntimeError, ValueError, MemoryError)


def reason(error: Exception) -> str:
    """Returns what an exception of onnxruntime says, on one line of bounded length."""
    return " ".join(str(error).split())[:400] or type(error).__name__
