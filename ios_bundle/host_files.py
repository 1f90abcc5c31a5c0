"""preprocess.json and generation.json: what a runtime must do with a photo and with logits, as data.

The rule itself is `fastvlm_ref.image` and `fastvlm_ref.generate`; here it is written down once more for hosts in other
languages, and docs/host-contract.md explains every step with worked numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastvlm.build import Build
from fastvlm.errors import BuildError
from fastvlm.json_file import read_json
from fastvlm.prompts import read_prompts
from ios_bundle.layout import SCHEMA

MAX_NEW_TOKENS = 256  # the default of `fastvlm run`, where the context has room for it
MAX_TOKENIZER = 64 << 20  # bytes; a tokenizer.json of 250,000 tokens has 35 MB

_RESIZE = {
    "filter": "bicubic", "a": -0.5, "antialias": True,
    "passes": "horizontal, then vertical; each rounds to bytes; a pass that changes no length is left out",
    "coefficients": "normalised, then rounded to 22 fractional bits",
    "as": "Pillow's Image.resize with Resampling.BICUBIC on 8-bit RGB, one call an axis",
}  # fmt: skip
_UPRIGHT = {"step": "upright", "by": "EXIF orientation, which is then forgotten"}
_RGB = {"step": "rgb", "alpha": "over white", "profile": "ignored"}
_BYTES = {"step": "bytes", "dtype": "uint8", "layout": "RGB, N rows of N pixels"}
_PAD = [
    {"step": "pad", "to": "a square of the longer side", "colour": [0, 0, 0], "offset": "floor((side - length) / 2)"},
    {"step": "resize", "to": "N by N", **_RESIZE},
]
_CROP = [
    {"step": "resize", "to": "N on the shorter side, floor(N * longer / shorter) on the longer", **_RESIZE},
    {"step": "crop", "to": "N by N", "offset": "floor((length - N) / 2)"},
]


def preprocess_record(build: Build) -> dict[str, Any]:
    """Returns the content of preprocess.json: the steps from a picture to the bytes of `image`, in order."""
    image = build.manifest["image"]
    return {
        "schema": SCHEMA,
        "rule": build.image_rule,
        "sizes": list(build.image_sizes),
        "steps": [_UPRIGHT, _RGB, *(_PAD if build.image_rule == "pad" else _CROP), _BYTES],
        "inside_the_model": {"scale": image.get("scale"), "bias": image.get("bias"), "color": image.get("color")},
    }


def generation_record(build: Build) -> dict[str, Any]:
    """Returns the content of generation.json. Raises BuildError as `stop_ids`."""
    return {
        "schema": SCHEMA,
        "stop_ids": stop_ids(build),
        "context": build.context,
        "prefill_chunk": build.query,
        "max_new_tokens": min(most_new_tokens(build, size) for size in build.image_sizes),
        "temperature": 0.0,
        "top_p": 1.0,
    }


def most_new_tokens(build: Build, side: int) -> int:
    """Returns how long an answer may be unless told otherwise: beside a picture and every ready-made prompt, 1 to 256.

    Raises BuildError for a prompts.json that holds none.
    """
    prompts = read_prompts(build.prompts) if build.prompts is not None else ()
    taken = build.tokens_at(side) + max((prompt.count for prompt in prompts), default=0)
    return max(1, min(MAX_NEW_TOKENS, build.context - taken))


def stop_ids(build: Build) -> list[int]:
    """Returns the ids that end an answer, sorted: the checkpoint's, and those of the template's stops that it has.

    Raises BuildError where tokenizer.json cannot be read.
    """
    added = _added_tokens(build.tokenizer / "tokenizer.json")
    named = (added[name] for name in build.prompt.get("stops", ()) if name in added)
    return sorted({*build.prompt["stop_ids"], *named})


def _added_tokens(tokenizer: Path) -> dict[str, int]:
    try:
        content = read_json(tokenizer, MAX_TOKENIZER)
        return {entry["content"]: entry["id"] for entry in content.get("added_tokens") or ()}
    except OSError as problem:
        raise BuildError(f"{tokenizer} cannot be read ({problem.strerror}); export the build again") from problem
    except (ValueError, AttributeError, KeyError, TypeError) as problem:
        raise BuildError(f"{tokenizer} is no tokenizer ({str(problem)[:80]}); export the build again") from problem
