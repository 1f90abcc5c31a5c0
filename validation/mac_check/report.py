"""device-report.json: what a Mac made of builds, in a form that its owner can hand on.

It holds the hardware's model, chip, system, versions, a date and figures; no host, user, serial number, path, nor the
name of a build or a checkpoint. `read_report` reads one back (docs/generate_device_truth.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from fastvlm import __version__
from fastvlm.build import Build
from fastvlm.errors import BuildError, OutputError
from fastvlm.hashes import sha256_file
from fastvlm.json_file import counted, read_followed
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
MOST_BYTES = 16 << 20  # of a device report that is read; one has 0.1 MB


@dataclass(frozen=True)
class Checked:
    """One build on this Mac.

    differences: by compute units, of those that ran; lint_device: whose limits judged; engine_ops: how many ops the
    plans put on the Neural Engine that were held beside the rules.
    """

    build: Build
    profile: Profile
    differences: dict[str, Difference]
    rules: Sequence[Beside]
    edge: dict[str, int]
    lint_device: str | None
    engine_ops: int

    @property
    def problems(self) -> list[str]:
        """What is not as it should be, in words for this Mac's owner: what failed, and ids that differ."""
        found = [failure.told for failure in self.profile.failures]
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
                "engine_ops": self.engine_ops,
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


def check_place(path: Path) -> None:
    """Raises OutputError, before any work, for a place that cannot be written or holds something else than a report."""
    folder = path.resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        found = "may not be written by this user" if folder.is_dir() else "is no folder"
        raise OutputError(f"-o {path}: {folder} {found}; choose another place")
    if not path.exists():
        return
    try:
        read_report(path)
    except BuildError as error:
        raise OutputError(
            f"-o {path} is there and no device report; choose another name, or remove it yourself"
        ) from error


def write_report(path: Path, content: dict[str, Any]) -> None:
    """Writes device-report.json, whole or not at all."""
    replace_file(path, dump(content))


def read_report(path: Path) -> dict[str, Any]:
    """Returns the content of a device-report.json; BuildError where it is none, or of a newer major version."""
    try:
        content = json.loads(counted(read_followed(path, MOST_BYTES)))
        major = int(content["schema"].partition(".")[0])
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise BuildError(f"{path} is no device report ({error}); make one with `make mac-check`") from error
    if major > int(SCHEMA.partition(".")[0]):
        raise BuildError(f"{path} is a device report of schema {content['schema']}, expected {SCHEMA}; update fastvlm")
    try:
        wrong = [name for name, holds in _fields(content) if not holds]
    except (KeyError, TypeError, AttributeError) as error:
        raise BuildError(f"{path} lacks a field of a device report ({error}); run `make mac-check` again") from error
    if wrong:
        raise BuildError(f"{path} is a damaged device report ({', '.join(wrong)}); run `make mac-check` again")
    return dict(content)


def _fields(content: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """What docs/device-truth.md is made of, each with whether it is of its type; KeyError and the like where not."""
    for key in ("chip", "system"):
        yield f"machine.{key}", isinstance(content["machine"][key], str)
    yield "date", isinstance(content["date"], str)
    for build in content["builds"]:
        yield "what", build["what"].keys() >= {"layers", "hidden_size", "target", "compression"}
        for row in build["placement"]["rules"]:
            yield "placement.rules", isinstance(row["rule"], str) and isinstance(row["agree"] + row["differ"], int)
        yield "placement.engine_ops", isinstance(build["placement"]["engine_ops"], int)
        for found in build["differences"].values():
            yield "differences.steps", isinstance(found["steps"] - len(found["differing_steps"]), int)
            told = [
                values[name] for values, name in ((found["tokens"], "psnr_db"), (found["logits"], "snr_db")) if values
            ]
            yield "differences", all(isinstance(value, (int, float, str)) for value in told)
        for contender in build["profile"]["contenders"]:
            yield "profile", contender["compute_units"] is None or isinstance(contender["compute_units"], str)
            medians = [row["runs"]["median"] for row in contender["stages"] if row["stage"] and row["runs"]]
            yield "profile.stages", all(isinstance(median, (int, float)) for median in medians)
