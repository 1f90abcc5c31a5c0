"""`load_checkpoint`: from a folder in any known layout to the reference model.

The way through: open the folder, give every tensor our name, fuse what was never fused, read the sizes, build the
model without memory, compare all names and shapes at once, then read each tensor exactly once into its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastvlm.errors import CheckpointError, ConfigError, TensorError, TokenizerError
from fastvlm.progress import SILENT, Progress
from fastvlm.quoting import printable
from fastvlm_ref.checkpoint.hub import on_disk
from fastvlm_ref.checkpoint.opening import Opened, folder_of, open_checkpoint
from fastvlm_ref.checkpoint.sizes import vision_config
from fastvlm_ref.checkpoint.statements import Statements
from fastvlm_ref.checkpoint.stream import StreamedEmbedding, attach
from fastvlm_ref.checkpoint.tensors import COUNTER, FLOATS, LazyTensor, same_values
from fastvlm_ref.checkpoint.text_config import family, model_type, text_config
from fastvlm_ref.config import FastVLMConfig, PromptConfig
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.prompt import encode_prompt, stop_ids
from fastvlm_ref.tokenizer import Tokenizer, load_tokenizer

EMBEDDING, HEAD = "decoder.embed_tokens.weight", "decoder.lm_head.weight"
QKV = re.compile(r"decoder\.layers\.\d+\.self_attn\.[qkv]_proj\.(weight|bias)$")
LEAST_TENSORS = 9  # of a decoder layer
MOST_NAMED = 60  # problems that one error lists


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
    """Returns the model in a checkpoint folder, the embedded one ("tiny") or a Hub id's: float32, eval, no gradients.

    `stream` leaves the decoder's weights in the file until they are used; `base` is the checkpoint that a LoRA adapter
    at `path` was trained on, `allow_pickle` lets its pickle be opened; the rest overrides what the checkpoint states.
    Raises CheckpointError (ConfigError, TensorError, TokenizerError, HubError) saying what was found and what was
    expected, UsageError for options that do not fit together, OutputError where a download does not fit.
    """
    found = on_disk(path, progress)
    with _naming(path, found):
        return _load(found, stream, base, allow_pickle, image_rule, template, system, progress)


@contextmanager
def _naming(path: str | Path, found: str | Path) -> Iterator[None]:
    """Puts the checkpoint's name before errors about its content, which are found where no path is known."""
    try:
        yield
    except (ConfigError, TensorError, TokenizerError) as error:
        named = rf"(?:^|\s){re.escape(str(folder_of(found)))}(?:[/:\s]|$)"
        if re.search(named, str(error)):
            raise
        raise type(error)(f"{path}: {error}") from error


def _load(
    path: str | Path, stream: bool, base: str | Path | None, allow_pickle: bool, image_rule: str | None,
    template: str | None, system: str | None, progress: Progress,
) -> FastVLM:  # fmt: skip
    opened = open_checkpoint(path, base, allow_pickle, progress)
    config = read_config(opened, image_rule=image_rule, template=template, system=system)
    tokenizer = _tokenizer(opened, config)
    with torch.device("meta"):
        model = FastVLM(config)
    check_tensors(model, opened)
    if stream:
        _stream_decoder(model, opened.fused.tensors)
    fill(model, opened.fused.tensors, progress)
    told = {"image_rule": image_rule, "template": template and config.prompt.template, "system": system}
    _dress(model, opened, tokenizer, {name: value for name, value in told.items() if value is not None})
    for note in (*opened.notes, *model.config.assumed):
        progress.note(note)
    return model


