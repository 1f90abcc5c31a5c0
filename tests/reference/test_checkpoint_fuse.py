"""A tower saved with its training branches computes, once loaded, what the branches computed.

The whole tower is put together from the model's own parts with each fused convolution replaced by an independent
unfused one (`unfused.py`), with random batch-norm statistics, then saved in Apple's and timm's names and loaded.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from reference_limits import check
from synthetic import SMALL, hf_config, hf_names, llava_config, llava_names, state, write
from torch import Tensor, nn
from unfused import LargeKernel, Mixer, MobileOne, Position

from fastvlm.errors import TensorError
from fastvlm_ref import load_checkpoint
from fastvlm_ref.model.fastvithd import FastViTHD, LargeKernelConv
from fastvlm_ref.model.mobileone import MobileOneBlock
from fastvlm_ref.model.repmixer import RepMixer


def _training_form(module: nn.Module, scaled: bool, branches: int) -> nn.Module:
    """Replaces every fused convolution of the tower, in place, by its training form."""
    for child in module.children():
        if isinstance(child, MobileOneBlock):
            conv = child.reparam_conv
            child.reparam_conv = MobileOne(
                conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], conv.groups, branches
            )
        elif isinstance(child, LargeKernelConv):
            conv = child.lkb_reparam
            child.lkb_reparam = LargeKernel(conv.in_channels, conv.out_channels)
        elif isinstance(child, RepMixer):
            conv = child.reparam_conv
            child.reparam_conv = (
                Mixer(conv.in_channels, scaled) if conv.kernel_size == (3, 3) else Position(conv.in_channels)
            )
        else:
            _training_form(child, scaled, branches)
    return module


def _saved_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as Apple's modules have them: the branches lie where the fused convolution would."""
    return {name.replace(".reparam_conv.", ".").replace(".lkb_reparam.", "."): value for name, value in tensors.items()}


def _unfused_tower(scaled: bool = True, branches: int = 1) -> nn.Module:
    """A tower with random weights and statistics, lively enough that its first layers reach its output."""
    torch.manual_seed(0)
    tower = _training_form(FastViTHD(SMALL.vision), scaled, branches).eval()
    with torch.no_grad():
        for name, value in (*tower.named_parameters(), *tower.named_buffers()):
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bias")):
                value.normal_(0, 0.1)
            elif "layer_scale" in name:
                value.normal_(0.4, 0.1)
            elif value.ndim == 1:
                value.normal_(1, 0.2)
            elif value.ndim > 1:
                value.normal_(0, 1.5 * value[0].numel() ** -0.5)
    return tower


def _folder(path: Path, tower: nn.Module, layout: str) -> Path:
    rest = {name: value.float() for name, value in state().items() if not name.startswith("vision_encoder.")}
    tensors = _saved_names({f"vision_encoder.{name}": value for name, value in tower.state_dict().items()}) | rest
    if layout == "hf":
        return write(path, hf_names(tensors), hf_config())
    return write(path, llava_names(tensors), llava_config())


@pytest.mark.parametrize(
    ("layout", "scaled", "branches"), [("llava", True, 1), ("llava", False, 1), ("llava", True, 3), ("hf", True, 2)]
)
@torch.inference_mode()
def test_the_fused_tower_computes_what_its_branches_did(
    tmp_path: Path, layout: str, scaled: bool, branches: int
) -> None:
    tower = _unfused_tower(scaled, branches)
    pixels = torch.rand(1, 3, 128, 128, dtype=torch.float64)
    expected = copy.deepcopy(tower).double()(pixels)
    model = load_checkpoint(_folder(tmp_path / "it", tower, layout))
    assert model.config.vision.depths == SMALL.vision.depths
    check("fused", expected, model.vision_encoder.double()(pixels))


@pytest.mark.parametrize(
    "part",
    [
        "rbr_scale.bn.running_mean",
        "rbr_skip.bias",
        "small_conv.bn.weight",
        "layer_scale",
        "pe.bias",
        "norm.rbr_skip.weight",
    ],
)
@torch.inference_mode()
def test_every_branch_matters(tmp_path: Path, part: str) -> None:
    """A check that cannot fail is a defect: one changed branch tensor moves the result far below the limit."""
    tower = _unfused_tower()
    pixels = torch.rand(1, 3, 128, 128, dtype=torch.float64)
    expected = copy.deepcopy(tower).double()(pixels)
    name, value = next((name, value) for name, value in tower.state_dict().items() if name.endswith(part))
    value += 0.25
    model = load_checkpoint(_folder(tmp_path / "it", tower, "llava"))
    check("fused_fault", expected, model.vision_encoder.double()(pixels), name)


def test_missing_and_misshapen_branches_are_listed_together(tmp_path: Path) -> None:
    tensors = llava_names(
        _saved_names({f"vision_encoder.{name}": value for name, value in _unfused_tower().state_dict().items()})
    )
    tensors |= llava_names(
        {name: value.float() for name, value in state().items() if not name.startswith("vision_encoder.")}
    )
    tower = "model.vision_tower.vision_tower.model."
    del tensors[tower + "patch_embed.0.rbr_conv.0.bn.running_var"]
    del tensors[tower + "network.2.0.token_mixer.layer_scale"]
    tensors[tower + "network.1.proj.0.small_conv.conv.weight"] = torch.zeros(16, 1, 2, 2)
    tensors[tower + "network.6.pe.bias"] = torch.zeros(3)
    tensors[tower + "conv_exp.reparam_conv.weight"] = torch.zeros(256, 1, 3, 3)
    with pytest.raises(TensorError) as caught:
        load_checkpoint(write(tmp_path / "it", tensors, llava_config()))
    told = str(caught.value)
    for part in (
        "missing vision_encoder.patch_embed.0.rbr_conv.0.bn.running_var [8]",
        "missing vision_encoder.network.2.0.token_mixer.layer_scale [16, 1, 1]",
        "misshapen branch of vision_encoder.network.1.proj.0: [16, 1, 2, 2] does not fit into [16, 1, 7, 7]",
        "misshapen vision_encoder.network.6.pe",
        "missing vision_encoder.conv_exp.reparam_conv.bias [256]",
        "extra vision_encoder.conv_exp.rbr_conv.0.conv.weight",
    ):
        assert part in told
    assert "missing vision_encoder.patch_embed.0.reparam_conv" not in told
