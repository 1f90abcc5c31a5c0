"""The largest values that the ops of a build's packages return, gathered while they run; NaN counts as infinity.

Only the MIL runtime shows what happens inside a package. Ops that move values are passed by: what they return was seen
where it was computed, and a KV cache is large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from validation.mil.registry import only_moves

PARTS = ("encoder", "language")
Where = tuple[Path, str]  # a package, and one of its functions


@dataclass
class Peaks:
    """Largest magnitudes so far: of each part, and of each op by its result's name.

    beyond: by part, the first op whose result fp16 does not hold.
    """

    parts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    beyond: dict[str, str] = field(default_factory=dict)
    ops: dict[Where, dict[str, float]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def look(self, part: str, where: Where, name: str, op: str, value: Any) -> None:
        """Keeps what one op of a part gave, if it is the largest so far; calls may come from several threads."""
        if only_moves(op) or not (isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel()):
            return
        least, most = (float(end) for end in torch.aminmax(value))
        largest = math.inf if math.isnan(most) else max(-least, most)
        with self._lock:
            own = self.ops.setdefault(where, {})
            own[name] = max(own.get(name, 0.0), largest)
            self.parts[part] = max(self.parts[part], largest)
            if largest == math.inf:
                self.beyond.setdefault(part, f"{op} {name}")