def read_config(opened: Opened, *, image_rule: str | None, template: str | None, system: str | None) -> FastVLMConfig:
    """Returns everything that config.json, its neighbours and the tensors' shapes say about the model."""
    tensors, kind = opened.fused.tensors, model_type(opened.config)
    _check_parts(opened, tensors)
    said = Statements(opened.folders, opened.config, opened.layout, family(opened.config))
    said.check()
    tied, tied_note = _tied_head(opened.config, tensors)
    text, text_notes = text_config(opened.config, _has_qkv_bias(tensors), tied)
    said.assumed += text_notes + tied_note
    if text.layers * LEAST_TENSORS > len(tensors):  # a number alone must cost neither memory nor time
        raise ConfigError(f"config.json has num_hidden_layers {text.layers}, the folder holds {len(tensors)} tensors")
    name = said.template(template)
    prompt = PromptConfig(name, said.system(system, name), tuple(said.end_ids()), said.image_token_id())
    rule = said.image_rule(image_rule)
    vision = vision_config(tensors, said.image_size())
    return FastVLMConfig(kind, vision, text, prompt, rule, said.licence(), tuple(said.assumed))


def _check_parts(opened: Opened, tensors: Mapping[str, LazyTensor]) -> None:
    """Raises CheckpointError when a whole part of the model is absent, which is another mistake than a lost tensor."""
    parts = {"vision_encoder.": "vision tower", "projector.": "projector", "decoder.": "language model"}
    absent = [name for prefix, name in parts.items() if not any(tensor.startswith(prefix) for tensor in tensors)]
    if "vision tower" in absent:
        raise CheckpointError(
            f"{opened.folders[-1]} holds no {' and no '.join(absent)}; expected a whole checkpoint "
            "(Apple's MLX downloads hold the language model only: use the PyTorch one)"
        )
    if absent:
        raise CheckpointError(
            f"{opened.folders[-1]} holds no {' and no '.join(absent)}; expected a whole FastVLM checkpoint"
        )


def _has_qkv_bias(tensors: Mapping[str, LazyTensor]) -> bool:
    """Whether at least half of the queries, keys and values have one, so that the others are then missing or extra."""
    found = [QKV.match(name) for name in tensors]
    parts = [match[1] for match in found if match]
    return 0 < parts.count("weight") <= 2 * parts.count("bias")


def _tied_head(config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> tuple[bool, list[str]]:
    """Tells whether head and embedding are one tensor, by comparing them; the flag is only remarked upon."""
    stated = config.get("tie_word_embeddings")
    if HEAD not in tensors:
        note = "no lm_head is stored although tie_word_embeddings is false: the embedding table is used as the head"
        return True, [note] if stated is False else []
    if EMBEDDING not in tensors:
        return False, []
    tied = same_values(tensors[HEAD], tensors[EMBEDDING])
    note = "tie_word_embeddings is true but the stored lm_head differs from the embedding table: lm_head is used"
    return tied, [note] if stated is True and not tied else []


def check_tensors(model: FastVLM, opened: Opened) -> None:
    """Raises one TensorError that lists the missing, extra, misshapen and mistyped tensors, expected and found."""
    tensors, problems, broken = opened.fused
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items() if not name.endswith(COUNTER)}
    if model.config.text.tied_head:
        del wanted[HEAD]
    missing = [
        f"missing {name} {list(shape)}" for name, shape in wanted.items() if name not in tensors and name not in broken
    ]
    misshapen = [
        f"misshapen {name}: expected {list(shape)}, found {list(tensors[name].shape)}"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]
    mistyped = [
        f"mistyped {name}: is {tensors[name].dtype}, expected one of {', '.join(FLOATS)}; quantised ones are not read"
        for name in wanted
        if name in tensors and tensors[name].dtype not in FLOATS
    ]
    known = {*wanted, HEAD} if model.config.text.tied_head else wanted.keys()
    extra = [
        f"extra {printable(name, 160)} {list(tensor.shape)}" for name, tensor in tensors.items() if name not in known
    ]
    found = [*problems, *missing, *misshapen, *mistyped, *extra]
    if found:
        more = [f"and {len(found) - MOST_NAMED} more"] if len(found) > MOST_NAMED else []
        listed = "; ".join([*found[:MOST_NAMED], *more])
        raise TensorError(
            f"{len(found)} tensor{'s do' if len(found) > 1 else ' does'} not fit the model that config.json describes; "
            f"fetch both again, or take the config.json that belongs to these weights: {listed}"
        )


