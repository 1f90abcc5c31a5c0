"""Rung "blocks": what every block of the network gives in a whole run, package against reference; and the bisection.

`compare_blocks` measures; when a comparison fails, `bisect` names the first block, then the first op, whose error
leaves what fp16 alone costs, with both values, and whether float32 cures it. Only the MIL runtime shows the values
inside packages.
"""

from __future__ import annotations

from validation.blocks.bisection import Finding, bisect
from validation.blocks.comparing import NOT_COMPARED, BlockComparison, compare_blocks

__all__ = ["NOT_COMPARED", "BlockComparison", "Finding", "bisect", "compare_blocks"]
