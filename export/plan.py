"""What one export is to make: image sizes, context, query length, parts, target, purpose; checked before heavy work.

Notable choices: all problems are listed at once; what needs the checkpoint (its own image size, how many tokens an
image takes) is checked as soon as the checkpoint is open, before the first graph is built.
It does not know graphs or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.apple_app import app_problems
from export.compression.recipe import FP16, requested
from fastvlm.build import APPLE_APP, LARGEST_MASK, PURPOSES, TARGETS
from fastvlm.errors import UsageError
from fastvlm_ref.config import LARGEST_SIDE, FastVLMConfig
from fastvlm_ref.samples import samples_in

STRIDE = 64  # FastViTHD's: an image side must be a multiple of it
ALIGNMENT = 32  # the last axis of a state, and with it C where a graph keeps C last (ct#2631)
PARTS = ("encoder", "language")
CONTEXT = 2048  # C unless asked
ENCODERS = {None: "VisionEncoder.mlpackage", APPLE_APP: "fastvithd.mlpackage"}  # by purpose
# Most bytes of a package's weight file, by target: coremltools' guide on large models says that iOS takes about 1 GB a
# program (beyond 1.0 to 1.4 GB the Neural Engine silently hands over to the GPU, John Rocky's CoreML-LLM). None: any.
IOS_FILE = 1_000_000_000
FILE_SIZES: dict[str, int | None] = {"ane": IOS_FILE, "gpu": None}


@dataclass(frozen=True)
class ExportPlan:
    """One export: encoder sizes N in order (the first is the default function), C, Q, which packages, for which engine.

    max_file_size: bytes that no weight file of the language model goes beyond, which may split it into a chain of
    packages (`export.chunks`); None is no limit. purpose: the app that the encoder is made for, without projector; None
    for a build of our own.
    """

    image_sizes: tuple[int, ...]
    context: int  # C
    query_length: int  # Q of `prefill`
    parts: tuple[str, ...] = PARTS
    target: str = "ane"  # "ane" | "gpu"
    max_file_size: int | None = FILE_SIZES["ane"]
    purpose: str | None = None  # of PURPOSES

    @property
    def encoder(self) -> bool:
        """Whether the vision encoder is asked for."""
        return "encoder" in self.parts

    @property
    def encoder_package(self) -> str:
        """The vision encoder's file name."""
        return ENCODERS[self.purpose]

    @property
    def projector(self) -> bool:
        """Whether the projector is behind the tower."""
        return self.encoder and self.purpose is None

    @property
    def language(self) -> bool:
        """Whether LanguageModel.mlpackage and embeddings.bin are asked for."""
        return "language" in self.parts


def check_options(
    image_sizes: Sequence[int] = (),
    context: int | None = None,
    query_length: int = 64,
    only: str | None = None,
    target: str = "ane",
    max_file_size: int | None = None,
    quantize: str | Path | None = None,
    calibration: str | Path | None = None,
    purpose: str | None = None,
) -> None:
    """Checks what can be checked without a checkpoint, torch or coremltools; UsageError that lists every problem."""
    problems = [p for side in image_sizes if (p := _side_problem(side))]
    if purpose not in (None, *PURPOSES):
        problems.append(f"--for is {purpose!r}, expected {' or '.join(PURPOSES)}")
    if purpose is not None:
        given = {
            "--only": only is not None, "--context": context is not None, "--target gpu": target == "gpu",
            "--max-file-size": max_file_size is not None, f"--quantize {quantize}": quantize not in (None, FP16),
            "--calibration": calibration is not None,
        }  # fmt: skip
        problems += app_problems(image_sizes, [name for name, there in given.items() if there])
    context = CONTEXT if context is None else context
    if target not in TARGETS:
        problems.append(f"--target is {target!r}, expected {' or '.join(TARGETS)} with --format coreml")
    if max_file_size is not None and max_file_size < 1:
        problems.append(f"--max-file-size is {max_file_size}, expected a positive number of bytes")
    if only not in (None, *PARTS):
        problems.append(f"--only is {only!r}, expected encoder or language")
    if only == "language" and image_sizes:
        problems.append("--image-size is given with --only language, which makes no encoder; leave one of them out")
    if query_length < 1:
        problems.append(f"the query length is {query_length}, expected at least 1 (64 unless asked)")
    elif context < 1 or context % query_length or context % ALIGNMENT:
        problems.append(
            f"--context is {context}, expected a multiple of the query length {query_length} and of {ALIGNMENT}"
            f"{_nearest(context, query_length)}"
        )
    if target in TARGETS:
        problems += _refused(lambda: requested(quantize, target))
    if calibration is not None:
        problems += _refused(lambda: samples_in(Path(calibration), "--calibration"))
    if problems:
        raise UsageError("; ".join(problems))


def make_plan(
    config: FastVLMConfig,
    image_sizes: Sequence[int] = (),
    context: int | None = None,
    query_length: int = 64,
    only: str | None = None,
    target: str = "ane",
    max_file_size: int | None = None,
    purpose: str | None = None,
) -> ExportPlan:
    """Returns the plan for a checkpoint; without `image_sizes` its own size, without `max_file_size` the target's.

    Raises UsageError as `check_options`.
    """
    check_options(image_sizes, context, query_length, only, target, max_file_size, purpose=purpose)
    sizes = tuple(dict.fromkeys(image_sizes)) or (config.vision.image_size,)
    context = CONTEXT if context is None else context
    parts = PARTS if only is None else (only,)
    if purpose is not None:
        parts = ("encoder",)
    plan = ExportPlan(sizes, context, query_length, parts, target, max_file_size or FILE_SIZES[target], purpose)
    problems = []
    if plan.language and config.text.head_dim % ALIGNMENT:
        problems.append(
            f"the decoder's head dim is {config.text.head_dim}, Core ML state needs a multiple of {ALIGNMENT}"
        )
    if plan.language and plan.query_length * context > LARGEST_MASK:
        longest = LARGEST_MASK // query_length // _step(query_length) * _step(query_length)
        problems.append(
            f"--context {context} with a query length of {query_length} needs a mask of more than {LARGEST_MASK} "
            f"values, which a host makes for every call; the longest is --context {longest}"
        )
    tokens = max(map(config.vision.tokens_at, sizes))
    if plan.encoder and plan.language and tokens >= context:
        problems.append(
            f"an image of {max(sizes)} pixels takes {tokens} tokens, "
            f"--context {context} leaves no room for text; raise it"
        )
    if problems:
        raise UsageError("; ".join(problems))
    return plan


def _refused(check: Callable[[], object]) -> list[str]:
    """What a check says against, none or one."""
    try:
        check()
    except UsageError as problem:
        return [str(problem)]
    return []


def _side_problem(side: int) -> str | None:
    if side % STRIDE == 0 and STRIDE <= side <= LARGEST_SIDE:
        return None
    below = min(max(side // STRIDE * STRIDE, STRIDE), LARGEST_SIDE)
    return f"--image-size is {side}, expected a multiple of {STRIDE} up to {LARGEST_SIDE}; {below} is the nearest below"


def _nearest(context: int, query_length: int) -> str:
    step = _step(query_length)
    return f"; the next that fits is {max(1, -(-context // step)) * step}"


def _step(query_length: int) -> int:
    """What a context is a multiple of."""
    return math.lcm(query_length, ALIGNMENT)
