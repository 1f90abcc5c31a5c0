"""The numbers of a checkpoint: config.json, and the names and shapes in the headers of its weight files.

No weights are read and nothing is fetched: a folder that holds config.json alone is enough, and what only tensors tell
(the tower's sizes, the biases of q, k and v) is then taken to be as in Apple's, which is told.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fastvlm.errors import CheckpointError, HubError, UsageError
from fastvlm_ref.checkpoint.folder import check_folder, open_folder, read_json
from fastvlm_ref.checkpoint.fuse import fuse
from fastvlm_ref.checkpoint.hub import HubId, cached_file, hub_id
from fastvlm_ref.checkpoint.layouts import layout_of, renamed
from fastvlm_ref.checkpoint.lora import is_adapter
from fastvlm_ref.checkpoint.opening import TINY
from fastvlm_ref.checkpoint.sizes import vision_config
from fastvlm_ref.checkpoint.source import EMBEDDED
from fastvlm_ref.checkpoint.statements import Statements
from fastvlm_ref.checkpoint.tensors import LazyTensor
from fastvlm_ref.checkpoint.text_config import QWEN2, family, model_type, text_config
from fastvlm_ref.config import TextConfig, VisionConfig
from validation.fit.sizes import Sizes

CONFIG = "config.json"


def read_sizes(target: str | Path) -> Sizes:
    """Returns the sizes of a checkpoint folder, the embedded one ("tiny") or a Hub id that is in the cache.

    Raises CheckpointError, ConfigError or TensorError for what is no checkpoint or describes none, HubError for an id
    whose config.json is not in the cache, UsageError for a LoRA adapter alone.
    """
    folder = _folder(target)
    check_folder(folder)
    if is_adapter(folder):
        raise UsageError(f"{folder} is a LoRA adapter, which has its base's sizes; give fit the base checkpoint")
    config, tensors = read_json(folder / CONFIG), _tensors(folder)
    vision, text, assumed = _described(folder, config, tensors)
    return Sizes(str(target), "checkpoint", vision, text, str(target), tuple(assumed))


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
    raise HubError(
        f"{asked} is no folder here, and its {CONFIG} is not in the Hub's cache; `hf download {asked.repo} {CONFIG}` "
        "fetches that file alone, or name a size: 0.5b, 1.5b, 7b"
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
        text, notes = text_config(config, kind == QWEN2, bool(config.get("tie_word_embeddings")))
        said.assumed.append(f"{folder} holds no *.safetensors: the tower is taken to be FastViTHD, as in Apple's")
        return replace(VisionConfig(), image_size=side), text, said.assumed + notes
    absent = [part for part in ("vision_encoder.", "decoder.") if not any(name.startswith(part) for name in tensors)]
    if absent:
        raise CheckpointError(f"{folder} holds no tensors of {absent[0]}; expected a whole FastVLM checkpoint")
    biased = any(name.endswith(".q_proj.bias") for name in tensors)
    text, notes = text_config(config, biased, bool(config.get("tie_word_embeddings")))
    return vision_config(tensors, side), text, said.assumed + notes
