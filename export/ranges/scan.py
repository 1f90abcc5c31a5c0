"""`export.scan`: the range pass over a whole checkpoint, or the result of one that was made before.

Encoder and projector see the shipped pictures, the user's own, and hostile frames, at every image size that is asked
for; the decoder sees what they give at the first of them, in prompts, and texts. Same checkpoint, same result, whatever
the number of cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.encoder import EncoderGraph
from export.plan import CONTEXT, ExportPlan, check_options
from export.precheck import check_weights
from export.ranges.cache import fingerprint, load, store
from export.ranges.decoder import decoder_pass
from export.ranges.encoder import encoder_pass
from export.ranges.estimate import decoder_seconds, encoder_seconds, in_words
from export.ranges.frames import Picture, hostile_frames, photos, pictures_hash
from export.ranges.matrix import read_table
from export.ranges.prompts import Prompt, decoder_inputs, longest, tokenizer_of
from export.ranges.result import Ranges
from export.ranges.watch import Tally
from fastvlm.errors import CheckpointError, UsageError
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.checkpoint.source import Source, differing
from fastvlm_ref.image import open_image
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.prompt import encode_prompt
from fastvlm_ref.samples import Sample, samples_in, shipped_samples
from fastvlm_ref.threads import one_thread


@one_thread()
def scan(
    checkpoint: str | Path,
    *,
    image_sizes: Sequence[int] = (),
    calibration: str | Path | None = None,
    base: str | Path | None = None,
    allow_pickle: bool = False,
    again: bool = False,
    progress: Progress = SILENT,
) -> Ranges:
    """Returns what every tensor of a checkpoint reaches, and keeps it where `export` finds it.

    `image_sizes` N in pixels (none: the checkpoint's own), `calibration` a folder of pictures that are shown as well,
    `again` does not take what an earlier scan found. 0.5B takes 2.5 minutes of CPU time and 2.1 GB; of 7B one layer is
    in memory at a time.
    Raises UsageError for options, CheckpointError while the checkpoint is read, ImageError for a picture that is none,
    TensorError where the model gives NaN or infinity in float32; CheckpointError also for files that change meanwhile.
    """
    check_options(image_sizes, calibration=calibration)
    model = load_checkpoint(checkpoint, stream=True, base=base, allow_pickle=allow_pickle, progress=progress)
    return scan_model(model, image_sizes=image_sizes, calibration=calibration, again=again, progress=progress)


@one_thread()
def scan_model(
    model: FastVLM,
    *,
    image_sizes: Sequence[int] = (),
    calibration: str | Path | None = None,
    again: bool = False,
    progress: Progress = SILENT,
) -> Ranges:
    """As `scan`, for a model that `load_checkpoint` returned."""
    check_options(image_sizes, calibration=calibration)
    if model.source is None:
        raise UsageError("this model has no source; read it with load_checkpoint")
    sides = tuple(dict.fromkeys(image_sizes)) or (model.config.vision.image_size,)
    own = [] if calibration is None else samples_in(Path(calibration), "--calibration")
    for sample in own:
        open_image(sample.picture)  # what is no picture is told before minutes are spent
    asked = Request(sides, own, pictures_hash(own) if own else None)
    stamps = _stamps(model.source)
    mark = fingerprint(model, model.source.files(progress))
    known = None if again else load(mark, progress)
    if known is not None and known.covers(sides, asked.calibration):
        progress.note("this checkpoint was scanned before; --again scans it anew")
        return known
    check_weights(
        model, ExportPlan(sides, CONTEXT, query_length=64), progress, halves=False
    )  # before minutes are spent
    found = Scanner(model, asked, progress).ranges(mark)
    if changed := differing(_stamps(model.source), stamps):
        raise CheckpointError(f"{', '.join(changed)} changed while it was scanned; scan it again")
    store(found, progress)
    return found


def _stamps(source: Source) -> dict[str, tuple[int, ...]]:
    """What shows that a file was written to: weights are read from it while a scan runs, after it was hashed."""
    states = {name: path.stat() for name, path in source.paths.items() if path.is_file()}
    return {name: (state.st_ino, state.st_size, state.st_mtime_ns) for name, state in states.items()}


@dataclass(frozen=True)
class Request:
    """What is asked of one scan: sides N, the user's pictures and their hash."""

    sides: tuple[int, ...]
    own: Sequence[Sample]
    calibration: str | None


@dataclass(frozen=True)
class Scanner:
    """One scan of one model."""

    model: FastVLM
    asked: Request
    progress: Progress

    def ranges(self, mark: str) -> Ranges:
        """Runs both passes; `mark` is the checkpoint's fingerprint."""
        model, pictures, tally = self.model, self.pictures(), Tally()
        tokenizer = tokenizer_of(model)  # before minutes are spent
        graph = EncoderGraph(model)
        self.say_how_long(graph, pictures)
        tokens = encoder_pass(graph, pictures, self.asked.sides, tally, self.progress)
        sites = dict(graph.sites)
        del graph  # its folded weights
        with self.progress.stage("Reading the embedding table"):
            table = read_table(model.decoder, tokenizer.size)
        prompts = decoder_inputs(model, pictures, tokens, table, self.progress)
        del tokens
        decoder_pass(model.decoder, prompts, table, tally, self.progress)
        return self.result(mark, pictures, prompts, tally, sites)

    def pictures(self) -> list[Picture]:
        """The shipped pictures, the user's, the hostile frames."""
        samples = [*shipped_samples(), *self.asked.own]
        return [*photos(samples, self.model.config.image_rule, self.progress), *hostile_frames()]

    def say_how_long(self, graph: EncoderGraph, pictures: Sequence[Picture]) -> None:
        """Tells what will be done, and about how long that takes here."""
        config, sides = self.model.config, self.asked.sides
        length = sum(map(len, encode_prompt(tokenizer_of(self.model), pictures[0].prompt, config.prompt)))
        positions = len(pictures) * (config.vision.tokens_at(sides[0]) + length) + longest(config.text)
        seconds = encoder_seconds(graph, len(pictures), sides)
        seconds += decoder_seconds(config.text, positions)
        self.progress.note(
            f"scanning {len(pictures)} pictures at {', '.join(map(str, sides))} pixels, and prompts of about "
            f"{positions:,} positions: about {in_words(seconds)} here"
        )

    def result(
        self, mark: str, pictures: Sequence[Picture], prompts: Sequence[Prompt], tally: Tally,
        sites: Mapping[str, tuple[str, ...]],
    ) -> Ranges:  # fmt: skip
        """Puts together what was found."""
        return Ranges(
            mark, self.asked.sides,
            tuple(picture.name for picture in pictures),
            tuple(prompt.name for prompt in prompts),
            sum(prompt.length for prompt in prompts),
            self.asked.calibration,
            tally.tensors(),
            sites,
        )  # fmt: skip
