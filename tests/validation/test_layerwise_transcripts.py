"""The reference layer by layer, all samples at once: the bits of one after the other in memory."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import numpy as np
import pytest
import synthetic
import torch
from synthetic import untied

from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.checkpoint.stream import WeightStream
from fastvlm_ref.engine import TorchEngine
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.threads import one_thread
from validation.layerwise import head
from validation.layerwise.transcripts import transcribe_all
from validation.reference import Rows, Transcript, transcribe

LENGTHS, STEPS = (1, 2, 40), (3, 5, 4)


def prompts(model: FastVLM) -> list[Rows]:
    """Embeddings (S, H) of ids that differ from sample to sample."""
    ids = np.random.default_rng(0).integers(0, model.config.text.vocab_size, (len(LENGTHS), max(LENGTHS)))
    engine = TorchEngine(model, 8)
    return [engine.embed(row[:length].tolist()) for row, length in zip(ids, LENGTHS, strict=True)]


@one_thread()
def in_memory(model: FastVLM) -> list[Transcript]:
    engine = TorchEngine(model, 64)
    return [transcribe(engine, rows, steps, Event()) for rows, steps in zip(prompts(model), STEPS, strict=True)]


def equal(first: Transcript, second: Transcript) -> bool:
    return first.ids == second.ids and np.array_equal(first.logits, second.logits)


@pytest.fixture(params=["tiny", "seeded"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> str | Path:
    """The embedded checkpoint, whose head is the embedding table, and a seeded one with a head of its own."""
    return "tiny" if request.param == "tiny" else synthetic.write_llava(tmp_path / "it", untied(), shards=3)


def test_the_same_bits(checkpoint: str | Path) -> None:
    held, streamed = load_checkpoint(checkpoint), load_checkpoint(checkpoint, stream=True)
    wanted = in_memory(held)
    for model in (streamed, held):
        found = transcribe_all(model, prompts(held), STEPS)
        assert [len(one.ids) for one in found] == list(STEPS)
        assert all(map(equal, found, wanted))
    with torch.no_grad():
        held.decoder.layers[-1].mlp.down_proj.weight[0] *= -1
    assert not any(map(equal, found, in_memory(held)))


def test_every_pass_reads_every_layer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_checkpoint("tiny", stream=True)
    held: list[int] = []
    hold = WeightStream.hold
    monkeypatch.setattr(WeightStream, "hold", lambda stream: (held.append(stream.holders), hold(stream))[1])
    transcribe_all(model, prompts(model), STEPS)
    assert held == [0] * max(STEPS) * len(model.decoder.layers)
    assert [name for name, value in model.decoder.named_parameters() if value.device.type != "meta"] == ["norm.weight"]


@one_thread()
def test_results_of_layers_are_shown() -> None:
    model = load_checkpoint("tiny", stream=True)
    shown: dict[tuple[int, int, str], torch.Tensor] = {}
    rows = prompts(model)
    transcribe_all(model, rows, STEPS, seen=lambda *place: shown.__setitem__(place[:3], place[3].clone()))
    names = [f"decoder.layers.{index}" for index in range(len(model.decoder.layers))]
    passed = {(2, 0), *((sample, position) for sample in range(3) for position in _decoded(sample))} | {(1, 0)}
    assert {place[:2] for place in shown if place[2] != "decoder.norm"} == passed
    assert {place[2] for place in shown} == {*names, "decoder.norm"}
    caught: list[torch.Tensor] = []
    hook = model.decoder.layers[1].register_forward_hook(lambda module, taken, given: caught.append(given))
    with torch.inference_mode():
        model.decoder(torch.from_numpy(rows[2][:-1])[None])
    hook.remove()
    assert torch.equal(shown[2, 0, "decoder.layers.1"], caught[0])


def _decoded(sample: int) -> range:
    return range(LENGTHS[sample] - 1, LENGTHS[sample] - 1 + STEPS[sample])


@pytest.mark.parametrize("vocabulary", [96, 1000, 5003])
def test_a_head_in_blocks(vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of the file end anywhere; blocks are of 64 rows, the last one of what is left."""
    monkeypatch.setattr(head, "block_rows", lambda width: 64)
    generator = torch.Generator().manual_seed(0)
    weight, states = torch.randn(vocabulary, 48, generator=generator), torch.randn(2, 1, 1, 48, generator=generator)
    stored = weight.bfloat16()
    pieces = stored.reshape(-1).split(1777)
    monkeypatch.setattr(head, "stored", lambda root, name: (weight.shape, lambda: iter(pieces)))
    found = head.logits_of(None, list(states))  # type: ignore[arg-type]
    for state, logits in zip(states, found, strict=True):
        wanted = torch.nn.functional.linear(state, stored.float())[0, 0]
        assert torch.equal(torch.from_numpy(logits), wanted)
