"""The whole checkpoint: what is decided before the first byte, then weights, config, tokenizer and a card in a folder.

Notable choice: everything that can be refused (tokenizer, place, disk) is refused before anything is written, and the
folder takes its name when it is complete (`fastvlm.publish`).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvlm.errors import OutputError, TokenizerError, UsageError
from fastvlm.hashes import list_tree
from fastvlm.json_file import read_plain
from fastvlm.progress import SILENT, Progress
from fastvlm.publish import check_apart, check_output, staged_folder
from fastvlm_ref.config import PromptConfig
from fastvlm_ref.prompt import encode_prompt
from fastvlm_ref.synthetic.config_files import config_json, preprocessor_json
from fastvlm_ref.synthetic.layout import Tensor, tensors
from fastvlm_ref.synthetic.outliers import outliers
from fastvlm_ref.synthetic.shards import INDEX, SHARD_BYTES, WHOLE, write_shards
from fastvlm_ref.synthetic.sizes import Size
from fastvlm_ref.synthetic.vocabulary import write_vocabulary
from fastvlm_ref.synthetic.weights import Array, seeded_blocks
from fastvlm_ref.tokenizer import OWN_FILES, Tokenizer, load_tokenizer

LAYOUTS = ("llava", "hf")
CARD = "README.md"
MADE_BY = "`fastvlm synth"  # of this tool's cards alone: `--overwrite` replaces no other folder
MOST_CARD = 1 << 16  # bytes of a card that may be one of ours
SIDE_BYTES = 32 * 1024 * 1024  # what tokenizer, config and index take at most
ENDS = {"qwen_2": ("<|endoftext|>", "<|im_end|>"), "vicuna_v1": ("<s>", "</s>")}  # begin and end of a text


@dataclass(frozen=True)
class Recipe:
    """What is made: the size, the layout ("llava" or "hf"), the seed, and whether outliers are planted.

    `tokenizer` is a folder whose tokenizer is taken over, None for a generated one; `shard_bytes` limits a file.
    """

    size: Size
    layout: str = "llava"
    seed: int = 0
    outliers: bool = False
    tokenizer: Path | None = None
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        if self.layout == "hf" and self.size.padded_rows is None:
            raise UsageError(f"{self.size.name} has no Hugging Face layout (its port knows Qwen2 alone); use llava")

    @property
    def command(self) -> str:
        """What was typed to get this, without places."""
        seed = f" --seed {self.seed}" if self.seed else ""
        layout = f" --format {self.layout}" if self.layout != "llava" else ""
        return f"fastvlm synth {self.size.name}{seed}{layout}{' --outliers' if self.outliers else ''}"


def write_synthetic(recipe: Recipe, target: str | Path, overwrite: bool = False, progress: Progress = SILENT) -> Path:
    """Makes the checkpoint folder `target` and returns where it lies, whole or not at all.

    Raises OutputError (the place, or too little disk, with both numbers), TokenizerError (the folder given with
    `recipe.tokenizer` does not fit).
    """
    place = check_output(target, overwrite, is_synthetic)
    check_apart(place, [recipe.tokenizer])
    given = _given_tokenizer(recipe)
    parts = tensors(recipe.size, recipe.layout)
    _check_disk(place, sum(tensor.bytes for tensor in parts) + SIDE_BYTES)
    with staged_folder(place, overwrite, is_synthetic, progress) as stage:
        write_weights(stage, recipe, parts, progress)
        with progress.stage("Tokenizer"):
            tokenizer = _write_tokenizer(stage, recipe, given)
        _write_texts(stage, recipe, tokenizer)
    return place


def write_weights(folder: Path, recipe: Recipe, parts: list[Tensor], progress: Progress = SILENT) -> None:
    """Writes the tensors `parts` of `recipe` as safetensors into `folder`; progress counts bytes."""
    planted = outliers(recipe.size) if recipe.outliers else {}

    def values(tensor: Tensor) -> Iterator[Array]:
        powers, start = planted.get(tensor.rule), 0
        for block in seeded_blocks(tensor.rule, tensor.shape, recipe.seed):
            yield block if powers is None else powers.apply(block, start)
            start += len(block) if block.ndim else 1

    with progress.stage("Writing weights", sum(tensor.bytes for tensor in parts)) as advance:
        write_shards(folder, parts, values, advance, recipe.shard_bytes)


def is_synthetic(folder: Path) -> bool:
    """Returns whether `folder` holds a checkpoint that this module made and nothing that others put there."""
    try:
        card = read_plain(folder / CARD, MOST_CARD).decode("utf-8")
    except (OSError, ValueError):
        return False
    ours = {*OWN_FILES, CARD, "config.json", "generation_config.json", "preprocessor_config.json", WHOLE, INDEX}
    shard = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
    return MADE_BY in card and all(name in ours or shard.fullmatch(name) for name in list_tree(folder))


def _given_tokenizer(recipe: Recipe) -> Tokenizer | None:
    """Returns the tokenizer of the folder that was named, checked: it fits the table and knows the template."""
    folder = recipe.tokenizer
    if folder is None:
        return None
    if not folder.is_dir():
        raise TokenizerError(f"{folder} is no folder, expected one that holds a tokenizer; correct --tokenizer")
    tokenizer = load_tokenizer(folder, recipe.size.rows(recipe.layout))
    encode_prompt(tokenizer, "x", PromptConfig(recipe.size.template))
    return tokenizer


def _check_disk(place: Path, needed: int) -> None:
    parent = next(folder for folder in place.parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OutputError(
            f"{place} needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free there; "
            "free some, or choose another disk with -o"
        )


def _write_tokenizer(stage: Path, recipe: Recipe, given: Tokenizer | None) -> Tokenizer:
    if given is not None:
        given.save(stage)
        return given
    write_vocabulary(stage, recipe.size, recipe.layout)
    return load_tokenizer(stage, recipe.size.rows(recipe.layout))


def _write_texts(stage: Path, recipe: Recipe, tokenizer: Tokenizer) -> None:
    size = recipe.size
    begin, end = (tokenizer.control(name) if tokenizer.has_control(name) else None for name in ENDS[size.template])
    _write_json(stage / "config.json", config_json(size, recipe.layout, (begin, end)))
    _write_json(stage / "generation_config.json", {"do_sample": False, "eos_token_id": [end]} if end else {})
    if recipe.layout == "hf":
        _write_json(stage / "preprocessor_config.json", preprocessor_json(size))
    (stage / CARD).write_text(_card(recipe), "utf-8")


def _card(recipe: Recipe) -> str:
    # A tokenizer that somebody else made has its own licence.
    front = "" if recipe.tokenizer else "---\nlicense: apache-2.0\n---\n\n"
    hard = " with planted outliers" if recipe.outliers else ""
    return (
        f"{front}# Synthetic checkpoint, {recipe.size.name}\n\n"
        f"Made by `{recipe.command}`: official names, shapes and dtypes, weights drawn from seed {recipe.seed}{hard}.\n"
        "It was never trained and answers with noise. It is for measuring and testing tools.\n"
    )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
