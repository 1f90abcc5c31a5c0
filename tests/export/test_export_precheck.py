"""Weights that are no numbers are told before the first conversion, all at once, wherever they lie."""

from __future__ import annotations

import math
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_export import CONTEXT, QUERY, small_model

from export import api, precheck
from export.plan import ExportPlan
from export.precheck import NO_NUMBERS, TOO_LARGE, Weight, all_below, check_weights, find_fault, used_weights
from fastvlm.errors import TensorError
from fastvlm_ref.checkpoint import load_checkpoint

PLAN = ExportPlan((64,), CONTEXT, QUERY)
ENCODER, LANGUAGE = ExportPlan((64,), CONTEXT, QUERY, ("encoder",)), ExportPlan((64,), CONTEXT, QUERY, ("language",))
BAD = (math.nan, -math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_all_numbers_are_told_from_what_is_none(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bit pattern of the 16-bit types, the limits of the others; at the first and last place of a block."""
    monkeypatch.setattr(precheck, "BLOCK", 64)
    if dtype.itemsize == 2:
        values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        assert [all_below(value.reshape(1), math.inf) for value in values] == torch.isfinite(values).tolist()
    limits = torch.finfo(dtype)
    extremes = [0.0, -0.0, limits.max, limits.min, limits.tiny, -limits.tiny, limits.tiny * limits.eps]
    good = torch.tensor(extremes * 11, dtype=dtype)
    assert bool(torch.isfinite(good).all())
    assert all_below(good, math.inf)
    for place in (0, 7, 31, 32, len(good) - 1):
        for value in BAD:
            bad = good.clone()
            bad[place] = value
            assert not all_below(bad, math.inf), (place, value)


PLANTED = {
    "vision_encoder.conv_exp.reparam_conv.weight": ENCODER,
    "vision_encoder.network.0.0.convffn.conv.bn.running_var": ENCODER,
    "projector.2.bias": ENCODER,
    "decoder.embed_tokens.weight": LANGUAGE,
    "decoder.layers.1.mlp.down_proj.weight": LANGUAGE,
    "decoder.norm.weight": LANGUAGE,
}


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("value", BAD, ids=repr)
def test_one_value_anywhere_is_told(name: str, value: float) -> None:
    model = small_model()
    tensor = model.state_dict()[name].reshape(-1)
    place = len(tensor) - 2
    tensor[place] = value
    used = PLANTED[name]
    said = f"{name} holds NaN or infinity (1 of {len(tensor):,} values, the first at flat index {place});"
    for plan in (PLAN, used):
        with pytest.raises(TensorError) as caught:
            check_weights(model, plan)
        assert str(caught.value).startswith(said)
    check_weights(model, LANGUAGE if used is ENCODER else ENCODER)  # what is not used is not read


def test_a_head_of_its_own_is_read(model: Any) -> None:
    untied = small_model(tied_head=False)
    assert "decoder.lm_head.weight" in [weight.name for weight in used_weights(untied, PLAN)]
    assert "decoder.lm_head.weight" not in [weight.name for weight in used_weights(model, PLAN)]
    untied.decoder.lm_head.weight[0, 0] = math.nan
    with pytest.raises(TensorError, match=r"decoder\.lm_head\.weight holds"):
        check_weights(untied, PLAN)


def test_all_tensors_are_named_up_to_twenty(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    model.decoder.layers[0].mlp.up_proj.weight[3, 5] = math.nan
    model.decoder.layers[0].mlp.up_proj.weight[4, 5:8] = math.inf
    model.projector[0].bias[9] = -math.inf
    with pytest.raises(TensorError) as caught:
        check_weights(model, PLAN)
    assert str(caught.value) == (
        "projector.0.bias holds NaN or infinity (1 of 64 values, the first at flat index 9); "
        "decoder.layers.0.mlp.up_proj.weight holds NaN or infinity (4 of 6,144 values, the first at flat index 197); "
        "the checkpoint is damaged or its training diverged, fetch it again or use an earlier one"
    )
    for parameter in model.parameters():
        parameter.reshape(-1)[0] = math.nan
    with pytest.raises(TensorError) as caught:
        check_weights(model, PLAN)
    count = len({id(parameter) for parameter in model.parameters()})
    assert str(caught.value).count("holds NaN or infinity") == 20
    assert f"; and {count - 20} more tensors; the checkpoint" in str(caught.value)


@pytest.mark.parametrize("stream", [True, False])
def test_a_checkpoint_on_the_disk(tiny: Path, tmp_path: Path, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several pieces, and with what is bad in the last of them."""
    monkeypatch.setattr("fastvlm_ref.checkpoint.tensors.PIECE", 4096)
    folder = Path(shutil.copytree(tiny, tmp_path / "checkpoint"))
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    names = ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight")
    for name in names:
        tensors[name].view(-1)[-1] = math.nan
    save_file(tensors, file, {"format": "pt"})
    places = {name: tensors[name].numel() for name in names}
    with pytest.raises(TensorError) as caught:
        api.export(folder, tmp_path / "build", only="language")
    for name, count in places.items():
        ours = name.replace("model.", "decoder.")
        said = f"{ours} holds NaN or infinity (1 of {count:,} values, the first at flat index {count - 1})"
        assert said in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert load_checkpoint(folder, stream=stream) is not None


def test_values_are_counted_over_all_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastvlm_ref.checkpoint.stream.PIECE", 400)
    model = small_model()
    flat = model.decoder.layers[0].mlp.up_proj.weight.reshape(-1)
    flat[[150, 151, 4000]] = math.nan
    with pytest.raises(TensorError, match=r"\(3 of 6,144 values, the first at flat index 150\)"):
        check_weights(model, LANGUAGE)


def test_good_weights_are_read_once_and_told(model: Any, heard: Any) -> None:
    check_weights(model, PLAN, heard)
    weights = list(used_weights(model, PLAN))
    count = sum(value.numel() for value in model.parameters())
    count += sum(value.numel() for value in model.buffers() if value.is_floating_point())
    assert heard.stages == {"Checking the weights": [count, count]}
    assert len({weight.name for weight in weights}) == len(weights)
    check_weights(load_checkpoint("tiny", stream=True), PLAN)


def test_an_interrupt_does_not_wait_for_the_rest(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read, first = [], threading.Event()

    def slow(weight: Any) -> list[Any]:
        read.append(weight.name)
        if len(read) > 2:
            first.wait(0.2)
        return []

    class Interrupting(precheck.Progress):
        def stage(self, name: str, total: int | None = None) -> Any:
            from contextlib import nullcontext

            return nullcontext(interrupt)

    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(precheck, "find_fault", slow)
    with pytest.raises(KeyboardInterrupt):
        check_weights(model, PLAN, Interrupting())
    assert len(read) < 10


LARGE = (65_520.0, -65_520.0, 65_536.0, 3e38)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_numbers_beyond_fp16_are_located_and_told_apart(dtype: torch.dtype, heard: Any) -> None:
    values = torch.zeros(1000, dtype=dtype)
    values[[3, 4]] = torch.tensor([65_504.0 if dtype != torch.bfloat16 else 65_280.0, -65_280.0], dtype=dtype)
    assert find_fault(Weight("it", (1000,), lambda: iter((values,)))) == []
    values[700:704] = torch.tensor(LARGE, dtype=dtype)
    values[900], values[901] = math.nan, -math.inf
    none, large = find_fault(Weight("it", (1000,), lambda: iter(values.split(300))))
    assert (none.kind, none.count, none.first) == (NO_NUMBERS, 2, 900)
    assert (large.kind, large.count, large.first) == (TOO_LARGE, 4, 700)


def test_what_float32_cannot_hold_is_no_number() -> None:
    largest = torch.tensor([torch.finfo(torch.float32).max], dtype=torch.float64)
    both = find_fault(Weight("it", (2,), lambda: iter((torch.cat((largest, largest * 1.0001)),))))
    assert [(fault.kind, fault.count, fault.first) for fault in both] == [(NO_NUMBERS, 1, 1), (TOO_LARGE, 1, 0)]


def test_numbers_beyond_fp16_are_a_note_and_no_error(heard: Any) -> None:
    model = small_model()
    model.decoder.layers[1].mlp.down_proj.weight.reshape(-1)[[7, 9]] = 70_000.0
    model.get_buffer("vision_encoder.network.0.0.convffn.conv.bn.running_var")[1] = 70_000.0  # no package stores it
    check_weights(model, PLAN, heard)
    assert heard.notes == [
        "decoder.layers.1.mlp.down_proj.weight holds numbers beyond fp16 (2 of 6,144 values, the first at flat index "
        "7): fp16 rounds them to infinity (from 65,520 on); those that no exponent and no folding brings into range "
        "are clamped"
    ]
    check_weights(model, PLAN, heard, halves=False)
    assert len(heard.notes) == 1
