"""Whether a build may be passed on: what `validate` said of it, and whether it is still the build of which it was said.

The verdict is believed for exactly the manifest and the self-test whose hashes it states, and the manifest for exactly
the files whose hashes it lists. What does not hold is a reason, and with a reason nothing calls the build validated.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastvlm.hashes import sha256_file
from fastvlm.manifest import NAME, SELFTEST, SELFTEST_FILES
from fastvlm.paths import contained

FILE = "validation.json"
MAX_BYTES = 32 << 20


@dataclass(frozen=True)
class Standing:
    """What is known of a build's numbers: the verdict's own words, or the reasons why there is none that counts."""

    reasons: tuple[str, ...]
    verdict: dict[str, Any] = field(default_factory=dict)

    @property
    def validated(self) -> bool:
        """True when the verdict is "passed" and speaks of this very build."""
        return not self.reasons

    @property
    def selftest(self) -> dict[str, str]:
        """The SHA-256 of each file of the self-test that the verdict states, none where it does not count."""
        return dict(self.verdict["selftest"]) if self.validated else {}

    def because(self, *reasons: str) -> Standing:
        """Returns the same with more reasons against it."""
        return Standing(self.reasons + reasons, self.verdict)

    def as_json(self) -> dict[str, Any]:
        """What metadata.json says of it."""
        if not self.validated:
            return {"verdict": "unvalidated", "reasons": list(self.reasons)}
        return {
            "verdict": "passed",
            **{key: self.verdict[key] for key in ("backend", "steps", "pictures")},
            "limits": [
                {key: row[key] for key in ("rung", "quantity", "metric", "bound", "limit", "value")}
                for row in self.verdict["limits"]
            ],
        }


def standing_of(build: Path) -> Standing:
    """Returns what `validation.json` of a build is worth; nothing of it is fatal, everything is told."""
    path = contained(build, FILE)
    try:
        if path.stat().st_size > MAX_BYTES:
            return Standing((f"{FILE} is larger than any verdict",))
        verdict = json.loads(path.read_bytes())
    except FileNotFoundError:
        return Standing(("it was never validated",))
    except (OSError, ValueError, RecursionError) as problem:
        return Standing((f"{FILE} cannot be read ({str(problem)[:80]})",))
    if not _is_verdict(verdict):
        return Standing((f"{FILE} is no verdict of this version; validate again",))
    return Standing(tuple(_against(build, verdict)), verdict)


def _against(build: Path, verdict: dict[str, Any]) -> list[str]:
    """Why a readable verdict does not count."""
    reasons = []
    if verdict["verdict"] != "passed":
        reasons.append(f"its verdict is {verdict['verdict'][:20]!r}")
    if verdict["manifest_sha256"] != sha256_file(contained(build, NAME)):
        reasons.append("its manifest was changed after it was validated")
    found = {
        name: sha256_file(path) for name in SELFTEST_FILES if (path := contained(build, f"{SELFTEST}/{name}")).is_file()
    }
    if verdict["verdict"] == "passed" and verdict.get("selftest") != found:
        reasons.append("its self-test is not the one that was validated")
    return reasons


def _is_verdict(verdict: Any) -> bool:
    kinds = {"verdict": str, "manifest_sha256": str, "backend": str, "steps": int, "pictures": int, "limits": list}
    if not isinstance(verdict, dict) or any(type(verdict.get(key)) is not kind for key, kind in kinds.items()):
        return False
    keys = ("rung", "quantity", "metric", "bound", "limit", "value")
    return all(isinstance(row, dict) and all(key in row for key in keys) for row in verdict["limits"])
