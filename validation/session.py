"""A question about a picture, answered by a checkpoint or by a build folder, whichever is given.

`open_session` finds out which it is and who executes it; `Session.answer` runs photo → bytes → image tokens → ids →
text through `fastvlm_ref.generate`, the loop that both engines share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from PIL import Image

from fastvlm.build import Build, read_build
from fastvlm.errors import CheckpointError, UsageError
from fastvlm.manifest import NAME as MANIFEST
from fastvlm.paths import check_entry
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.config import PromptConfig
from fastvlm_ref.engine import Engine, TorchEngine, check_side
from fastvlm_ref.generate import GREEDY, Timings, generate_text
from fastvlm_ref.image import open_image
from fastvlm_ref.prompt import prompt_from_record
from fastvlm_ref.sampling import Sampling
from fastvlm_ref.tokenizer import Tokenizer, load_tokenizer
from validation.coreml.units import check_units
from validation.engine import PackageEngine

AnyEngine = TypeVar("AnyEngine", bound=Engine)


@dataclass(frozen=True)
class Answer:
    """What came out: the text, seconds per stage, and who computed it."""

    text: str
    timings: Timings
    backend: str


@dataclass(frozen=True)
class Session(Generic[AnyEngine]):
    """An engine with what belongs to it: tokenizer, prompt rule, image rule."""

    engine: AnyEngine
    tokenizer: Tokenizer
    prompt: PromptConfig
    image_rule: str
    backend: str

    def answer(
        self,
        picture: Path | str | Image.Image,
        prompt: str,
        max_new_tokens: int = 256,
        *,
        sampling: Sampling = GREEDY,
        on_text: Callable[[str], None] | None = None,
        progress: Progress = SILENT,
    ) -> Answer:
        """Answers one question about one picture; `on_text` receives the pieces as they come.

        Raises ImageError, PromptError, and BuildError for a build of one part alone, before anything has run.
        """
        if isinstance(self.engine, PackageEngine):
            self.engine.build.check_whole()
        timings = Timings()
        image = picture if isinstance(picture, Image.Image) else open_image(picture, progress=progress)
        pieces: list[str] = []
        for piece in generate_text(
            self.engine,
            self.tokenizer,
            image,
            prompt,
            prompt=self.prompt,
            image_rule=self.image_rule,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            timings=timings,
            progress=progress,
        ):
            pieces.append(piece)
            if on_text is not None:
                on_text(piece)
        return Answer("".join(pieces), timings, self.backend)


def is_build(target: str | Path) -> bool:
    """Returns whether `target` is a build folder: a folder with a manifest, of whatever schema."""
    return (Path(target) / MANIFEST).is_file()


def open_session(
    target: str | Path,
    backend: str | None = None,
    *,
    compute_units: str | None = None,
    image_size: int | None = None,
    context: int | None = None,
    progress: Progress = SILENT,
    **checkpoint_options: Any,
) -> Session[PackageEngine] | Session[TorchEngine]:
    """Opens a build folder (backend mil unless told otherwise) or a checkpoint (backend torch).

    `compute_units` say where Core ML may run a build (None: what it was made for).

    `checkpoint_options` are those of `load_checkpoint`. Raises UsageError where an option does not fit the target.
    """
    check_entry(Path(target), CheckpointError)
    if is_build(target):
        fixed = {"context": context, **checkpoint_options}
        given = [name for name, value in fixed.items() if value not in (None, False)]
        if given:
            names = ", ".join("--" + name.replace("_", "-") for name in given)
            raise UsageError(f"{names}: fixed when {target} was exported; give it to `fastvlm export`")
        return build_session(read_build(target), backend or "mil", image_size, progress, compute_units)
    check_units("torch", compute_units)
    if backend not in (None, "torch"):
        raise UsageError(f"--backend {backend} runs a build folder, and {target} is a checkpoint; export it first")
    if image_size is not None:
        check_side(image_size)
    model = load_checkpoint(target, progress=progress, **checkpoint_options)
    if model.tokenizer is None:
        raise UsageError(f"{target} has no tokenizer, and a question needs one")
    engine = TorchEngine(model, context or min(2048, model.config.text.max_positions), image_size)
    return Session(engine, model.tokenizer, model.config.prompt, model.config.image_rule, "torch")


def build_session(
    build: Build, backend: str = "mil", image_size: int | None = None, progress: Progress = SILENT,
    compute_units: str | None = None,
) -> Session[PackageEngine]:  # fmt: skip
    """Opens a build with its own tokenizer, prompt and image rule, as its manifest states them.

    BuildError for an encoder that was made for an app.
    """
    if backend == "torch":
        raise UsageError(f"--backend torch runs a checkpoint, and {build.folder} is a build folder; use mil or coreml")
    if build.purpose is not None:
        build.check_whole()  # it is not, and has no tokenizer either
    with progress.stage("Opening the build"):
        return session_of(PackageEngine(build, backend, image_size, compute_units=compute_units))


def session_of(engine: PackageEngine) -> Session[PackageEngine]:
    """Returns an engine over a build as a session."""
    build = engine.build
    tokenizer = load_tokenizer(build.tokenizer, build.vocab_size)
    return Session(engine, tokenizer, prompt_from_record(build.prompt), build.image_rule, engine.backend)
