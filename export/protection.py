"""What an export does so that no value of a checkpoint leaves fp16: exact powers of two, and forms safe in themselves.

A tensor with exponent e is stored as x · 2^−e: the weights that write it are scaled by 2^−e, those that read it by
2^e, both exact. Exponents come from the ranges that a scan measured (`export.ranges`); without one they are 0. The
safe forms (norms that divide by the largest value first, pooling that cannot overflow, keys without their constant
part) need no measuring and are always on; a test switches them off to see checkpoints fail.
It knows neither graphs nor files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastvlm.errors import BuildError
from fastvlm.quoting import short

LARGEST_RECORDED = 1 << 13  # the largest side of a picture; exponents are far smaller
# No scanned value may be stored beyond this: a factor of 2 below 32,768, which no value may exceed anywhere, and of 4
# below fp16's end.
LARGEST_STORED = 16_384.0


@dataclass(frozen=True)
class Protection:
    """Exponents e ≥ 0 by tensor, and whether the safe forms are used.

    encoder: by site of the encoder's graph (`export.encoder`), those that are not 0. residual: of the decoder's
    residual stream. scores: of the attention scores. mlp, values: of a layer's MLP and of its values, by layer;
    where a list is shorter, 0. scanned: the sides N of the pictures that a scan saw; empty where there was none.
    """

    safe_forms: bool = True
    encoder: Mapping[str, int] = field(default_factory=dict)
    residual: int = 0
    scores: int = 0
    mlp: Sequence[int] = ()
    values: Sequence[int] = ()
    scanned: Sequence[int] = ()

    def mlp_of(self, layer: int) -> int:
        """The exponent of silu(gate) · up in a decoder layer."""
        return self.mlp[layer] if layer < len(self.mlp) else 0

    def values_of(self, layer: int) -> int:
        """The exponent of the values of a decoder layer."""
        return self.values[layer] if layer < len(self.values) else 0

    def as_json(self) -> dict[str, Any]:
        """Returns what the manifest records: the sides that were scanned, and the exponents that are not 0."""
        found: dict[str, Any] = {"scanned": list(self.scanned)}
        found |= {"encoder": dict(sorted(self.encoder.items())), "residual": self.residual}
        found |= {"scores": self.scores, "mlp": list(self.mlp), "values": list(self.values)}
        kept = {name: value for name, value in found.items() if (any(value) if isinstance(value, list) else value)}
        return kept if self.safe_forms else {"safe_forms": False, **kept}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Protection:
        """Returns what `as_json` wrote; `record` is a manifest's `protection`, empty in builds without one.

        Raises BuildError for what no export writes.
        """
        if not isinstance(record, Mapping):
            raise BuildError(f"protection in the manifest is {short(record)}, expected an object")
        known = {"safe_forms": bool, "encoder": dict, "residual": int, "scores": int}
        known |= dict.fromkeys(("mlp", "values", "scanned"), list)
        wrong = [name for name, value in record.items() if not isinstance(value, known.get(name, ()))]
        counts = [record.get("residual", 0), record.get("scores", 0)] if not wrong else []
        for name in ("mlp", "values", "scanned", "encoder"):
            held = record.get(name, {}) if not wrong else {}
            counts += held.values() if isinstance(held, dict) else held
        if wrong or any(type(count) is not int or not 0 <= count <= LARGEST_RECORDED for count in counts):
            raise BuildError(f"protection in the manifest is {str(dict(record))[:80]}, which no export writes")
        return cls(**record)

    @property
    def encoder_key(self) -> dict[str, Any]:
        """All of it that the encoder's package depends on, as JSON."""
        return {"safe_forms": self.safe_forms, "encoder": dict(self.encoder)}

    @property
    def language_key(self) -> dict[str, Any]:
        """All of it that the language model's packages depend on, as JSON."""
        own = {"residual": self.residual, "scores": self.scores, "mlp": list(self.mlp), "values": list(self.values)}
        return {"safe_forms": self.safe_forms, **own}


def power(peak: float, limit: float = LARGEST_STORED) -> int:
    """Returns the smallest e ≥ 0 with peak · 2^−e ≤ limit, a power of two."""
    mantissa, exponent = math.frexp(peak / limit)  # mantissa in [0.5, 1)
    return max(0, exponent - 1 if mantissa == 0.5 else exponent)


PROTECTED = Protection()
UNPROTECTED = Protection(safe_forms=False)
