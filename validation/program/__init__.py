"""A package's programs as facts: every function's ops in order, with their types, readers, makers and constants.

`validation.lint` judges them by the rules of devices, `validation.counterparts` finds in them what the reference
computes too, `validation.audit` holds their constants against the checkpoint. Nothing here runs a program.
"""

from __future__ import annotations

from validation.program.contents import Function, Op, Program, Value
from validation.program.reading import read_program

__all__ = ["Function", "Op", "Program", "Value", "read_program"]
