"""Fine-tuning any checkpoint on a user's rows with the same loop, and writing the result as a LLaVA folder.

Notable choices:
- the result keeps the base's licence: its licence files are copied and its card says what it was made from;
- the sizes stay those of the checkpoint; learning rates are far below those of the recipe, as in the paper's stage 3.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fastvlm.errors import UsageError
from fastvlm.hashes import sha256_bytes
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.checkpoint.load import read_config
from fastvlm_ref.checkpoint.opening import open_checkpoint
from fastvlm_ref.checkpoint.source import Source, licence_files
from fastvlm_ref.config import PromptConfig
from fastvlm_ref.files import copy_file
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.prompt import find_template
from fastvlm_ref.training.loop import train_stage
from fastvlm_ref.training.rows import UserRows, read_rows, rows_hash
from fastvlm_ref.training.saving import save_llava
from fastvlm_ref.training.stages import STAGES, Stage
from fastvlm_ref.training.state import StateFile

AMLR = "apple-amlr"
AMLR_SENTENCE = (
    "Apple Machine Learning Research Model is licensed under the "
    "Apple Machine Learning Research Model License Agreement."
)


def finetune(
    checkpoint: str | Path, data: Path, work: Path, *, stage: Stage, image_size: int | None = None,
    progress: Progress = SILENT, **reading: Any,
) -> FastVLM:  # fmt: skip
    """Returns the trained model in eval mode; `image_size` None keeps the checkpoint's own side.

    `reading` are further options of `load_checkpoint`. Raises UsageError for rows that cannot be used, CheckpointError
    as `load_checkpoint` does, and where the state in `work` is damaged or was made from anything else.
    """
    rows = read_rows(data)
    model = load_checkpoint(checkpoint, progress=progress, **reading)
    assert model.tokenizer is not None
    side = image_size or model.config.vision.image_size
    if side % model.config.vision.stride:
        raise UsageError(f"--image-size is {side}, expected a multiple of {model.config.vision.stride}")
    stage = replace(stage, image_size=side)
    made_from = {"rows": rows_hash(rows, progress), **_identity(model, progress)}
    source = UserRows(rows, model.tokenizer, model.config)
    source.check(side, progress)
    save_every = min(200, max(10, stage.steps // 10))
    train_stage(model, stage, source, work, made_from=made_from, save_every=save_every, progress=progress)
    model.config = replace(model.config, vision=replace(model.config.vision, image_size=side))
    return model.eval()


def _identity(model: FastVLM, progress: Progress) -> dict[str, str]:
    """Returns what tells one checkpoint from another, and what its rows go through."""
    assert model.source is not None
    files = {name: file["sha256"] for name, file in model.source.files(progress).items()}
    return {
        "checkpoint": sha256_bytes(json.dumps(files, sort_keys=True).encode()),
        "image rule": model.config.image_rule,
        "prompt": json.dumps(asdict(model.config.prompt), sort_keys=True),
    }


def finetune_stage(name: str, steps: int | None, rows_a_step: int | None, rate: float | None) -> Stage:
    """Returns a stage that learns from pictures and answers, with the user's numbers in place of its own."""
    known = {name: stage for name, stage in STAGES.items() if stage.objective == "answers"}
    if name not in known:
        raise UsageError(f"--stage {name} is no stage that learns from rows; choose one of {', '.join(sorted(known))}")
    stage = known[name]
    rows = rows_a_step or stage.pictures
    vision_rate = stage.vision_rate * rate / stage.rate if rate and stage.vision_rate else stage.vision_rate
    return replace(
        stage, steps=steps or stage.last_step, ends_at=None, pictures=rows, questions=1, rate=rate or stage.rate,
        vision_rate=vision_rate, replicas=min(stage.replicas, rows),
    )  # fmt: skip


def end_run(work: Path, stage: Stage) -> None:
    """Removes the state of a run whose result is published: it is large, and the next run begins anew."""
    StateFile(work, stage, {}).remove()


def write_finetuned(model: FastVLM, folder: Path) -> None:
    """Writes the LLaVA folder with the base's licence files and a card that names the base."""
    assert model.tokenizer is not None
    assert model.source is not None
    save_llava(model, model.tokenizer, folder)
    licence = model.config.licence
    _copy_licences(model.source, folder)
    said = f"\n{AMLR_SENTENCE}\nNon-commercial research only.\n" if licence == AMLR else ""
    (folder / "README.md").write_text(
        f"---\nlicense: {licence}\n---\nA derivative of {model.source.id}, fine-tuned with `fastvlm train`.\n"
        f"Its licence is that of the model it was made from: {licence}.\n{said}",
        encoding="utf-8",
    )


def unstated(model: FastVLM, folder: Path) -> list[str]:
    """Returns the options with which `folder` must be read because it cannot state them: template, system text."""
    wanted, options = model.config.prompt, []
    opened = open_checkpoint(folder, None, False)
    read = read_config(opened, image_rule=None, template=None, system=None).prompt
    if read.template != wanted.template:
        options += ["--template", wanted.template]
        read = read_config(opened, image_rule=None, template=wanted.template, system=None).prompt
    if _system(read) != _system(wanted):
        options += ["--system", _system(wanted)]
    return options


def _system(prompt: PromptConfig) -> str:
    return find_template(prompt.template).system if prompt.system is None else prompt.system


def _copy_licences(source: Source, folder: Path) -> None:
    """Copies the licence texts of what the weights came from; a LoRA's base adds its own, renamed where two collide."""
    for origin, prefix in ((source, ""), (source.base, "LICENSE_of_base_")):
        for file in licence_files(origin.folder) if origin is not None else ():
            taken = (folder / file.name).exists()
            copy_file(file, folder / f"{prefix if taken else ''}{file.name}")
