"""What a chain hands on, and that packages which give something else than their manifest tells are named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastvlm.build import Stage, read_build
from fastvlm.errors import BuildError
from validation.chain import Chain
from validation.engine import PackageEngine

STAGES = (Stage(Path("first"), True, True, ()), Stage(Path("head"), False, False, ("logits0", "logits1")))


def answer(outputs: dict[str, Any]) -> np.ndarray:
    """One decode step of a chain whose head gives `outputs`."""
    chain = Chain(STAGES, "mil", "fp16", "ane")
    chain._functions = [{"decode": index} for index in range(2)]  # type: ignore[dict-item]
    given = [{"hiddenStates": "handed on"}, outputs]
    seen = []

    def predict(index: Any, inputs: dict[str, Any], state: Any, where: Any) -> dict[str, Any]:
        seen.append(inputs)
        return given[index]

    logits = chain.decode({"inputsEmbeds": "rows", "position": 0}, ["state", None], predict)
    assert seen == [{"inputsEmbeds": "rows", "position": 0}, {"inputsEmbeds": "handed on"}]
    return logits


def test_outputs_of_the_head_are_put_together_in_order() -> None:
    assert answer({"logits1": [[3.0]], "logits0": [[1.0, 2.0]]}).tolist() == [1, 2, 3]


def test_an_output_that_the_manifest_tells_of_and_the_package_lacks_is_named() -> None:
    with pytest.raises(BuildError, match=r"head gives no logits1"):
        answer({"logits0": [1.0]})


def test_fewer_logits_than_the_vocabulary_are_named(exported_tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PackageEngine(read_build(exported_tiny))
    monkeypatch.setattr(engine.chain, "decode", lambda *_: np.zeros(575, np.float32))
    with pytest.raises(BuildError, match="575 logits for a vocabulary of 576"):
        engine.decode(np.zeros((1, 192), np.float32))
