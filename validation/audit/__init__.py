"""The first rung: every constant and weight of a build's packages against the checkpoint, nothing executed.

A flipped sign or a wrong eps shows here and nowhere else. What a program must be is stated a second time here, from
the reference and from the words in which `export` declares its folds and forms; the converter is not asked.
"""

from __future__ import annotations

from validation.audit.auditing import audit

__all__ = ["audit"]
