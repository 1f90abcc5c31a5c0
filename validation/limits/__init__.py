"""The one table of limits: what is compared, by which metric, how far it may go, what was measured, and why.

The command, the tests and the documents all read this table; a limit on a build that stands anywhere else is a defect
(the export tests' seeded model has rows of the same form in tests/export/export_limits.py). Each limit keeps
3 to 15 times headroom over the measured value (in dB: 10 to 20 dB of error), so that it neither alarms on another CPU
nor sleeps through a fault; a test holds the table to that, and to what a validation really measures, and another plants
for every row a fault that it must catch. The exceptions are named there: what fp16 can hold, what must be exact, what
the design fixes, and the difference of two errors.
"""

from __future__ import annotations

from validation.limits.by_scheme import COARSEST_FIRST, CODED, limits_of
from validation.limits.limit import RUNGS, Limit, Measurement, in_words, storable
from validation.limits.onnx import onnx_limits
from validation.limits.table import LIMITS, OFFICIAL, TABLE, worst

__all__ = [
    "COARSEST_FIRST", "CODED", "LIMITS", "OFFICIAL", "RUNGS", "TABLE", "Limit", "Measurement", "in_words", "limits_of",
    "onnx_limits", "storable", "worst",
]  # fmt: skip
