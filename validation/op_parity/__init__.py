"""The second rung of the comparison: pieces of a program alone, in float32, against the reference's modules.

weighted       every convolution and every linear layer
between        what stands between two of them: norms, attention, activations, sums, the ends
encoder, decoder   which pieces there are, in order, from the declared layouts
running        one piece: cut out, run, its worst row
comparing      all of them, and what none of them holds
"""

from __future__ import annotations

from validation.op_parity.comparing import compare_ops, op_findings
from validation.op_parity.running import OpFinding

__all__ = ["OpFinding", "compare_ops", "op_findings"]
