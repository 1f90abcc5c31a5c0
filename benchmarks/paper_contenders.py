"""Who takes part in `paper.py first-token`, each in its own process: LLaVA-OneVision by transformers, FastVLM twice.

Each is called with `tell` and plain data (`validation.children`) and gives plain data: seconds of one first token,
vision and prefill apart. As in the paper a first token is the picture's tokens through the language model, head
included, and no text; preparing the picture's bytes is in neither stage.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from paper_flops import anyres_tokens
from paper_oracles import SEED, onevision, seeded
from paper_turns import CLOCKS

from fastvlm.build import FORMATS, read_build
from fastvlm.errors import ExecutionError, UsageError
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.engine import TorchEngine
from fastvlm_ref.synthetic.sizes import QWEN2_05B
from validation.children import Tell
from validation.memory import peak_bytes
from validation.ort.cores import usable_cores
from validation.ort.engine import OrtEngine
from validation.ort.settings import Settings

TILE = 384


class OneVision:
    """LLaVA-OneVision-0.5B of official size with seeded weights, float32, and a square picture of N = `side`."""

    def __init__(self, tell: Tell, side: int, threads: int | None, clock: str) -> None:
        self.threads, self.clock = _torch_threads(threads), CLOCKS[clock]
        tell("making weights")
        self.model: Any = seeded(onevision)
        self.side, self.tokens = side, 0
        tiles = (side // TILE) ** 2 + 1
        generator = torch.Generator().manual_seed(SEED)
        self.pixels = torch.rand(1, tiles, 3, TILE, TILE, generator=generator) * 2 - 1  # SigLIP's range

    def facts(self) -> dict[str, Any]:
        """Tokens that the picture gave, threads, and the process's peak of memory in bytes."""
        return {"tokens": self.tokens, "threads": self.threads, "peak": peak_bytes()}

    def warm(self) -> None:
        """The same with a picture of one tile, so that libraries are loaded and weights in memory."""
        self._first_token(self.pixels[:, :2], TILE)

    def run(self) -> dict[str, float]:
        """One first token: seconds of vision (tower, projector, tiles put together) and of prefill."""
        return self._first_token(self.pixels, self.side)

    def _first_token(self, pixels: torch.Tensor, side: int) -> dict[str, float]:
        with torch.inference_mode():
            start = self.clock()
            features = self.model.model.get_image_features(pixels, torch.tensor([[side, side]]), return_dict=True)
            (rows,) = features.pooler_output  # (S, H)
            seen = self.clock()
            logits = self.model(inputs_embeds=rows[None], logits_to_keep=1, use_cache=True).logits
            done = self.clock()
        self.tokens = len(rows)
        if self.tokens != anyres_tokens(side):
            raise ExecutionError(f"a picture of {side} gave {self.tokens} tokens, expected {anyres_tokens(side)}")
        _check_logits(logits.numpy(), (1, 1, self.model.config.text_config.vocab_size))
        return {"vision": seen - start, "prefill": done - seen}


class Engine(Protocol):
    """What `FastVLM` needs of the engines here: both take a whole prompt in one `decode`."""

    def tokens_at(self, side: int) -> int: ...
    def encode_image(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]: ...
    def reset(self) -> None: ...
    def decode(self, embeds: NDArray[np.float32]) -> NDArray[np.float32]: ...


class FastVLM:
    """A FastVLM-0.5B behind one of the project's engines; its subclasses say which. UsageError for another size."""

    def __init__(self, engine: Engine, text: dict[str, Any], side: int, threads: int, clock: str) -> None:
        wanted = {name: getattr(QWEN2_05B, name) for name in ("hidden_size", "layers", "intermediate_size")}
        found = {name: text[name] for name in wanted}
        if found != wanted:
            raise UsageError(f"the language model has {found}, that of FastVLM-0.5B {wanted}; name one of that size")
        self.vocabulary = text["vocab_size"]
        self.engine, self.threads, self.tokens = engine, threads, engine.tokens_at(side)
        self.clock = CLOCKS[clock]
        self.pixels = np.random.default_rng(SEED).integers(0, 256, (side, side, 3), np.uint8)

    def facts(self) -> dict[str, Any]:
        """As `OneVision.facts`."""
        return {"tokens": self.tokens, "threads": self.threads, "peak": peak_bytes()}

    def warm(self) -> None:
        """One first token that is not counted."""
        self.run()

    def run(self) -> dict[str, float]:
        """As `OneVision.run`; vision is tower and projector."""
        self.engine.reset()
        start = self.clock()
        rows = self.engine.encode_image(self.pixels)
        seen = self.clock()
        logits = self.engine.decode(rows)
        done = self.clock()
        _check_logits(logits, (self.vocabulary,))
        return {"vision": seen - start, "prefill": done - seen}


class Reference(FastVLM):
    """The checkpoint in this project's PyTorch reference, float32."""

    def __init__(self, tell: Tell, checkpoint: str, side: int, threads: int | None, clock: str) -> None:
        used = _torch_threads(threads)
        tell("reading the checkpoint")
        model = load_checkpoint(checkpoint)
        super().__init__(TorchEngine(model, image_size=side), asdict(model.config.text), side, used, clock)


class OnnxBuild(FastVLM):
    """A build of ONNX files; `threads` None is onnxruntime's choice here, one for each physical core."""

    def __init__(self, tell: Tell, build: str, side: int, threads: int | None, clock: str) -> None:
        tell("opening the build")
        found = read_build(Path(build), FORMATS)
        engine = OrtEngine(found, side, settings=Settings(threads=threads))
        if engine.together < engine.tokens_at(side):
            raise UsageError(f"a picture of {side} gives {engine.tokens_at(side)} tokens, more than one call takes")
        engine.load()
        super().__init__(engine, found.manifest["model"]["text"], side, threads or usable_cores(), clock)
        self.scheme = found.manifest["compression"]["scheme"]

    def facts(self) -> dict[str, Any]:
        """As `OneVision.facts`, with the build's variant."""
        return super().facts() | {"scheme": self.scheme}


def _torch_threads(threads: int | None) -> int:
    """Sets how many threads torch computes with, where that was asked for; returns how many there are."""
    if threads:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def _check_logits(logits: NDArray[np.float32], shape: tuple[int, ...]) -> None:
    """Raises ExecutionError where what was timed has computed no numbers: NaN may be faster."""
    if logits.shape != shape or not np.isfinite(logits).all():
        raise ExecutionError(f"logits of shape {logits.shape}, expected {shape} and finite; nothing was measured")
