"""A question about a picture, answered by a checkpoint or by a build folder, whichever is given.

`open_session` finds out which it is and who executes it; `Session.answer` runs photo → bytes → image tokens → ids →
text through `fastvlm_ref.generate`, the loop that all engines share; `converse` and `turn` ask more about the same
picture. An opened session remembers
(`fastvlm_ref.remembering`): the same picture is not encoded again, nor a prompt's beginning that the cache still holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from PIL import Image

from fastvlm.build import FORMATS, ONNX, Build, read_build
from fastvlm.errors import CheckpointError, UsageError
from fastvlm.manifest import NAME as MANIFEST
from fastvlm.paths import check_entry
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.config import PromptConfig
from fastvlm_ref.conversation import Conversation
from fastvlm_ref.engine import Engine, TorchEngine, check_side
from fastvlm_ref.generate import GREEDY, Timings
from fastvlm_ref.image import open_image
from fastvlm_ref.prompt import prompt_from_record
from fastvlm_ref.remembering import Remembering
from fastvlm_ref.sampling import Sampling
from fastvlm_ref.tokenizer import Tokenizer, load_tokenizer
from validation.coreml.units import check_units
from validation.engine import PackageEngine

if TYPE_CHECKING:  # onnxruntime is loaded for a build of ONNX files alone
    from validation.ort.engine import OrtEngine
    from validation.ort.settings import Settings

AnyEngine = TypeVar("AnyEngine", bound=Engine)


class BuildEngine(Engine, Protocol):
    """An engine over a build folder."""

    build: Build
    backend: str


OfBuild = TypeVar("OfBuild", bound=BuildEngine)


@dataclass(frozen=True)
class Answer:
    """What came out: the text, seconds per stage, who computed it.

    kept: of the prompt's positions those that the cache held from before, which were not computed again.
    """

    text: str
    timings: Timings
    backend: str
    kept: int = 0


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
        return self.turn(
            self.converse(picture, progress), prompt, max_new_tokens, sampling=sampling, on_text=on_text,
            progress=progress,
        )  # fmt: skip

    def turn(
        self,
        conversation: Conversation,
        prompt: str,
        max_new_tokens: int = 256,
        *,
        sampling: Sampling = GREEDY,
        on_text: Callable[[str], None] | None = None,
        progress: Progress = SILENT,
    ) -> Answer:
        """Answers the next question of a conversation that `converse` began; PromptError before anything has run.

        What is needed of ONNX files is opened before the first stage: no stage's seconds hold it, and a damaged file is
        found before the picture is looked at.
        """
        timings = Timings()
        pieces: list[str] = []
        answer = conversation.ask(prompt, max_new_tokens, sampling=sampling, timings=timings, progress=progress)
        load = getattr(self._inner, "load", None)
        if load is not None:
            with progress.stage("Opening the model files"):
                load()
        for piece in answer:
            pieces.append(piece)
            if on_text is not None:
                on_text(piece)
        kept = self.engine.reused if isinstance(self.engine, Remembering) else 0
        return Answer("".join(pieces), timings, self.backend, kept)

    def converse(self, picture: Path | str | Image.Image, progress: Progress = SILENT) -> Conversation:
        """Begins a conversation about a picture; raises as `answer`. One at a time, as there is one cache."""
        self._check_whole()
        image = picture if isinstance(picture, Image.Image) else open_image(picture, progress=progress)
        return Conversation(self.engine, self.tokenizer, image, self.prompt, self.image_rule)

    def placement(self) -> dict[str, dict[str, int]]:
        """Returns how many nodes of each ONNX file that was used ran on which provider; empty for other backends."""
        tell = getattr(self._inner, "placement", None)
        return {} if tell is None else dict(tell())

    @property
    def _inner(self) -> Engine:
        """The engine itself, behind its memory."""
        return self.engine.engine if isinstance(self.engine, Remembering) else self.engine

    def _check_whole(self) -> None:
        build = getattr(self._inner, "build", None)
        if isinstance(build, Build):
            build.check_whole()


def is_build(target: str | Path) -> bool:
    """Returns whether `target` is a build folder: a folder with a manifest, of whatever schema."""
    return os.path.isfile(Path(target) / MANIFEST)


def open_session(
    target: str | Path,
    backend: str | None = None,
    *,
    compute_units: str | None = None,
    image_size: int | None = None,
    context: int | None = None,
    providers: Sequence[str] | None = None,
    settings: Settings | None = None,
    progress: Progress = SILENT,
    **checkpoint_options: Any,
) -> Session[Remembering[PackageEngine]] | Session[Remembering[OrtEngine]] | Session[Remembering[TorchEngine]]:
    """Opens a build folder (backend mil, for ONNX files onnx, unless told otherwise) or a checkpoint (backend torch).

    `compute_units` say where Core ML may run a build (None: what it was made for), `providers` where onnxruntime may
    (None: the CPU), with its `settings`. `checkpoint_options` are those of `load_checkpoint`. Raises UsageError where
    an option does not fit the target.
    """
    check_entry(Path(target), CheckpointError)
    if is_build(target):
        fixed = {"context": context, **checkpoint_options}
        given = [name for name, value in fixed.items() if value not in (None, False)]
        if given:
            names = ", ".join("--" + name.replace("_", "-") for name in given)
            raise UsageError(f"{names}: fixed when {target} was exported; give it to `fastvlm export`")
        build = read_build(target, FORMATS)
        if build.format == ONNX:
            check_units(backend or "onnx", compute_units)
            return _remembering(onnx_session(build, backend, image_size, progress, providers, settings))
        _check_no_providers(providers, settings, f"{target} is a build of Core ML packages")
        return _remembering(build_session(build, backend or "mil", image_size, progress, compute_units))
    _check_no_providers(providers, settings, f"{target} is a checkpoint")
    check_units("torch", compute_units)
    if backend not in (None, "torch"):
        raise UsageError(f"--backend {backend} runs a build folder, and {target} is a checkpoint; export it first")
    if image_size is not None:
        check_side(image_size)
    model = load_checkpoint(target, progress=progress, **checkpoint_options)
    if model.tokenizer is None:
        raise UsageError(f"{target} has no tokenizer, and a question needs one")
    engine = TorchEngine(model, context or min(2048, model.config.text.max_positions), image_size)
    return _remembering(Session(engine, model.tokenizer, model.config.prompt, model.config.image_rule, "torch"))


def _remembering(session: Session[AnyEngine]) -> Session[Remembering[AnyEngine]]:
    return Session(
        Remembering(session.engine), session.tokenizer, session.prompt, session.image_rule, session.backend
    )  # fmt: skip


def _check_no_providers(providers: Sequence[str] | None, settings: Settings | None, what: str) -> None:
    if providers is not None or settings is not None:
        raise UsageError(f"--provider is onnxruntime's, and {what}; leave it out, or export with --format onnx")


def build_session(
    build: Build, backend: str = "mil", image_size: int | None = None, progress: Progress = SILENT,
    compute_units: str | None = None,
) -> Session[PackageEngine]:  # fmt: skip
    """Opens a build of Core ML packages with its own tokenizer, prompt and image rule, as its manifest states them.

    BuildError for an encoder that was made for an app.
    """
    if backend in ("torch", "onnx"):
        takes = "a checkpoint" if backend == "torch" else "a build of --format onnx"
        raise UsageError(f"--backend {backend} runs {takes}, and {build.folder} is a build folder; use mil or coreml")
    if build.purpose is not None:
        build.check_whole()  # it is not, and has no tokenizer either
    with progress.stage("Opening the build"):
        return session_of(PackageEngine(build, backend, image_size, compute_units=compute_units))


def onnx_session(
    build: Build, backend: str | None = None, image_size: int | None = None, progress: Progress = SILENT,
    providers: Sequence[str] | None = None, settings: Settings | None = None,
) -> Session[OrtEngine]:  # fmt: skip
    """Opens a build of ONNX files as `build_session` does; MissingDependency for a provider that is not installed."""
    if backend not in (None, "onnx"):
        raise UsageError(
            f"--backend {backend} does not run the ONNX files of {build.folder}; leave it out, or use onnx"
        )
    with progress.stage("Opening the build"):
        from validation.ort.engine import OrtEngine

        return session_of(OrtEngine(build, image_size, ("cpu",) if providers is None else providers, settings))


def session_of(engine: OfBuild) -> Session[OfBuild]:
    """Returns an engine over a build as a session."""
    build = engine.build
    tokenizer = load_tokenizer(build.tokenizer, build.vocab_size)
    return Session(engine, tokenizer, prompt_from_record(build.prompt), build.image_rule, engine.backend)
