"""The numbers of a checkpoint: config.json, and the names and shapes in the headers of its weight files.

No weights are read and nothing is fetched: a folder that holds config.json alone is enough, and what only tensors tell
(the tower's sizes, the biases of q, k and v) is then taken to be as in Apple's, which is told. Where there are tensors,
the decoder's must be those that config.json describes: an export would refuse them too.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastvlm.errors import CheckpointError, ConfigError, HubError, TensorError, UsageError
from fastvlm_ref.checkpoint.folder import check_folder, open_folder, read_json
from fastvlm_ref.checkpoint.fuse import fuse
from fastvlm_ref.checkpoint.hub import HubId, cached_file, hub_id
from fastvlm_ref.checkpoint.layouts import layout_of, renamed
from fastvlm_ref.checkpoint.lora import CONFIG as ADAPTER
from fastvlm_ref.checkpoint.lora import is_adapter
from fastvlm_ref.checkpoint.opening import TINY
from fastvlm_ref.checkpoint.sizes import vision_config
from fastvlm_ref.checkpoint.source import EMBEDDED
from fastvlm_ref.checkpoint.statements import Statements
from fastvlm_ref.checkpoint.tensors import LazyTensor
from fastvlm_ref.checkpoint.text_config import QWEN2, family, model_type, text_config
from fastvlm_ref.config import TextConfig, VisionConfig
from fastvlm_ref.shapes import decoder_shapes
from validation.fit.sizes import ACCEPTED, Sizes

CONFIG = "config.json"
DECODER, HEAD = "decoder.", "lm_head.weight"
MOST_LAYERS = 1000  # no decoder has as many: a number in config.json alone must not cost time
LISTED = 3  # tensors that an error names


def read_sizes(target: str | Path) -> Sizes:
    """Returns the sizes of a checkpoint folder, the embedded one ("tiny") or a Hub id that is in the cache.

    Raises CheckpointError, ConfigError or TensorError for what is no checkpoint, describes none or contradicts itself,
    HubError for an id whose config.json is not in the cache, UsageError for a LoRA adapter alone.
    """
    folder = _folder(target)
    if not folder.exists():
        raise CheckpointError(f"no such folder: {folder}; expected {ACCEPTED}")
    check_folder(folder)
    if is_adapter(folder):
        raise UsageError(
            f"{folder} is a LoRA adapter, which has its base's sizes; give fit the base checkpoint{_named_base(folder)}"
        )
    config, tensors = read_json(folder / CONFIG), _tensors(folder)
    vision, text, assumed = _described(folder, config, tensors)
    return Sizes(str(target), "checkpoint", vision, text, str(target), tuple(assumed))


def _named_base(folder: Path) -> str:
    """What an adapter says of its base, in words; nothing where it says nothing."""
    named = read_json(folder / ADAPTER).get("base_model_name_or_path")
    return f", which it calls {named}" if isinstance(named, str) and named else ""


def _folder(target: str | Path) -> Path:
    if target == EMBEDDED:
        return TINY
    asked = hub_id(target)
    return Path(target) if asked is None else _cached(asked)


def _cached(asked: HubId) -> Path:
    """The snapshot in the Hub's cache that holds the id's config.json; the network is not asked."""
    found = cached_file(asked, CONFIG)
    if found is not None:
        return found.parent
    revision = ["--revision", asked.revision] if asked.revision else []
    raise HubError(
        f"{asked} is no folder here, and its {CONFIG} is not in the Hub's cache; "
        f"`{shlex.join(['hf', 'download', asked.repo, CONFIG, *revision])}` fetches that file alone, or name a size: "
        "0.5b, 1.5b, 7b"
    )


def _tensors(folder: Path) -> dict[str, LazyTensor] | None:
    """Names and shapes by our names, None where the folder holds no weights."""
    if not any(folder.glob("*.safetensors")):
        return None
    return fuse(renamed(open_folder(folder).tensors)).tensors


def _described(
    folder: Path, config: dict[str, Any], tensors: dict[str, LazyTensor] | None
) -> tuple[VisionConfig, TextConfig, list[str]]:
    kind = family(config)
    model_type(config)
    layout = "llava" if tensors is None else layout_of(list(tensors))
    said = Statements((folder,), config, layout, kind)
    said.check()
    side = said.image_size()
    if tensors is None:
        text, notes = _text(config, kind == QWEN2)
        said.assumed.append(f"{folder} holds no *.safetensors: the tower is taken to be FastViTHD, as in Apple's")
        return replace(VisionConfig(), image_size=side), text, said.assumed + notes
    absent = [part for part in ("vision_encoder.", "decoder.") if not any(name.startswith(part) for name in tensors)]
    if absent:
        raise CheckpointError(f"{folder} holds no tensors of {absent[0]}; expected a whole FastVLM checkpoint")
    biased = any(name.endswith(".q_proj.bias") for name in tensors)
    text, notes = _text(config, biased)
    _check_decoder(folder, text, tensors)
    return vision_config(tensors, side), text, said.assumed + notes


def _text(config: dict[str, Any], biased: bool) -> tuple[TextConfig, list[str]]:
    text, notes = text_config(config, biased, bool(config.get("tie_word_embeddings")))
    if text.layers > MOST_LAYERS:
        raise ConfigError(
            f"config.json has num_hidden_layers {text.layers}, expected {MOST_LAYERS} at most; take the config.json "
            "that belongs to these weights, or another checkpoint"
        )
    return text, notes


def _check_decoder(folder: Path, text: TextConfig, tensors: Mapping[str, LazyTensor]) -> None:
    """Raises TensorError where the tensors are not of the decoder that config.json describes; the head may be tied."""
    wrong = list(_misshapen(text, tensors))
    if wrong:
        more = f"; and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
        raise TensorError(
            f"{folder}: its tensors are not of the decoder that {CONFIG} describes: {'; '.join(wrong[:LISTED])}{more}; "
            f"take the {CONFIG} that belongs to these weights, or fetch them again"
        )


def _misshapen(text: TextConfig, tensors: Mapping[str, LazyTensor]) -> Iterator[str]:
    for name, shape in decoder_shapes(text).items():
        found = tensors.get(f"{DECODER}{name}")
        if found is None and name != HEAD:
            yield f"{DECODER}{name} is missing"
        elif found is not None and tuple(found.shape) != shape:
            yield f"{DECODER}{name} is {list(found.shape)}, expected {list(shape)}"
