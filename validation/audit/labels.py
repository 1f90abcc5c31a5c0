"""The labels of a package, which Xcode shows and which go where the package goes alone: licence, origin, contract.

Sentences for people may read otherwise from version to version; what binds or is read by programs is held. Packages of
a manifest before schema 0.3 may lack labels; a licence that is there is held all the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fastvlm.licences import licence_text
from fastvlm.manifest import is_older
from fastvlm_ref.checkpoint.source import weight_hashes
from validation.audit.findings import CONSTANTS, Findings
from validation.audit.interface import Contract, contracts
from validation.contents import describe_package
from validation.differences import different, short
from validation.pair import Pair

SINCE = "0.3"  # the manifest's schema


def hold_labels(pair: Pair, findings: Findings) -> None:
    """Counts labels that say otherwise than the manifest does; PackageError for a damaged package."""
    older = is_older(pair.build.manifest, SINCE)
    for contract in contracts(pair):
        told = describe_package(contract.package).metadata
        wanted = _wanted(pair, contract)
        if older:
            wanted = {name: text for name, text in wanted.items() if name == "licence" and name in told}
        findings.look(CONSTANTS, len(wanted))
        for words in _differences(told, wanted):
            findings.count(CONSTANTS, f"{contract.package.name}: its label {words}")


def _wanted(pair: Pair, contract: Contract) -> dict[str, Any]:
    manifest = pair.build.manifest
    return {
        "licence": licence_text(manifest["licence"]),
        "version": manifest["fastvlm_version"],
        "fastvlm.version": manifest["fastvlm_version"],
        "fastvlm.source": weight_hashes(pair.build.source_files),
        "fastvlm.contract": json.loads(json.dumps({spec.name: spec.as_json() for spec in contract.specs})),
    }


def _differences(told: dict[str, str], wanted: dict[str, Any]) -> Iterator[str]:
    for name, content in wanted.items():
        if isinstance(content, str):
            if told.get(name) != content:
                yield f"{name} is {short(told.get(name, 'empty'))}, expected {short(content)}"
        else:
            yield from different(name, _parsed(told.get(name)), content)


def _parsed(text: str | None) -> Any:
    try:
        return json.loads(text or "")
    except (ValueError, RecursionError):
        return text
