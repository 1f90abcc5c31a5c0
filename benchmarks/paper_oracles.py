"""The other models, made with random weights or as shapes alone: transformers' and timm's.

timm and torchvision are installed apart (`make oracles`), and torchvision's ops have to be declared before transformers
is imported: tests/reference/torchvision_ops.py, whose folder paper.py puts on the path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision_ops
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastvlm.errors import MissingDependency
from fastvlm_ref.config import TextConfig, VisionConfig
from fastvlm_ref.model.decoder import Decoder
from fastvlm_ref.model.fastvithd import FastViTHD
from fastvlm_ref.synthetic.sizes import SIZES

SEED = 9
Make = Callable[[], nn.Module]


def transformers() -> Any:
    """Returns the library; MissingDependency where it is not installed."""
    torchvision_ops.usable()  # before the import below, which loads torchvision where it finds it
    try:
        import transformers as library
    except ImportError as error:
        raise MissingDependency("this needs transformers: pip install -c constraints.txt -e '.[test]'") from error
    return library


def timm() -> Any:
    """Returns the library; MissingDependency where it, or torchvision beside it, cannot be imported."""
    reason = torchvision_ops.usable()
    if reason:
        raise MissingDependency(f"{reason}; `make oracles`, then PYTHONPATH=.venv/oracles")
    import timm as library

    return library


def timm_encoder(name: str, **given: Any) -> Make:
    """What makes one of timm's encoders without its head."""
    library = timm()
    return lambda: library.create_model(name, num_classes=0, **given).eval()


def fastvithd() -> nn.Module:
    """This project's FastViTHD at its official size."""
    return FastViTHD(VisionConfig()).eval()


def decoder(text: TextConfig) -> nn.Module:
    """This project's decoder of those sizes."""
    return Decoder(text).eval()


def features(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a picture goes through: an encoder up to its features, be it timm's or this project's."""
    found: Callable[[torch.Tensor], torch.Tensor] = getattr(module, "forward_features", module)
    return found


def seeded(make: Make) -> nn.Module:
    """The module with its library's own random weights, the same each time."""
    torch.manual_seed(SEED)
    return make().requires_grad_(False)


def shapes_of(make: Make) -> nn.Module:
    """The module on the meta device, which holds shapes and no numbers."""
    with torch.device("meta"):
        return make()


def parameters(make: Make) -> int:
    """How many numbers its parameters are."""
    return sum(value.numel() for value in shapes_of(make).parameters())


def counted_flops(make: Make, shape: tuple[int, ...]) -> int:
    """Operations of convolutions and products while an input of that shape runs through it, as torch counts them."""
    module = shapes_of(make)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        features(module)(torch.zeros(shape, device="meta"))
    return int(counter.get_total_flops())


def onevision_config() -> Any:
    """Configuration of llava-onevision-qwen2-0.5b-ov (llava-hf/llava-onevision-qwen2-0.5b-ov-hf, config.json).

    Tower, tiles and `anyres_max_9` are transformers' defaults for this model; the text side is Qwen2-0.5B's.
    """
    library, text = transformers(), SIZES["0.5b"].text
    config = library.LlavaOnevisionConfig(
        text_config=library.Qwen2Config(
            hidden_size=text.hidden_size, intermediate_size=text.intermediate_size, num_hidden_layers=text.layers,
            num_attention_heads=text.heads, num_key_value_heads=text.kv_heads, vocab_size=SIZES["0.5b"].padded_rows,
            max_position_embeddings=text.max_positions, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": text.rope_theta},
        ),
        tie_word_embeddings=True,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return config


def onevision() -> nn.Module:
    """LLaVA-OneVision-0.5B."""
    module: nn.Module = transformers().LlavaOnevisionForConditionalGeneration(onevision_config()).eval()
    return module


def siglip() -> nn.Module:
    """SigLIP-SO400M/14 at 384 as published: 27 layers and the pooling head."""
    vision = onevision_config().vision_config.to_dict() | {"num_hidden_layers": 27, "vision_use_head": True}
    library = transformers()
    module: nn.Module = library.SiglipVisionModel(library.SiglipVisionConfig(**vision)).eval()
    return module
