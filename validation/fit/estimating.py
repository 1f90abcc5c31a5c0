"""One device, one scheme, one image size, one context: files, memory, first token, tokens a second.

The encoder runs on the Neural Engine, the language model on what it is made for. An answer is: the picture encoded,
all positions of the prompt but the last prefilled in calls of Q rows, the last one decoded into the first token, then a
step for each more. Reading the photo, scaling it and the tokenizer are not in it, nor is loading.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from export.compression.recipe import FP16
from export.compression.schemes import SCHEMES
from export.plan import check_options
from fastvlm.app_limits import app_limit
from fastvlm.devices import Device
from fastvlm.devices import device as named_device
from fastvlm.errors import UsageError
from validation.fit.check import gpu_layer, reached
from validation.fit.chips import Speeds, engine_speeds, gpu_speeds
from validation.fit.files import QUERY, Files
from validation.fit.memory import Memory, maps_of, memory_of
from validation.fit.parts import Parts, parts_of
from validation.fit.published import DECODE, ENCODE, PREFILL
from validation.fit.sizes import Sizes
from validation.fit.timing import Stage, stage

CONTEXT = 2048
TEXT_TOKENS = 30  # of a short question in the qwen_2 conversation: 14 before the image, and what stands behind it
ANSWER = 100  # tokens of an answer, to say which of two is sooner done


@dataclass(frozen=True)
class Estimate:
    """What a build would be on a device. real: files and ops are a build's own.

    stages: encode, prefill, decode (one step). assumed: one sentence for each figure that nobody published.
    """

    size: str
    device: str
    chip: str
    target: str
    scheme: str
    image_size: int
    image_tokens: int
    context: int
    text_tokens: int
    real: bool
    files: Files
    app_limit: int
    memory: Memory
    stages: tuple[Stage, ...]
    assumed: tuple[str, ...]

    @property
    def first_token(self) -> float:
        """Seconds from a scaled picture to the first token."""
        return sum(each.seconds for each in self.stages)

    @property
    def tokens_per_second(self) -> float:
        """Of the answer, from its second token on."""
        return 1 / self.stages[-1].seconds

    @property
    def answer(self) -> float:
        """Seconds to the end of an answer of `ANSWER` tokens."""
        return self.first_token + (ANSWER - 1) * self.stages[-1].seconds

    @property
    def fits_app(self) -> bool:
        """Whether the build's files alone stay within what an app may weigh."""
        return self.files.total <= self.app_limit

    def as_json(self) -> dict[str, Any]:
        """The same as plain data: bytes, seconds, and what follows from them."""
        plain = ("size", "device", "chip", "target", "scheme", "image_size", "image_tokens", "context", "text_tokens",
                 "real", "app_limit", "fits_app", "first_token", "tokens_per_second")  # fmt: skip
        files = {
            "encoder": self.files.encoder, "language": list(self.files.language), "embeddings": self.files.embeddings,
            "other": self.files.other, "total": self.files.total,
        }  # fmt: skip
        return {
            **{name: getattr(self, name) for name in plain}, "files": files, "memory": self.memory.as_json(),
            "stages": [each.as_json() for each in self.stages], "assumed": list(self.assumed),
        }  # fmt: skip


def estimate(
    sizes: Sizes, device: Device | str, scheme: str | None = None, image_size: int | None = None,
    context: int | None = None, *, target: str | None = None, text_tokens: int = TEXT_TOKENS,
) -> Estimate:  # fmt: skip
    """Returns the estimate; what is not given is a build's own, else fp16, the checkpoint's image size, and 2048.

    scheme: "fp16", a name of `export.compression.schemes` or a recipe's file. target: "ane" or "gpu", without it what
    the scheme is for. Raises UsageError for an unknown device, sizes that no export takes, an image that leaves no room
    for text, a scheme that target or shapes cannot have, and what a build is not.
    """
    found = named_device(device) if isinstance(device, str) else device
    if sizes.built is not None:
        scheme, target, context = _own(sizes, scheme, target, context)
    scheme, context = FP16 if scheme is None else scheme, CONTEXT if context is None else context
    target = target_of(scheme) if target is None else target
    own = sizes.built.image_sizes[0] if sizes.built else sizes.vision.image_size
    side = own if image_size is None else image_size
    _check(sizes, side, context, target, text_tokens)
    engine = engine_speeds(found.chip)
    speeds = engine if target == "ane" else gpu_speeds(found.chip, gpu_layer())
    parts = parts_of(sizes, side, context, scheme, target)
    tokens, maps = sizes.vision.tokens_at(side), maps_of(sizes.vision, side)
    return Estimate(
        sizes.name, found.name, found.chip.name, target, scheme, side, tokens, context,
        text_tokens, sizes.built is not None, parts.files, app_limit(found),
        memory_of(found, parts.held(engine.folded, speeds.folded), parts.state, maps),
        _stages(parts, engine, speeds, target, prompt=tokens + text_tokens, layers=sizes.text.layers),
        tuple(dict.fromkeys((*engine.assumed, *speeds.assumed))),
    )  # fmt: skip


def target_of(scheme: str) -> str:
    """Returns what a scheme is for: "gpu" for blocks, "ane" for everything else."""
    return SCHEMES[scheme].targets[0] if scheme in SCHEMES else "ane"


def _own(sizes: Sizes, scheme: str | None, target: str | None, context: int | None) -> tuple[str, str, int]:
    """What a build is; UsageError where something else is asked for."""
    built = sizes.built
    assert built is not None
    asked = (
        ("--quantize", scheme, built.scheme),
        ("--target", target, built.target),
        ("--context", context, built.context),
    )
    wrong = [f"{name} is {given}, and {sizes.name} has {own}" for name, given, own in asked if given not in (None, own)]
    if wrong:
        raise UsageError(f"{'; '.join(wrong)}; leave it out, or name the checkpoint that the build was made from")
    return built.scheme, built.target, built.context


def _check(sizes: Sizes, side: int, context: int, target: str, text_tokens: int) -> None:
    built = sizes.built
    if built is not None and side not in built.image_sizes:
        held = ", ".join(map(str, built.image_sizes))
        raise UsageError(f"--image-size is {side}, and {sizes.name} has {held}; leave it out, or export that size")
    check_options((side,), context, built.query if built else QUERY, None, target)
    tokens = sizes.vision.tokens_at(side)
    if text_tokens < 1:
        raise UsageError(
            f"text_tokens is {text_tokens}, expected 1 at least: the first token comes from the last of them"
        )
    if tokens + text_tokens >= context:
        raise UsageError(
            f"an image of {side} pixels takes {tokens} tokens and the text {text_tokens}, --context {context} leaves "
            "no room for an answer; raise it, or take a smaller image"
        )


def _stages(
    parts: Parts, engine: Speeds, speeds: Speeds, target: str, *, prompt: int, layers: int
) -> tuple[Stage, ...]:  # fmt: skip
    """Encode, prefill, and one step. All positions but the last are prefilled, the last call padded to its rows."""
    language, packages = reached(target), len(parts.files.language)
    calls = -(-(prompt - 1) // parts.query)
    return (
        stage(ENCODE, parts.encode, engine, reached("ane")),
        stage(
            PREFILL, parts.prefill, speeds, language, calls=calls, packages=parts.files.layered, layers=layers
        ),
        stage(DECODE, parts.decode, speeds, language, packages=packages, layers=layers),
    )  # fmt: skip
