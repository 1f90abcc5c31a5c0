"""The names that tensors have in each layout, and the one name each has here.

Ours are the module's: `vision_encoder.X`, `projector.X`, `decoder.X`, X as in Apple's LLaVA checkpoints. Three layouts
lead there: LLaVA (`model.vision_tower.vision_tower.model.X`), Hugging Face `fast_vlm` (timm's names under
`model.vision_tower.timm_model`), and mlx-vlm (`vision_tower.vision_model.X`, convolutions stored O,H,W,I).
The prefixes that trainers leave around them are stripped first.
It does not know shapes or values, except to see in which order convolutions are stored.
Source: the layouts in ml-fastvlm, transformers `fast_vlm`, mlx-vlm `models/fastvlm`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from fastvlm.errors import CheckpointError, TensorError
from fastvlm_ref.checkpoint.tensors import LazyTensor, viewed

WRAPPERS = re.compile(r"(?:base_model\.model\.|_orig_mod\.|module\.)*")  # peft, torch.compile, DistributedDataParallel
UNUSED = re.compile(
    r"(^|\.)(num_batches_tracked|rotary_emb\.inv_freq|rotary_emb\.original_inv_freq)$|^vision_encoder\.head\."
)

# (layout, pattern, replacement), the first match wins; None: the name says nothing about the layout.
RULES: tuple[tuple[str | None, re.Pattern[str], str], ...] = tuple(
    (layout, re.compile(pattern), to)
    for layout, pattern, to in (
        ("llava", r"^(?:model\.)?vision_tower\.vision_tower\.model\.", "vision_encoder."),
        ("hf", r"^(?:model\.)?vision_tower\.timm_model\.", "timm."),
        ("mlx", r"^(?:model\.)?vision_tower\.vision_model\.patch_embed\.blocks\.", "vision_encoder.patch_embed."),
        ("mlx", r"^(?:model\.)?vision_tower\.vision_model\.", "vision_encoder."),
        ("hf", r"^(?:model\.)?multi_modal_projector\.linear_1\.", "projector.0."),
        ("hf", r"^(?:model\.)?multi_modal_projector\.linear_2\.", "projector.2."),
        (None, r"^(?:model\.)?mm_projector\.", "projector."),
        (None, r"^(?:model\.)?(?:language_model\.)?(?:model\.)?lm_head\.", "decoder.lm_head."),
        (None, r"^(?:model\.)?(?:language_model\.)?(?:model\.)?(embed_tokens|layers|norm)\.", r"decoder.\1."),
    )
)

# Two digits: a stage doubles the stride, and a number alone must not cost time.
TIMM_STAGE = re.compile(r"stages\.(\d{1,2})\.(downsample|pos_emb|blocks)\.")

# timm's names inside a FastViT, after `timm.`; where a stage stands in Apple's `network` depends on those before it.
TIMM_PARTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), to)
    for pattern, to in (
        (r"\.mlp\.", ".convffn."),
        (r"(layer_scale(?:_[12])?)\.gamma$", r"\1"),
        (r"\.se\.fc1\.", ".se.reduce."),
        (r"\.se\.fc2\.", ".se.expand."),
        (r"\.conv_kxk\.", ".rbr_conv."),
        (r"\.conv_scale\.", ".rbr_scale."),
        (r"\.identity\.", ".rbr_skip."),
        (r"\.large_conv\.", ".lkb_origin."),
        (r"\.pos_enc\.", ".pe."),
        (r"\.proj\.0\.reparam_conv\.", ".proj.0.lkb_reparam."),
    )
)


def layout_of(names: Mapping[str, LazyTensor] | list[str]) -> str:
    """Returns `hf`, `mlx` or `llava`, by the stored names alone."""
    found = {layout for name in names for layout, pattern, _ in RULES if layout and pattern.match(unwrapped(name))}
    return "mlx" if "mlx" in found else "hf" if "hf" in found else "llava"


def own_names(stored: list[str]) -> dict[str, str]:
    """Returns {stored name: our name}; names that no rule knows keep their own.

    Raises CheckpointError when two stored names mean the same tensor.
    """
    plain = {name: _translated(name) for name in stored}
    timm = _timm_network([name for name in plain.values() if name.startswith("timm.")])
    found = {name: timm.get(ours, ours) for name, ours in plain.items()}
    seen: dict[str, str] = {}
    for name, ours in found.items():
        if ours in seen:
            raise CheckpointError(
                f"the checkpoint holds {ours} twice, as {seen[ours]!r} and {name!r}; expected it once"
            )
        seen[ours] = name
    return found


def unused(name: str) -> bool:
    """Tells whether a tensor (by our name) is known to play no part: counters, rotary tables, the CLIP head."""
    return UNUSED.search(name) is not None


def unwrapped(name: str) -> str:
    """Returns a stored name without the prefixes that peft, torch.compile and data-parallel training put before it."""
    wrapped = WRAPPERS.match(name)
    return name[wrapped.end() :] if wrapped else name


def _translated(name: str) -> str:
    name = unwrapped(name)
    for _, pattern, to in RULES:
        if pattern.match(name):
            return pattern.sub(to, name, count=1)
    return name


def _timm_network(names: list[str]) -> dict[str, str]:
    """Returns {timm name: our name}: `stages.i` is spread over Apple's `network.N`, counted in order."""
    parts = {(int(found[1]), found[2]) for name in names if (found := TIMM_STAGE.match(name.removeprefix("timm.")))}
    places: dict[tuple[int, str], int] = {}
    for stage in range(max((stage for stage, _ in parts), default=-1) + 1):
        for part in ("downsample", "pos_emb", "blocks"):
            if part == "blocks" or (stage, part) in parts:
                places[stage, part] = len(places)
    return {name: _timm_name(name, places) for name in names}


