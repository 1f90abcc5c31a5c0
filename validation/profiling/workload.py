"""What one run is asked: a photo of a phone's size, a question, and at which positions of the context it decodes.

The photo is a shipped picture enlarged to 12 megapixels, because what preprocessing costs depends on the size that it
begins with. What lies in a picture or a cache changes no time: every shape in a package is fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from fastvlm.build import Build
from fastvlm_ref.generate import check_budget
from fastvlm_ref.image import open_image
from fastvlm_ref.prompt import encode_prompt, prompt_from_record
from fastvlm_ref.samples import DEFAULT_PROMPT, shipped_photo
from fastvlm_ref.tokenizer import load_tokenizer

PHOTO = (4032, 3024)  # pixels: what an iPhone's main camera gives
CONTEXTS = (512, 1024)  # positions besides the first behind the prompt and the last there is
TOKENS = 3  # decoded at each position in one run
IMAGE_TOKENS = 256  # where a build has no encoder and its manifest does not tell


@dataclass(frozen=True)
class Workload:
    """side: N of the encoder's function, 0 without one. before, after: ids around the picture. tokens: T.

    positions: how many are filled before each token that is decoded.
    """

    side: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    tokens: int
    positions: tuple[int, ...]

    @property
    def prompt(self) -> int:
        """S, positions of the prompt."""
        return len(self.before) + self.tokens + len(self.after)


def workload_of(build: Build, image_size: int | None = None) -> Workload:
    """Returns what a run of this build is asked; PromptError where its prompt does not fit into the context."""
    side = (image_size or build.image_sizes[0]) if build.encoder is not None else 0
    if not build.language:
        return Workload(side, (), (), 0, ())
    tokenizer = load_tokenizer(build.tokenizer, build.vocab_size)
    before, after = encode_prompt(tokenizer, DEFAULT_PROMPT, prompt_from_record(build.prompt))
    tokens = (side // build.stride) ** 2 if side else _image_tokens(build)
    work = Workload(side, tuple(before), tuple(after), tokens, ())
    check_budget(work.prompt, 1, build.context)
    return Workload(side, work.before, work.after, tokens, _positions(work.prompt, build.context))


def _image_tokens(build: Build) -> int:
    """T of the checkpoint's own image size, for a build without an encoder."""
    side = build.manifest["model"]["vision"].get("image_size")
    return (side // build.stride) ** 2 if isinstance(side, int) and side >= build.stride else IMAGE_TOKENS


def _positions(prompt: int, context: int) -> tuple[int, ...]:
    """Behind the prompt, at CONTEXTS, and at the end of the context C, as far as they lie in it."""
    wanted = (prompt, *CONTEXTS, context - 1)
    return tuple(sorted({position for position in wanted if prompt <= position < context}))


def photo() -> Image.Image:
    """Returns the photo, RGB, PHOTO pixels."""
    return open_image(shipped_photo()).resize(PHOTO, Image.Resampling.BILINEAR)
