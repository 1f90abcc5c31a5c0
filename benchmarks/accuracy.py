"""What compression costs the embedded checkpoint in right answers: every scheme, by its dequantised weights in PyTorch.

    python -P benchmarks/accuracy.py                       # the language model compressed, the encoder in fp16
    python -P benchmarks/accuracy.py --encoder int8        # both
    python -P benchmarks/accuracy.py --no-calibration      # all input channels weigh the same

`-P` keeps this folder off the path, where export.py would hide the package.

The questions are those of `fastvlm train --evaluate tiny`: unseen scenes, greedy decoding, an answer counts when every
token is right. Activations stay float32; what fp16 does to them is `fastvlm validate`'s to show. With a compressed
language model the embedding table is int8 per row. What an encoder scheme cannot hold is int8, as a build would be told
to. Exit code 1 when int8 loses more than half a point to fp16.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from export.compression.budget import SizeBudget, choose
from export.compression.calibration import Statistics, calibrate
from export.compression.codes import compress, dense
from export.compression.recipe import is_compressible
from export.compression.schemes import SCHEMES, Scheme
from export.compression.sensitivity import candidates, dequantised, measure
from export.compression.simulation import simulated
from export.encoder import EncoderGraph
from fastvlm.build import TARGETS
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.samples import shipped_samples
from fastvlm_ref.threads import one_thread
from fastvlm_ref.training.evaluate import Asked, evaluate, unseen_questions

MOST_LOST = 0.005  # of the right answers, by int8
Choice = Mapping[str, Scheme]


class Encoder:
    """The encoder as exported, norms folded in, its weights compressed: pixels (B, 3, N, N) -> tokens (B, T, H).

    Every row of the table asks about the same pictures: each is encoded once.
    """

    def __init__(self, model: FastVLM, name: str) -> None:
        self.seen: dict[bytes, Tensor] = {}
        self.graph = EncoderGraph(model)
        for module in self.graph.modules():
            for key, value in list(module._parameters.items()):
                if value is not None:
                    module._parameters[key] = nn.Parameter(_held(value.detach(), name), requires_grad=False)

    def __call__(self, pixels: Tensor) -> Tensor:
        return torch.cat([self._tokens(image[None]) for image in pixels])

    def _tokens(self, image: Tensor) -> Tensor:
        key = hashlib.sha256(image.contiguous().numpy().tobytes()).digest()
        if key not in self.seen:
            self.seen[key] = self.graph(image)
        return self.seen[key]


def _held(weight: Tensor, name: str) -> Tensor:
    """A weight of the encoder by scheme `name`, or "fp16"; int8 where the scheme cannot hold its shape."""
    if name == "fp16" or not is_compressible(tuple(weight.shape)):
        return weight.half().float()
    fits = SCHEMES[name].problem(tuple(weight.shape)) is None
    scheme = SCHEMES[name if fits else "int8"]
    return dense(scheme, compress(scheme, weight.contiguous()))


def language(model: FastVLM, choice: Choice, known: Statistics | None) -> FastVLM:
    """The model with a compressed language model, or with all of it in fp16 where nothing is chosen."""
    made = simulated(model, choice, known)
    for module in made.decoder.modules():
        for key, value in list(module._parameters.items()):
            if value is not None:
                module._parameters[key] = nn.Parameter(value.half().float(), requires_grad=False)
    if choice:
        table = made.decoder.embed_tokens
        weight = dequantised("embed_tokens", model.decoder.embed_tokens.weight, SCHEMES["int8"], None)
        table.weight = nn.Parameter(weight, requires_grad=False)
    return made


def choices(model: FastVLM, bits: Sequence[float], known: Statistics | None) -> dict[str, tuple[Choice, float]]:
    """What is compared: name -> (scheme of each layer, bits a weight)."""
    found: dict[str, tuple[Choice, float]] = {"fp16": ({}, 16.0)}
    tables = {target: measure(model, shipped_samples(), candidates(target))[1] for target in TARGETS}
    for name, scheme in SCHEMES.items():
        every = tables["ane"].rows
        size = 8 * sum(scheme.bytes(row.shape) for row in every) / tables["ane"].weights
        found[name] = ({row.layer: scheme for row in every}, size)
    for target, table in tables.items():
        for budget in bits:
            choice = choose(table, SizeBudget(budget))
            found[f"mixed {budget:g}, {target}"] = (choice, table.with_choice(choice).bits)
    return found


def share(model: FastVLM, encoder: Encoder, asked: Sequence[Asked]) -> float:
    """The share of right answers."""
    whole: Any = model
    whole.encode_image = encoder
    assert model.tokenizer is not None
    return evaluate(model, model.tokenizer, asked).share()


@one_thread()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", choices=("fp16", *SCHEMES), default="fp16")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--bits", type=float, nargs="+", default=[5.0], help="budgets of mixed")
    parser.add_argument("--no-calibration", action="store_true")
    arguments = parser.parse_args()
    model = load_checkpoint("tiny")
    known = None if arguments.no_calibration else calibrate(model, shipped_samples())
    asked = unseen_questions(arguments.questions)
    print(f"embedded checkpoint, {len(asked)} questions, encoder {arguments.encoder}")
    encoders = {name: Encoder(model, name) for name in ("fp16", arguments.encoder)}
    print("language model        bits   right  points lost  seconds")
    shares: dict[str, float] = {}
    for name, (choice, bits) in choices(model, arguments.bits, known).items():
        start = time.perf_counter()
        encoder = encoders["fp16" if name == "fp16" else arguments.encoder]
        shares[name] = share(language(model, choice, known), encoder, asked)
        lost, seconds = 100 * (shares["fp16"] - shares[name]), time.perf_counter() - start
        print(f"{name:<18} {bits:>7.2f} {shares[name]:>7.1%} {lost:>12.1f} {seconds:>8.0f}", flush=True)
    if shares["int8"] < shares["fp16"] - MOST_LOST:
        raise SystemExit(
            f"Error: int8 loses {shares['fp16'] - shares['int8']:.1%}, at most {MOST_LOST:.1%} is expected"
        )


if __name__ == "__main__":
    main()
