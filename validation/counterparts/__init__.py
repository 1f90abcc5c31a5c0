"""What of a program is what of the reference: weighted ops and their modules, blocks and their results.

A graph is not the reference op for op: heads lie in another order, factors are folded into weights, tensors are stored
as x · 2^−e. Each counterpart states, in one function, how the reference's result would look as a value of the program.
Written from the declared layouts (`export.encoder`, `export.decoder_weights`), not from what a program happens to give.
"""

from __future__ import annotations

from validation.counterparts.counterpart import Block, Counterpart

__all__ = ["Block", "Counterpart"]
