"""The formats of a build, and who checks the options of each, before libraries that take seconds are loaded."""

from __future__ import annotations

from typing import Any

from export.plan import check_options
from fastvlm.build import FORMATS, ONNX
from fastvlm.errors import UsageError

ANE = "ane"  # what Core ML builds are made for unless told otherwise


def check_format(format: str, **asked: Any) -> None:
    """Checks options as the format's own check does; UsageError that lists every problem, or for an unknown format."""
    if format not in FORMATS:
        raise UsageError(f"--format is {format!r}, expected {' or '.join(FORMATS)}")
    if format != ONNX:
        check_options(**{**asked, "target": asked.get("target") or ANE})
        return
    from export.onnx.plan import check_onnx_options

    check_onnx_options(**asked)