def fill(model: FastVLM, tensors: Mapping[str, LazyTensor], progress: Progress) -> None:
    """Reads every tensor that does not stream into its place in a model on the meta device; there is no second copy."""
    streamed = _streamed_names(model)
    skipped = {HEAD} if model.config.text.tied_head else set()
    names = [name for name in model.state_dict() if not name.endswith(COUNTER) and name not in streamed | skipped]
    with progress.stage("reading checkpoint", len(names)) as advance:
        for name in names:
            _place(model, name, tensors[name].read())
            advance(1)
    if model.config.text.tied_head and HEAD not in streamed:
        model.decoder.lm_head.weight = model.decoder.embed_tokens.weight
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = torch.zeros((), dtype=torch.int64)
    model.eval().requires_grad_(False)


def _place(model: nn.Module, name: str, value: torch.Tensor) -> None:
    """Puts a value where the parameter or buffer `name` stands; plain assignment, so that its memory is not copied."""
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    if leaf in module._buffers:
        module._buffers[leaf] = value
    else:
        module._parameters[leaf] = nn.Parameter(value, requires_grad=False)


def _streams(model: FastVLM) -> dict[str, nn.Module]:
    decoder = model.decoder
    layers = {f"decoder.layers.{index}.": layer for index, layer in enumerate(decoder.layers)}
    return layers | {"decoder.lm_head.": decoder.lm_head, "decoder.embed_tokens.": decoder.embed_tokens}


def _stream_decoder(model: FastVLM, tensors: Mapping[str, LazyTensor]) -> None:
    """Ties the weights of layers, head and embedding table to the file instead of reading them."""
    table = tensors[EMBEDDING]
    model.decoder.embed_tokens = StreamedEmbedding(model.config.text, table)
    for prefix, module in _streams(model).items():
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if prefix == "decoder.lm_head." and model.config.text.tied_head:
            own = {"weight": table}
        attach(module, own, on_forward=not isinstance(module, StreamedEmbedding))


def _streamed_names(model: FastVLM) -> set[str]:
    if not isinstance(model.decoder.embed_tokens, StreamedEmbedding):
        return set()
    return {prefix + name for prefix, module in _streams(model).items() for name, _ in module.named_parameters()}


def _tokenizer(opened: Opened, config: FastVLMConfig) -> Tokenizer:
    """Returns the tokenizer of the first folder that has one, knowing the prompt's template and stop ids."""
    marks = ("tokenizer.json", "vocab.json", "tokenizer.model")
    holders = [folder for folder in opened.folders if any((folder / name).is_file() for name in marks)]
    tokenizer = load_tokenizer((holders or list(opened.folders))[0], config.text.vocab_size)
    tokenizer.prompt = replace(config.prompt, stop_ids=stop_ids(tokenizer, config.prompt))
    encode_prompt(tokenizer, "x")  # a tokenizer without the template's control tokens belongs to another model
    if not tokenizer.prompt.stop_ids:
        raise TokenizerError(
            f"nothing would end an answer: neither the checkpoint nor template {config.prompt.template} names a stop "
            "token that the tokenizer has; state eos_token_id in generation_config.json, or choose another --template"
        )
    return tokenizer


def _dress(model: FastVLM, opened: Opened, tokenizer: Tokenizer, told: Mapping[str, str]) -> None:
    """Adds what belongs to the model besides its numbers: tokenizer, source, stop ids, all that was assumed."""
    config = model.config
    prompt = tokenizer.prompt or config.prompt
    model.config = replace(config, prompt=prompt, assumed=config.assumed + tokenizer.assumed)
    model.tokenizer, model.source = tokenizer, replace(opened.source, options=tuple(told.items()))
