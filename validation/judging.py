"""`fastvlm validate`: does this build compute what its checkpoint computes?

Order of things: the files against the manifest, the reference against the manifest's source, then the comparison.
Everything runs on one thread, because torch's convolutions give other bytes on two, and what is stored must be the
same for the same build. A failed verdict is written too, and removes an older `selftest/`: nothing calls that build
good any more.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fastvlm.errors import UsageError
from fastvlm.hashes import sha256_file
from fastvlm.manifest import NAME as MANIFEST
from fastvlm.manifest import check_files, dump, read_manifest
from fastvlm.progress import SILENT, Progress
from fastvlm.publish import replace_file
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.tokenizer import Tokenizer
from validation.comparison import Comparison
from validation.samples import Sample, samples_in, shipped_samples
from validation.selftest import FOLDER as SELFTEST
from validation.selftest import work_example, write_selftest
from validation.verdict import FILE, Verdict

STEPS = 32


def validate(
    build: str | Path, reference: str | Path | None = None, *, images: str | Path | None = None, backend: str = "mil",
    steps: int = STEPS, progress: Progress = SILENT, **checkpoint_options: Any,
) -> Verdict:
    """Compares a build folder with its checkpoint and writes `validation.json` (and `selftest/` when it passes).

    `reference` may be left out for builds of the embedded checkpoint. `images` is a folder of pictures to use in
    place of the shipped ones; `checkpoint_options` are what reading the checkpoint needs (`base`, `allow_pickle`).
    Raises BuildError (files missing or changed), UsageError (a reference that is not the build's source), and
    whatever loading the checkpoint raises.
    """
    build = Path(build)
    manifest = read_manifest(build)
    check_files(build, manifest)
    samples = shipped_samples() if images is None else samples_in(Path(images))
    with _one_thread():
        model, tokenizer = _load_reference(manifest, reference, progress, checkpoint_options)
        comparison = Comparison(build, model, tokenizer, backend, steps, progress)
        rows, answers = comparison.run(samples)
        hashes = {name: row["sha256"] for name, row in manifest["source"]["files"].items()}
        manifest_hash = sha256_file(build / MANIFEST)
        verdict = Verdict(rows, answers, backend, steps, manifest_hash, hashes, build / FILE)
        _publish(verdict, build, comparison, samples[0])
    return verdict


def _load_reference(
    manifest: dict[str, Any], reference: str | Path | None, progress: Progress, options: dict[str, Any]
) -> tuple[FastVLM, Tokenizer]:
    """Loads the checkpoint with what was asked for at the export; raises UsageError where it is another one."""
    source = manifest["source"]
    if reference is None:
        if source["id"] != "tiny":
            raise UsageError(f"this build was made from {source['id']}; name that checkpoint: --reference CHECKPOINT")
        reference = "tiny"
    model = load_checkpoint(reference, progress=progress, **source.get("options", {}), **options)
    if model.source is None or model.tokenizer is None:
        raise UsageError(f"{reference} has no source or no tokenizer")
    found, expected = model.source.files(), source["files"]
    different = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if different:
        raise UsageError(
            f"{reference} is not what this build was made from ({', '.join(different[:5])} differ); "
            f"give the checkpoint {source['id']} it was exported from, or export again"
        )
    return model, model.tokenizer


def _publish(verdict: Verdict, build: Path, comparison: Comparison, sample: Sample) -> None:
    """Writes validation.json last, so that a passed verdict never stands beside a self-test of another build."""
    if verdict.passed and verdict.answers:
        pixels = comparison.pixels(sample.picture, comparison.package.image_size)
        ids = comparison.ids(sample.prompt)
        stop_ids, steps = comparison.stop_ids, comparison.steps
        write_selftest(build, work_example(comparison.reference, sample.prompt, pixels, ids, stop_ids, steps))
    elif (build / SELFTEST).is_dir():
        shutil.rmtree(build / SELFTEST)
    replace_file(verdict.path, dump(verdict.as_json()))


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
