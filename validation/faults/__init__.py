"""Faults of known kinds, planted into a build, its programs or its reference: does the comparison find them?

`catalogue` holds the kinds, `programs` and `bench` what they are planted with, `suite` plants one after the other and
runs the rungs of the comparison on each, `checkpoints` makes what they are planted into. `python -m validation.faults`.
"""

from __future__ import annotations

from validation.faults.bench import Bench
from validation.faults.catalogue import CATALOGUE, SHORT
from validation.faults.fault import Fault

__all__ = ["CATALOGUE", "SHORT", "Bench", "Fault"]
