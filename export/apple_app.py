"""What Apple's sample app (github.com/apple/ml-fastvlm, app/) asks of its vision encoder, beyond names and types.

Its Swift code stops at any result that is not [1, 256, 3072], and hands over pictures of the size in its model folder's
preprocessor_config.json, which is 1024. The language model is MLX's and comes from elsewhere.
It knows neither torch nor coremltools; names and types of the function are `export.contract`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastvlm_ref.config import VisionConfig

SIDE = 1024
FEATURES = (1, 256, 3072)


def app_problems(image_sizes: Sequence[int], excluded: Sequence[str]) -> Iterator[str]:
    """Gives what speaks against an export for the app: other sizes than its own, options of what is not made.

    excluded: the options that were given and belong to the language model or to another form of the encoder.
    """
    if excluded:
        yield (
            f"--for apple-app makes the vision encoder of Apple's sample app alone, its weights in fp16; leave out "
            f"{', '.join(excluded)}"
        )
    others = [str(side) for side in dict.fromkeys(image_sizes) if side != SIDE]
    if others:
        yield (
            f"--image-size is {', '.join(others)}, and Apple's sample app takes {SIDE} alone; leave it out for the "
            f"checkpoint's own size, or give {SIDE}"
        )


def refusal(vision: VisionConfig, side: int) -> str | None:
    """Returns why the app as Apple wrote it would stop at a checkpoint's encoder at that side; None where it runs."""
    found = (1, vision.tokens_at(side), vision.features)
    if (found, side) == (FEATURES, SIDE):
        return None
    cures = [f"give --image-size {SIDE}"] if side != SIDE else []
    cures += ["change that line"] if vision.features != FEATURES[-1] else []
    return (
        f"Apple's app as it is stops at this encoder: it hands over {SIDE} pixels and expects {list(FEATURES)} "
        f"(a precondition in app/FastVLM/FastVLM.swift), this one takes {side} and gives {list(found)}; "
        f"{' and '.join(cures)}"
    )