def _timm_name(name: str, places: dict[tuple[int, str], int]) -> str:
    inner = name.removeprefix("timm.")
    if found := TIMM_STAGE.match(inner):
        inner = f"network.{places[int(found[1]), found[2]]}.{inner[found.end() :]}"
    elif inner.startswith("stem."):
        inner = "patch_embed." + inner.removeprefix("stem.")
    elif inner.startswith("final_conv."):
        inner = "conv_exp." + inner.removeprefix("final_conv.")
    inner = "." + inner  # so that every pattern can begin with a dot
    for pattern, to in TIMM_PARTS:
        inner = pattern.sub(to, inner)
    return "vision_encoder" + inner


def renamed(stored: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Returns the tensors under our names, convolutions as O,I,H,W and layer scales as (C, 1, 1), the unused left out.

    Raises CheckpointError for quantised MLX weights and for a tensor that is there twice.
    """
    quantised = sorted(name for name in stored if name.endswith((".scales", ".biases")))
    if quantised:
        raise CheckpointError(
            f"the checkpoint is quantised by MLX ({len(quantised)} tensors like {quantised[0]!r}), expected fp16, bf16 "
            "or fp32 weights; convert the original checkpoint without quantisation"
        )
    names = own_names(list(stored))
    tensors = {names[name]: tensor for name, tensor in stored.items() if not unused(names[name])}
    if channels_last(tensors):
        return {name: _channels_first(name, tensor) for name, tensor in tensors.items()}
    return tensors


def channels_last(tensors: Mapping[str, LazyTensor]) -> bool:
    """Tells whether convolutions are stored O,H,W,I, as MLX does; seen on depthwise ones, whose I is 1.

    Raises TensorError when the vision tower mixes both orders.
    """
    orders: dict[bool, str] = {}
    for name, tensor in tensors.items():
        if name.startswith("vision_encoder.") and len(tensor.shape) == 4:
            _, second, third, last = tensor.shape
            if second == 1 and third == last and third > 1:
                orders.setdefault(False, name)
            elif last == 1 and second == third and second > 1:
                orders.setdefault(True, name)
    if len(orders) == 2:
        raise TensorError(
            f"the vision tower stores {orders[False]} as O,I,H,W and {orders[True]} as O,H,W,I; expected one order"
        )
    return True in orders


def _channels_first(name: str, tensor: LazyTensor) -> LazyTensor:
    if not name.startswith("vision_encoder."):
        return tensor
    shape = tensor.shape
    if len(shape) == 4:
        return viewed(tensor, (shape[0], shape[3], shape[1], shape[2]), lambda value: value.permute(0, 3, 1, 2))
    if "layer_scale" in name and len(shape) == 3 and shape[:2] == (1, 1):
        return viewed(tensor, (shape[2], 1, 1), lambda value: value.reshape(-1, 1, 1))
    return tensor
