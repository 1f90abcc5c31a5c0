"""The decoder's ranges are those of the whole model's own forward call, streamed or not, spikes under their names."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.key_shift import key_shift
from export.ranges import matrix, prompts, side_by_side
from export.ranges.decoder import CONTEXT, LAST, decoder_pass
from export.ranges.frames import Picture, hostile_frames
from export.ranges.matrix import HEAD, TABLE, read_table, rows_of
from export.ranges.prompts import Prompt, decoder_inputs, longest, position_flop, text_inputs
from export.ranges.result import ALLOWED, Ranges, TensorRange
from export.ranges.watch import Tally
from fastvlm.errors import TensorError, TokenizerError
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.config import IMAGE_TOKEN
from fastvlm_ref.model.decoder import rope_tables, rotate
from fastvlm_ref.prompt import encode_prompt
from fastvlm_ref.synthetic.sizes import SIZES
from fastvlm_ref.threads import one_thread

ROUNDED = 5.1e-3  # three significant digits
LENGTHS = {"one": 1, "few": 7, "many": 70}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def inputs(model: Any) -> list[Prompt]:
    generator = torch.Generator().manual_seed(5)
    width = model.config.text.hidden_size
    return [Prompt(name, torch.randn(1, length, width, generator=generator)) for name, length in LENGTHS.items()]


def scanned(model: Any, inputs: list[Prompt]) -> Ranges:
    tally = Tally()
    decoder_pass(model.decoder, inputs, read_table(model.decoder, model.config.text.vocab_size), tally)
    return Ranges("", (), (), (), 0, None, tally.tensors())


class Whole:
    """What hooks see in whole forward calls: per tensor, the values of each input."""

    def __init__(self, model: Any, inputs: list[Prompt]) -> None:
        self.decoder = model.decoder
        self.seen: dict[str, list[Tensor]] = {}
        hooks = [hook for name, part in self.decoder.named_modules() for hook in self.watch(name, part)]
        for prompt in inputs:
            self.keep("decoder.input", prompt.embeds)
            hidden = self.decoder(prompt.embeds)
            self.keep("decoder.lm_head linear", self.decoder.head(hidden[:, -LAST:]))
        for hook in hooks:
            hook.remove()

    def keep(self, name: str, value: Tensor) -> None:
        self.seen.setdefault(name, []).append(value.clone())

    def watch(self, name: str, part: nn.Module) -> Iterator[Any]:
        kind = "linear" if isinstance(part, nn.Linear) else "norm"
        scale = part.out_features and 32**-0.5 if name.endswith("q_proj") else 1.0
        if name.endswith(("_proj", "norm")):
            yield part.register_forward_hook(lambda _, __, out: self.keep(f"decoder.{name} {kind}", out * scale))
        if name.endswith("o_proj"):
            place = name.removesuffix(".o_proj")
            yield part.register_forward_pre_hook(lambda _, x: self.keep(f"decoder.{place} attention", x[0]))
        if name.endswith("down_proj"):
            place = name.removesuffix(".down_proj")
            yield part.register_forward_pre_hook(lambda _, x: self.keep(f"decoder.{place} mul", x[0]))
        if name.endswith("gate_proj"):
            place = name.removesuffix(".gate_proj")
            yield part.register_forward_hook(lambda _, __, out: self.keep(f"decoder.{place} silu", F.silu(out)))
        if name.endswith("post_attention_layernorm"):
            place = name.removesuffix(".post_attention_layernorm")
            yield part.register_forward_pre_hook(lambda _, x: self.keep(f"decoder.{place} add", x[0]))
        if name.startswith("layers.") and name.count(".") == 1:
            yield part.register_forward_hook(lambda _, __, out: self.keep(f"decoder.{name} add.2", out))


def attention_of(model: Any, whole: Whole, layer: int, at: int) -> dict[str, Tensor]:
    """Queries, keys, visible scores and their softmax of one input, from what the projections gave."""
    text, place = model.config.text, f"decoder.layers.{layer}.self_attn"
    q, k = (whole.seen[f"{place}.{name}_proj linear"][at][0].double() for name in "qk")
    length = len(q)
    q, k = (x.view(length, -1, text.head_dim).transpose(0, 1) for x in (q, k))
    shift = key_shift(model.decoder.layers[layer].self_attn.k_proj.bias, text, CONTEXT).double()
    visible = torch.arange(length)[None, :] <= torch.arange(length)[:, None]
    found: dict[str, list[Tensor]] = {}
    for start in (0, CONTEXT - length):
        cos, sin = (table.double() for table in rope_tables(text, torch.arange(start, start + length)))
        queries, keys = rotate(q, cos, sin), rotate(k, cos, sin)
        shifted = keys - shift[:, None, :]
        if start == 0:
            scores = queries @ keys.repeat_interleave(text.heads // text.kv_heads, 0).transpose(1, 2)
            softmax = scores.float().masked_fill(~visible, -torch.inf).softmax(-1)
            found |= {"queries": [queries], "keys": [keys], "scores": [scores[:, visible]]}
            found["softmax"] = [softmax[:, visible]]
        if not shift.any():
            break
        found["constant"] = [shift]
        found.setdefault("keys shifted", []).append(shifted)
        product = queries @ shifted.repeat_interleave(text.heads // text.kv_heads, 0).transpose(1, 2)
        found.setdefault("scores shifted", []).append(product[:, visible])
    return {f"{place} {name}": torch.cat([x.reshape(-1) for x in values]) for name, values in found.items()}


def expect(found: TensorRange, values: list[Tensor]) -> None:
    """Compares a range with the values of each input."""
    peaks = [float(value.abs().max()) for value in values]
    small = sum(int(((value != 0) & (value.abs() < 2**-14)).sum()) for value in values)
    count = sum(value.numel() for value in values)
    assert found.peak == pytest.approx(max(peaks), rel=ROUNDED), found.name
    assert found.subnormal == pytest.approx(small / count, rel=0.02, abs=3 / count), found.name
    assert peaks[list(LENGTHS).index(found.worst)] == pytest.approx(max(peaks), rel=ROUNDED), found.name


SHIFTED = {"plain": [], "faint": [], "spiked": ["decoder.layers.1.self_attn scores shifted"]}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["plain", "spiked", "faint"])
def test_every_tensor_is_as_the_whole_model_has_it(model: Any, inputs: list[Prompt], kind: str) -> None:
    """Once as it is, once with the constant parts that real keys have, once with scores that are subnormal."""
    model = copy.deepcopy(model)
    if kind == "faint":
        for value in model.decoder.layers[1].self_attn.q_proj.parameters():
            value *= 1e-4
    if kind == "spiked":
        model.decoder.layers[1].self_attn.k_proj.bias.view(-1, 32)[:, [15, 31]] *= 4000  # the slowest pair
    found = {tensor.name: tensor for tensor in scanned(model, inputs).tensors}
    whole = Whole(model, inputs)
    for layer in range(model.config.text.layers):
        parts = [attention_of(model, whole, layer, at) for at in range(len(inputs))]
        whole.seen |= {name: [part[name] for part in parts] for name in parts[0]}
    assert found.keys() == {"decoder.embed_tokens rows", *whole.seen}
    for name, values in whole.seen.items():
        expect(found[name], values)
    assert [name for name in found if name.endswith("scores shifted")] == SHIFTED[kind]
    for name in SHIFTED[kind]:
        assert found[name.removesuffix(" shifted")].peak > 10 * found[name].peak
    assert (found["decoder.layers.1.self_attn scores"].subnormal > 0.1) == (kind == "faint")
    table = model.decoder.embed_tokens.weight
    assert found["decoder.embed_tokens rows"].peak == pytest.approx(float(table.abs().max()), rel=ROUNDED)
    assert any(tensor.subnormal > 1e-4 for tensor in found.values())


ORDER = [
    "input_layernorm norm", "self_attn.q_proj linear", "self_attn.k_proj linear", "self_attn.v_proj linear",
    "self_attn queries", "self_attn keys", "self_attn constant", "self_attn keys shifted", "self_attn scores",
    "self_attn scores shifted", "self_attn softmax", "self_attn attention", "self_attn.o_proj linear", "add",
    "post_attention_layernorm norm", "mlp.gate_proj linear", "mlp.up_proj linear", "mlp silu", "mlp mul",
    "mlp.down_proj linear", "add.2",
]  # fmt: skip


def in_layer(layer: int, shifted: bool) -> list[str]:
    names = [name for name in ORDER if shifted or not ("shifted" in name or "constant" in name)]
    return [f"layers.{layer} {name}" if name.startswith("add") else f"layers.{layer}.{name}" for name in names]


@torch.no_grad()
def test_tensors_come_in_the_order_of_execution(model: Any, inputs: list[Prompt]) -> None:
    """Where keys have a large constant part, those without it stand behind those with it."""
    model = copy.deepcopy(model)
    model.decoder.layers[1].self_attn.k_proj.bias.view(-1, 32)[:, [15, 31]] = 100.0
    names = [tensor.name.removeprefix("decoder.") for tensor in scanned(model, inputs).tensors]
    layers = in_layer(0, False) + in_layer(1, True)
    assert names == ["embed_tokens rows", "input", *layers, "norm norm", "lm_head linear"]


def test_a_model_without_biases_has_no_constant_part(inputs: list[Prompt]) -> None:
    from small_export import small_model

    names = [tensor.name.removeprefix("decoder.") for tensor in scanned(small_model(qkv_bias=False), inputs).tensors]
    assert names[2:-2] == in_layer(0, False) + in_layer(1, False)


@pytest.mark.parametrize("name", ["layers.0.self_attn.v_proj", "layers.1.mlp.up_proj", "layers.1.mlp.down_proj"])
@torch.no_grad()
def test_a_planted_spike_is_the_first_beyond(model: Any, inputs: list[Prompt], name: str) -> None:
    plain, spiked = scanned(model, inputs), copy.deepcopy(model)
    assert plain.first_beyond(ALLOWED) is None
    spiked.decoder.get_submodule(name).weight[3] *= 2.0**20
    ranges = scanned(spiked, inputs)
    first = ranges.first_beyond(ALLOWED)
    assert first is not None
    assert first.name == f"decoder.{name} linear"
    at = ranges.tensors.index(first)
    assert ranges.tensors[:at] == plain.tensors[:at]


def test_cores_do_not_count(model: Any, inputs: list[Prompt], monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for count in (1, 3):
        monkeypatch.setattr(side_by_side, "cores", lambda count=count: count)
        found.append(scanned(model, inputs))
    assert found[0] == found[1]


def test_a_streamed_decoder_gives_the_same(tiny_model: Any) -> None:
    streamed = load_checkpoint("tiny", stream=True)
    found = []
    for model in (tiny_model, streamed):
        table = read_table(model.decoder, model.tokenizer.size)
        tally = Tally()
        tokens = [torch.ones(1, 16, model.config.text.hidden_size)]
        decoder_pass(model.decoder, decoder_inputs(model, hostile_frames()[:1], tokens, table), table, tally)
        found.append(tally.tensors())
    assert found[0] == found[1]


def test_a_model_that_gives_nan_is_named(model: Any, inputs: list[Prompt]) -> None:
    broken = copy.deepcopy(model)
    broken.decoder.layers[1].mlp.up_proj.weight.data[2, 2] = float("nan")
    with pytest.raises(TensorError, match=r"decoder\.layers\.1\.mlp\.up_proj linear gives NaN .* 'one'"):
        scanned(broken, inputs)


@pytest.mark.parametrize("name", [TABLE, HEAD])
def test_rows_are_those_of_the_matrix_whatever_the_pieces(
    tiny_model: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_model.decoder.get_parameter(name)
    read = matrix.stored

    def in_pieces(root: Any, name: str) -> Any:
        shape, pieces = read(root, name)
        return shape, lambda: (part for piece in pieces() for part in piece.split(1000))

    monkeypatch.setattr(matrix, "stored", in_pieces)
    for model in (tiny_model, load_checkpoint("tiny", stream=True)):
        found = list(rows_of(model.decoder, name))
        assert torch.equal(torch.cat([rows for _, rows in found]), whole)
        assert [first for first, _ in found] == [sum(len(r) for _, r in found[:at]) for at in range(len(found))]


def test_the_table_names_its_longest_and_shortest_rows(model: Any) -> None:
    changed = copy.deepcopy(model)
    table = changed.decoder.embed_tokens.weight
    with torch.no_grad():
        table[7] *= 50
        table[11], table[12] = 0.0, table[12] * 1e-3
        table[299] *= 1e3  # beyond the tokens
    found = read_table(changed.decoder, 299)
    assert (found.longest, found.shortest) == (7, 12)
    assert found.extremes.peak == float(table.abs().max())
    assert found.extremes.count == table.numel()


def test_prompts_hold_the_pictures_tokens_and_what_is_hostile(tiny_model: Any, heard: Any) -> None:
    table = read_table(tiny_model.decoder, tiny_model.tokenizer.size)
    pictures = hostile_frames()[:2]
    tokens = [torch.full((1, 16, tiny_model.config.text.hidden_size), float(at)) for at in range(2)]
    found = {prompt.name: prompt for prompt in decoder_inputs(tiny_model, pictures, tokens, table, heard)}
    before, after = encode_prompt(tiny_model.tokenizer, pictures[1].prompt)
    ids = torch.tensor([[*before, IMAGE_TOKEN, *after]])
    assert torch.equal(found[pictures[1].name].embeds, tiny_model.embed(ids, tokens[1]))
    texts = text_inputs(tiny_model, tiny_model.tokenizer, table)
    assert list(found) == [*(picture.name for picture in pictures), *texts]
    assert len(texts["long text"]) == found["long text"].length == min(1024, tiny_model.config.text.max_positions)
    repeated = {ids[0] for name, ids in texts.items() if name.endswith("repeated") and len(set(ids)) == 1}
    assert repeated >= {*tiny_model.config.prompt.stop_ids, table.longest, table.shortest}
    assert len(set(texts["random tokens"])) > 50
    assert all(0 <= id_ < tiny_model.tokenizer.size for ids in texts.values() for id_ in ids)
    assert heard.notes == []


def test_too_many_pictures_are_left_out_aloud(tiny_model: Any, heard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "MOST_PICTURE_POSITIONS", 90)
    pictures: list[Picture] = hostile_frames()
    tokens = [torch.zeros(1, 16, tiny_model.config.text.hidden_size)] * len(pictures)
    table = read_table(tiny_model.decoder, tiny_model.tokenizer.size)
    found = decoder_inputs(tiny_model, pictures, tokens, table, heard)
    assert [prompt.name for prompt in found][:3] == ["noise", "saturated noise", "long text"]
    assert heard.notes == [f"the decoder is scanned with the first 2 of {len(pictures)} pictures"]


def test_long_texts_are_shorter_where_a_position_costs_more() -> None:
    found = {name: longest(size.text) for name, size in SIZES.items()}
    assert found == {"0.5b": 1024, "1.5b": 1024, "7b": 306, "vicuna-7b": 308}
    assert position_flop(SIZES["7b"].text) == pytest.approx(13.05e9, rel=0.01)


def test_a_model_without_tokenizer_is_refused(tiny_model: Any) -> None:
    table = read_table(tiny_model.decoder, 10)
    tokenizer = tiny_model.tokenizer
    try:
        tiny_model.tokenizer = None
        with pytest.raises(TokenizerError, match="has no tokenizer"):
            decoder_inputs(tiny_model, [], [], table)
    finally:
        tiny_model.tokenizer = tokenizer
