"""What onnxruntime may run a model on: execution providers by a short word, and what each takes to be there.

A provider is asked for by name and is there or is an error; onnxruntime itself would warn and go on with the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnxruntime

from fastvlm.errors import MissingDependency, UsageError


@dataclass(frozen=True)
class Provider:
    """An execution provider: its name in onnxruntime, and where one gets it."""

    name: str
    install: str


CPU = "cpu"
PROVIDERS = {
    CPU: Provider("CPUExecutionProvider", "`pip install onnxruntime`"),
    "coreml": Provider("CoreMLExecutionProvider", "`pip install onnxruntime` on a Mac"),
    "cuda": Provider("CUDAExecutionProvider", "`pip install onnxruntime-gpu` in place of onnxruntime"),
    "directml": Provider("DmlExecutionProvider", "`pip install onnxruntime-directml` on Windows"),
    "openvino": Provider("OpenVINOExecutionProvider", "`pip install onnxruntime-openvino` in place of onnxruntime"),
}


def provider_names(words: Sequence[str]) -> list[str]:
    """Returns onnxruntime's names of providers, in the order of preference in which they are given.

    Raises UsageError for a word that is unknown or said twice, MissingDependency for a provider that the installed
    onnxruntime lacks.
    """
    known = ", ".join(PROVIDERS)
    if not words or len(set(words)) != len(words):
        raise UsageError(f"providers are {', '.join(words) or 'none'}; expected one or more of {known}, each once")
    for word in words:
        if word not in PROVIDERS:
            raise UsageError(f"provider {word!r} is unknown; known are {known}")
    installed = onnxruntime.get_available_providers()
    for word in words:
        provider = PROVIDERS[word]
        if provider.name not in installed:
            here = ", ".join(other for other, each in PROVIDERS.items() if each.name in installed)
            raise MissingDependency(
                f"onnxruntime {onnxruntime.__version__} here has no provider {word} ({provider.name}); it has {here}. "
                f"Install it: {provider.install}"
            )
    return [PROVIDERS[word].name for word in words]


def provider_word(name: str) -> str:
    """Returns the short word of a provider's name in onnxruntime; the name itself where there is none."""
    return next((word for word, provider in PROVIDERS.items() if provider.name == name), name)
