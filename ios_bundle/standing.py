"""Whether a build may be passed on: what `validate` said of it, and whether it is still the build of which it was said.

The verdict is believed for exactly the manifest and the self-test whose hashes it states, and the manifest for exactly
the files whose hashes it lists. What does not hold is a reason, and with a reason nothing calls the build validated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fastvlm.build import Build
from fastvlm.hashes import sha256_bytes
from fastvlm.json_file import read_json
from fastvlm.manifest import SELFTEST_FILES, dump
from fastvlm.verdict_file import FILE, MOST_BYTES, selftest_hashes

BACKENDS = ("mil", "coreml")
BEYOND = ("inf", "-inf", "nan")  # how `validate` writes what JSON has no number for


@dataclass(frozen=True)
class Standing:
    """What is known of a build's numbers: the verdict's own words, or the reasons why there is none that counts."""

    reasons: tuple[str, ...]
    verdict: dict[str, Any] = field(default_factory=dict)
    changed: bool = False  # some file is not what the manifest lists: validating it again would not help

    @property
    def cure(self) -> str:
        """What to do before it can be bundled."""
        return "copy or export the build again" if self.changed else "run `fastvlm validate` on it"

    @property
    def validated(self) -> bool:
        """True when the verdict is "passed" and speaks of this very build."""
        return not self.reasons

    @property
    def selftest(self) -> dict[str, str]:
        """The SHA-256 of each file of the self-test that the verdict states, none where it does not count."""
        return dict(self.verdict["selftest"]) if self.validated else {}

    def because(self, *reasons: str, changed: bool = False) -> Standing:
        """Returns the same with more reasons against it; `changed`: of files that the manifest lists otherwise."""
        return Standing(self.reasons + reasons, self.verdict, self.changed or changed)

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


def standing_of(build: Build) -> Standing:
    """Returns what `validation.json` of a build is worth; whatever is wrong with it is told.

    Raises BuildError for a link, a pipe or a device in place of a file of the self-test.
    """
    try:
        verdict = read_json(build.folder / FILE, MOST_BYTES)
    except FileNotFoundError:
        return Standing(("it was never validated",))
    except OSError as problem:
        return Standing((f"{FILE} cannot be read ({problem.strerror})",))
    except ValueError as problem:
        return Standing((f"{FILE} cannot be read ({str(problem)[:80]})",))
    if not _is_verdict(verdict):
        return Standing((f"{FILE} is no verdict of this version; validate again",))
    return Standing(tuple(_against(build, verdict)), verdict)


def manifest_digest(build: Build) -> str:
    """Returns the SHA-256 of the manifest as it was read, so that nobody can put another one there meanwhile."""
    return sha256_bytes(dump(build.manifest))


def _against(build: Build, verdict: dict[str, Any]) -> Iterator[str]:
    """Why a readable verdict does not count."""
    if verdict["verdict"] != "passed":
        yield f"its verdict is {verdict['verdict'][:20]!r}"
    if verdict["manifest_sha256"] != manifest_digest(build):
        yield "its manifest was changed after it was validated"
    if verdict["verdict"] == "passed":
        if not verdict["limits"] or not all(map(_holds, verdict["limits"])):
            yield f"{FILE} says passed, and its limits say otherwise"
        found = selftest_hashes(build.folder)
        if verdict.get("selftest") != found or found.keys() != set(SELFTEST_FILES):
            yield "its self-test is not the one that was validated"


def _holds(row: dict[str, Any]) -> bool:
    """Whether a limit's own value holds it."""
    value, limit = float(row["value"]), float(row["limit"])
    return value >= limit if row["bound"] == "min" else value <= limit


def _is_verdict(verdict: Any) -> bool:
    kinds = {"verdict": str, "manifest_sha256": str, "backend": str, "steps": int, "pictures": int, "limits": list}
    if not isinstance(verdict, dict) or any(type(verdict.get(key)) is not kind for key, kind in kinds.items()):
        return False
    counts = verdict["steps"] >= 1 and verdict["pictures"] >= 1
    told = verdict.get("selftest", {})
    texts = isinstance(told, dict) and all(isinstance(digest, str) for digest in told.values())
    return counts and texts and verdict["backend"] in BACKENDS and all(map(_is_row, verdict["limits"]))


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(key), str) for key in ("rung", "quantity", "metric"))
        and row.get("bound") in ("min", "max")
        and all(type(row.get(key)) in (int, float) or row.get(key) in BEYOND for key in ("limit", "value"))
    )
