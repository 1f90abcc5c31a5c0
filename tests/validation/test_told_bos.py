"""tokenizer.bos_id of a manifest: held from schema 0.3 on, and not missed where no export wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from audit_builds import tiny
from package_edits import manifest

from fastvlm.build import read_build
from validation.host_parity import differing_fields


@pytest.mark.parametrize("bos", [None, 7])
@pytest.mark.parametrize("schema", ["0.1", "0.2", "0.3", "0.10"])
def test_a_missing_one_is_excused_before_it_was_written(tiny_build: Path, schema: str, bos: int | None) -> None:
    with manifest(tiny_build) as content:
        content["schema"] = schema
        del content["tokenizer"]["bos_id"]
    missing = [] if schema in ("0.1", "0.2") else [f"tokenizer.bos_id is nothing, expected {bos}"]
    assert differing_fields(tiny().config, bos, read_build(tiny_build)) == missing


@pytest.mark.parametrize("told", [5, False, "7", [7]])
def test_another_is_told(tiny_build: Path, told: Any) -> None:
    with manifest(tiny_build) as content:
        content["tokenizer"]["bos_id"] = told
    found = differing_fields(tiny().config, 7, read_build(tiny_build))
    assert found == [f"tokenizer.bos_id is {told}, expected 7"]


def test_an_encoder_for_an_app_has_no_tokenizer(exported_app: Path) -> None:
    assert differing_fields(tiny().config, 7, read_build(exported_app)) == []
