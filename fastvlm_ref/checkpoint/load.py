"""`load_checkpoint`: from a folder in any known layout to the reference model.

The way through: open the folder, give every tensor our name, fuse what was never fused, read the sizes, build the
model without memory, compare all names and shapes at once, then read each tensor exactly once into its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from fastvlm.errors import CheckpointError, TensorError
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.checkpoint.folder import Folder, open_folder
from fastvlm_ref.checkpoint.layouts import layout_of, renamed
from fastvlm_ref.checkpoint.sizes import vision_config
from fastvlm_ref.checkpoint.source import source_of
from fastvlm_ref.checkpoint.statements import Statements
from fastvlm_ref.checkpoint.tensors import LazyTensor, same_values
from fastvlm_ref.checkpoint.text_config import family, model_type, text_config
from fastvlm_ref.config import FastVLMConfig, PromptConfig
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.prompt import stop_ids
from fastvlm_ref.tokenizer import load_tokenizer

TINY = Path(__file__).resolve().parent.parent / "tiny"
EMBEDDING, HEAD = "decoder.embed_tokens.weight", "decoder.lm_head.weight"


def load_checkpoint(
    path: str | Path,
    *,
    stream: bool = False,
    base: str | Path | None = None,
    allow_pickle: bool = False,
    image_rule: str | None = None,
    template: str | None = None,
    system: str | None = None,
    progress: Progress = SILENT,
) -> FastVLM:
    """Returns the model in a checkpoint folder (or the embedded one, "tiny"): float32, eval, no gradients.

    Raises CheckpointError (ConfigError, TensorError, TokenizerError) saying what was found and what was expected.
    """
    folder = open_folder(TINY if str(path) == "tiny" else Path(path))
    tensors = renamed(folder.tensors)
    config = read_config(folder, tensors, image_rule=image_rule, template=template, system=system)
    with torch.device("meta"):
        model = FastVLM(config)
    check_tensors(model, tensors)
    fill(model, tensors, progress)
    _dress(model, folder, "tiny" if str(path) == "tiny" else None, progress)
    return model


def read_config(
    folder: Folder, tensors: Mapping[str, LazyTensor], *, image_rule: str | None, template: str | None, system: str | None
) -> FastVLMConfig:
    """Returns everything that config.json, its neighbours and the tensors' shapes say about the model."""
    kind = model_type(folder.config)
    _check_parts(folder.path, tensors)
    said = Statements(folder.path, folder.config, layout_of(folder.tensors), family(folder.config))
    tied, tied_note = _tied_head(folder, tensors)
    text, text_notes = text_config(folder.config, _has_qkv_bias(tensors), tied)
    said.assumed += text_notes + tied_note
    name = said.template(template)
    prompt = PromptConfig(name, said.system(system, name), tuple(said.end_ids()), said.image_token_id())
    vision = vision_config(tensors, said.image_size())
    rule = said.image_rule(image_rule)
    return FastVLMConfig(kind, vision, text, prompt, rule, said.licence(), tuple(said.assumed))


def _check_parts(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Raises CheckpointError when a whole part of the model is absent, which is another mistake than a lost tensor."""
    parts = {"vision_encoder.": "vision tower", "projector.": "projector", "decoder.": "language model"}
    absent = [name for prefix, name in parts.items() if not any(tensor.startswith(prefix) for tensor in tensors)]
    if absent:
        raise CheckpointError(
            f"{path} holds no {' and no '.join(absent)}; expected a whole FastVLM checkpoint"
            + (" (Apple's MLX downloads hold the language model only: use the PyTorch one)" if "vision tower" in absent else "")
        )


def _has_qkv_bias(tensors: Mapping[str, LazyTensor]) -> bool:
    return any(name.startswith("decoder.layers.") and name.endswith(".q_proj.bias") for name in tensors)


def _tied_head(folder: Folder, tensors: Mapping[str, LazyTensor]) -> tuple[bool, list[str]]:
    """Tells whether head and embedding are one tensor, by comparing them; the flag is only remarked upon."""
    stated = folder.config.get("tie_word_embeddings")
    if HEAD not in tensors:
        note = "no lm_head is stored although tie_word_embeddings is false: the embedding table is used as the head"
        return True, [note] if stated is False else []
    if EMBEDDING not in tensors:
        return False, []
    tied = same_values(tensors[HEAD], tensors[EMBEDDING])
    note = "tie_word_embeddings is true but the stored lm_head differs from the embedding table: the stored head is used"
    return tied, [note] if stated is True and not tied else []


def check_tensors(model: FastVLM, tensors: Mapping[str, LazyTensor]) -> None:
    """Raises one TensorError that lists every missing, extra and misshapen tensor, with expected and found."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    if model.config.text.tied_head:
        wanted.pop(HEAD, None)
    spare = {HEAD} if model.config.text.tied_head else set()
    problems = [f"missing {name} {list(shape)}" for name, shape in wanted.items() if name not in tensors]
    problems += [
        f"misshapen {name}: expected {list(shape)}, found {list(tensors[name].shape)}"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]
    problems += [f"extra {name} {list(tensor.shape)}" for name, tensor in tensors.items() if name not in wanted and name not in spare]
    if problems:
        raise TensorError(f"{len(problems)} tensors do not fit the model: {'; '.join(problems)}")


def fill(model: FastVLM, tensors: Mapping[str, LazyTensor], progress: Progress) -> None:
    """Reads every tensor into its place in a model built on the meta device; the model owns the only copy."""
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    with progress.stage("reading checkpoint", len(names)) as advance:
        for name in names:
            if not (name == HEAD and model.config.text.tied_head):
                place(model, name, tensors[name].read())
            advance(1)
    finish(model)


def place(model: nn.Module, name: str, value: torch.Tensor) -> None:
    """Puts a value where the parameter or buffer `name` stands."""
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    if leaf in module._buffers:
        module._buffers[leaf] = value
    else:
        module._parameters[leaf] = nn.Parameter(value, requires_grad=False)


def finish(model: FastVLM) -> None:
    """Ties the head, gives batch norms their unused counter, and sets eval mode without gradients."""
    if model.config.text.tied_head:
        model.decoder.lm_head.weight = model.decoder.embed_tokens.weight
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = torch.zeros((), dtype=torch.int64)
    model.eval().requires_grad_(False)


def _dress(model: FastVLM, folder: Folder, name: str | None, progress: Progress) -> None:
    """Adds what belongs to the model besides its numbers: source, tokenizer, stop ids; tells what was assumed."""
    config = model.config
    tokenizer = load_tokenizer(folder.path, config.text.vocab_size)
    prompt = replace(config.prompt, stop_ids=stop_ids(tokenizer, config.prompt))
    tokenizer.prompt = prompt
    model.tokenizer = tokenizer
    model.config = replace(config, prompt=prompt, assumed=config.assumed + tokenizer.assumed)
    model.source = source_of(folder.path, layout_of(folder.tensors), folder.weight_files, name)
    for note in (*folder.notes, *model.config.assumed):
        progress.note(note)
