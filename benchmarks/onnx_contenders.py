"""The contenders of `onnx.py`, each served in a process of its own (`validation.children`): the same surface twice.

Both are handed pixels and ids that were prepared before: reading and resizing a picture is no part of any figure.
`transformers` gets the same checkpoint in the Hugging Face layout, float32, sdpa attention, a head on the last position
alone, its cache handed on by hand: what `generate` adds besides is left out, in its favour.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from validation.children import Tell
from validation.memory import peak_bytes

OPS = Path(__file__).resolve().parents[1] / "tests" / "reference"  # torchvision_ops: its wheel beside a CPU torch


class Ours:
    """A build of ONNX files by `validation.ort`, as `fastvlm run` drives it."""

    def __init__(self, tell: Tell, build: str, side: int, threads: int) -> None:
        from fastvlm.build import FORMATS, read_build
        from validation.ort.engine import OrtEngine
        from validation.ort.settings import Settings

        tell("opening")
        start = time.perf_counter()
        self.engine = OrtEngine(read_build(build, FORMATS), side, settings=Settings(threads))
        self.engine.load()
        self.opened = time.perf_counter() - start
        self.last = 0

    def first(self, pixels: str, before: list[int], after: list[int]) -> dict[str, float]:
        """Seconds of picture, prompt and both, until the first id is known."""
        picture = np.load(pixels)
        start = time.perf_counter()
        features = self.engine.encode_image(picture)
        encoded = time.perf_counter()
        self.engine.reset()
        rows = np.concatenate([self.engine.embed(before), features, self.engine.embed(after)])
        self.last = int(self.engine.decode(rows).argmax())
        end = time.perf_counter()
        return {"encoder": encoded - start, "prefill": end - encoded, "first": end - start, "rows": len(rows)}

    def decode(self, count: int) -> dict[str, list[Any]]:
        """Seconds and ids of `count` greedy steps."""
        seconds, ids = [], [self.last]
        for _ in range(count):
            start = time.perf_counter()
            self.last = int(self.engine.decode(self.engine.embed([self.last])).argmax())
            seconds.append(time.perf_counter() - start)
            ids.append(self.last)
        return {"seconds": seconds, "ids": ids}

    def follow_up(self, ids: list[int]) -> float:
        """Seconds until the first id of the answer to a further question about the same picture."""
        start = time.perf_counter()
        self.last = int(self.engine.decode(self.engine.embed([self.last, *ids])).argmax())
        return time.perf_counter() - start

    def about(self) -> dict[str, float]:
        """Peak of resident memory in bytes so far, and seconds that opening took."""
        return {"peak": peak_bytes(), "opened": self.opened}


class Transformers:
    """`FastVlmForConditionalGeneration` with timm's tower, by torch, on the CPU."""

    def __init__(self, tell: Tell, checkpoint: str, threads: int) -> None:
        tell("importing")
        sys.path.append(str(OPS))
        import torch
        import torchvision_ops

        if (reason := torchvision_ops.usable()) is not None:
            from fastvlm.errors import MissingDependency

            raise MissingDependency(f"{reason}; `make oracles` installs both, PYTHONPATH=.venv/oracles shows them")
        import transformers

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        tell("opening")
        start = time.perf_counter()
        kind = transformers.FastVlmForConditionalGeneration
        self.model = kind.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="sdpa").eval()
        self.opened = time.perf_counter() - start
        self.encoded = 0.0
        self.model.model.multi_modal_projector.register_forward_hook(self._note_encoded)
        self.cache: Any = None
        self.last = 0

    def _note_encoded(self, *_: Any) -> None:
        self.encoded = time.perf_counter()

    def _step(self, ids: list[int], **given: Any) -> None:
        rows = self.torch.tensor([ids])
        out = self.model(rows, past_key_values=self.cache, use_cache=True, logits_to_keep=1, **given)
        self.cache, self.last = out.past_key_values, int(out.logits[0, -1].argmax())

    def first(self, pixels: str, before: list[int], after: list[int]) -> dict[str, float]:
        """As `Ours.first`."""
        picture = self.torch.from_numpy(np.load(pixels)).permute(2, 0, 1)[None].float().div(255).contiguous()
        slots = (picture.shape[-1] // 64) ** 2
        ids = [*before, *[self.model.config.image_token_id] * slots, *after]
        self.cache = None
        start = time.perf_counter()
        self._step(ids, pixel_values=picture)
        end = time.perf_counter()
        encoder = self.encoded - start
        return {"encoder": encoder, "prefill": end - self.encoded, "first": end - start, "rows": len(ids)}

    def decode(self, count: int) -> dict[str, list[Any]]:
        """As `Ours.decode`."""
        seconds, ids = [], [self.last]
        for _ in range(count):
            start = time.perf_counter()
            self._step([self.last])
            seconds.append(time.perf_counter() - start)
            ids.append(self.last)
        return {"seconds": seconds, "ids": ids}

    def follow_up(self, ids: list[int]) -> float:
        """As `Ours.follow_up`, by a cache that its caller kept."""
        start = time.perf_counter()
        self._step([self.last, *ids])
        return time.perf_counter() - start

    def about(self) -> dict[str, float]:
        """As `Ours.about`."""
        return {"peak": peak_bytes(), "opened": self.opened}
