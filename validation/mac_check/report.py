"""device-report.json: what a Mac made of builds, in a form that its owner can hand on.

It holds the hardware's model, chip, system, versions, a date and figures; no host, user, serial number, path, nor the
name of a build or a checkpoint. `read_report` reads one back (docs/generate_device_truth.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from fastvlm import __version__
from fastvlm.build import Build
from fastvlm.errors import BuildError
from fastvlm.hashes import sha256_file
from fastvlm.manifest import NAME as MANIFEST
from fastvlm.manifest import dump
from fastvlm.publish import replace_file
from validation.limits.limit import storable
from validation.mac_check.answers import Difference
from validation.mac_check.beside_lint import Beside
from validation.machine import Machine
from validation.profiling.result import Profile

SCHEMA = "0.1"
FILE = "device-report.json"


@dataclass(frozen=True)
class Checked:
    """One build on this Mac. differences: by compute units, of those that ran; lint_device: whose limits judged."""

    build: Build
    profile: Profile
    differences: dict[str, Difference]
    rules: Sequence[Beside]
    edge: dict[str, int]
    lint_device: str | None

    @property
    def problems(self) -> list[str]:
        """What is not as it should be, in words: what failed, and ids that are not the self-test's."""
        found = [f"{failure.contender}: {failure.kind} at stage {failure.stage}" for failure in self.profile.failures]
        for units, each in self.differences.items():
            if each.differing_steps:
                steps = ", ".join(map(str, each.differing_steps))
                found.append(f"{units}: another token than the MIL runtime's at step {steps} of {each.steps}")
        return found

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        text = self.build.manifest["model"]["text"]
        return {
            "what": {
                "manifest_sha256": sha256_file(self.build.folder / MANIFEST),
                "target": self.build.target,
                "hidden_size": text.get("hidden_size"),
                "layers": text.get("layers"),
                "compression": self.build.manifest["compression"].get("scheme"),
            },
            "differences": {units: _difference(each) for units, each in self.differences.items()},
            "placement": {
                "judged_for": self.lint_device,
                "rules": [row.as_json() for row in self.rules],
                "edge": self.edge,
            },
            "profile": _nameless(self.profile.as_json()),
        }


def _difference(of: Difference) -> dict[str, Any]:
    metrics = {
        part: None if values is None else {name: storable(value) for name, value in values.items()}
        for part, values in (("tokens", of.tokens), ("logits", of.logits))
    }
    return {**metrics, "steps": of.steps, "differing_steps": list(of.differing_steps)}


def _nameless(profile: dict[str, Any]) -> dict[str, Any]:
    """A profile whose contenders are called by backend and compute units: a build's folder may name its owner."""
    names = {each["name"]: " ".join(filter(None, (each["backend"], each["compute_units"])))
             for each in profile["contenders"]}  # fmt: skip
    for row in profile["contenders"]:
        row["name"] = names[row["name"]]
    for row in (*profile["ratios"], *profile["failures"]):
        row["contender"] = names[row["contender"]]
    for row in profile["ratios"]:
        row["to"] = names[row["to"]]
    return {key: value for key, value in profile.items() if key not in ("schema", "fastvlm", "machine")}


def report_of(machine: Machine, checked: Sequence[Checked]) -> dict[str, Any]:
    """Returns the content of device-report.json."""
    return {
        "schema": SCHEMA,
        "date": date.today().isoformat(),
        "fastvlm": __version__,
        "coremltools": metadata.version("coremltools"),
        "machine": asdict(machine),
        "builds": [each.as_json() for each in checked],
    }


def write_report(path: Path, content: dict[str, Any]) -> None:
    """Writes device-report.json, whole or not at all."""
    replace_file(path, dump(content))


def read_report(path: Path) -> dict[str, Any]:
    """Returns the content of a device-report.json; BuildError where it is none, or of a newer major version."""
    try:
        content = json.loads(path.read_text("utf-8"))
        major = int(content["schema"].partition(".")[0])
        machine, rules = content["machine"], [row for each in content["builds"] for row in each["placement"]["rules"]]
        good = all(isinstance(machine[key], str) for key in ("chip", "system")) and isinstance(content["date"], str)
        good &= all(isinstance(row["rule"], str) and isinstance(row["agree"] + row["differ"], int) for row in rules)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BuildError(f"{path} is no device report ({error}); make one with `make mac-check`") from error
    if major > int(SCHEMA.partition(".")[0]) or not good:
        raise BuildError(f"{path} is a device report of schema {content['schema']}, expected {SCHEMA}; update fastvlm")
    return dict(content)
