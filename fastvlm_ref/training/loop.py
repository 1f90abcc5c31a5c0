"""The training loop: one stage in, the learned parts out; every stage of the recipe and every fine-tune runs this.

Notable choices:
- everything random is a function of (stage, step), and model, optimiser and step are saved together, so that an
  interrupted run that is resumed ends with the weights of one that was not;
- frozen parts run in eval mode (their batch norms keep their statistics) and get no gradient;
- channels-last memory: depthwise convolutions dominate here and run twice as fast in it on a CPU.
It does not know where pictures and questions come from (`batches.Source`).
Source of the settings: FastVLM, arXiv 2412.13303 (AdamW, cosine, warm-up 0.03).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fastvlm.progress import SILENT, Progress
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.threads import one_thread
from fastvlm_ref.training.batches import Batch, Source, batches
from fastvlm_ref.training.finding import FindingHeads
from fastvlm_ref.training.packing import Packed, answer_loss, layer_states
from fastvlm_ref.training.replicas import Replicas
from fastvlm_ref.training.stages import PARTS, Stage
from fastvlm_ref.training.state import StateFile
from fastvlm_ref.training.supervision import DenseHeads

LOG_EVERY = 20
DENSE_SHARE = 0.25  # of the dense losses where answers are learned too
FINDING_SHARE = 0.3


class Learner(nn.Module):
    """The model with the loss of a stage, and the heads that the stage has and throws away."""

    def __init__(self, model: FastVLM, stage: Stage) -> None:
        super().__init__()
        self.model = model
        torch.manual_seed(stage.seed)
        self.joint = stage.objective == "joint"
        vision, text = model.config.vision, model.config.text
        self.heads: DenseHeads | None = None
        self.finding: FindingHeads | None = None
        if self.joint or stage.objective == "dense":
            tokens = vision.tokens_at(stage.image_size) if self.joint else 0
            self.heads = DenseHeads(vision.features, tokens)
        if stage.objective == "finding":
            self.finding = FindingHeads(text.hidden_size, text.layers)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Returns the loss and what else is worth watching."""
        losses: list[Tensor] = []
        seen: dict[str, float] = {}
        tokens: Tensor | None = None
        if batch.pixels is not None:
            pixels = batch.pixels.float().div(255).contiguous(memory_format=torch.channels_last)
            features = self.model.vision_encoder(pixels)
            if self.heads is not None:
                losses.append(self._dense(features, batch, seen))
            if batch.packed is not None:
                tokens = self.model.projector(features)
        if batch.packed is not None:
            losses.append(self._answers(batch.packed, tokens, seen))
        return torch.stack(losses).sum(), seen

    def _dense(self, features: Tensor, batch: Batch, seen: dict[str, float]) -> Tensor:
        assert self.heads is not None
        assert batch.token_labels is not None
        assert batch.pooled_labels is not None
        loss, more = self.heads.loss(features, batch.token_labels, batch.pooled_labels)
        seen |= more
        if self.heads.place is None:
            return loss
        where, more = self.heads.place_loss(features)
        seen |= more
        return loss * DENSE_SHARE + where

    def _answers(self, packed: Packed, tokens: Tensor | None, seen: dict[str, float]) -> Tensor:
        decoder = self.model.decoder
        states = layer_states(decoder, packed, tokens)
        loss, more = answer_loss(decoder, packed, states[-1], per_question=self.joint)
        seen |= more
        if self.finding is None:
            return loss
        found, more = self.finding.loss(states, packed.marks)
        seen |= more
        return loss + FINDING_SHARE * found


def prepare(model: FastVLM, stage: Stage) -> None:
    """Freezes what the stage does not train, and brings the rest into training mode."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for part in PARTS:
        learns = part in stage.trains
        module = getattr(model, part)
        module.train(learns)
        module.requires_grad_(learns)


def optimiser(learner: Learner, stage: Stage) -> torch.optim.AdamW:
    """Returns AdamW with no decay on norms, biases, layer scales and embeddings; `share` scales a group's rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            vision = name.startswith("model.vision_encoder.") and stage.vision_rate is not None
            share = stage.vision_rate / stage.rate if vision and stage.vision_rate is not None else 1.0
            flat = parameter.squeeze().ndim <= 1 or "embed_tokens" in name
            groups.setdefault((share, 0.0 if flat else stage.weight_decay), []).append(parameter)
    listed = [{"params": members, "share": share, "weight_decay": decay} for (share, decay), members in groups.items()]
    return torch.optim.AdamW(listed, lr=stage.rate, betas=stage.betas)


@one_thread()  # with more of torch's own, they would take the cores of the replicas' threads
def train_stage(
    model: FastVLM,
    stage: Stage,
    source: Source,
    work: Path,
    *,
    made_from: Mapping[str, str],
    stop_at: int | None = None,
    save_every: int = 200,
    background: bool = True,
    progress: Progress = SILENT,
) -> None:
    """Trains `model` in place from where the state in `work` stands to the stage's end (or `stop_at`).

    `made_from` identifies the model's first values and the data. Writes `work/<stage>.pt` (state) and lines of
    `work/curve.jsonl` (step, loss, seconds). Raises CheckpointError where the state is damaged or another run's,
    OutputError where it cannot be written.
    """
    work.mkdir(parents=True, exist_ok=True)
    prepare(model, stage)
    learner = Learner(model, stage)
    adam = optimiser(learner, stage)
    state = StateFile(work, stage, made_from)
    if left := state.leftover():
        progress.note(left)
    start = _resume(state, learner, adam)
    stop = stage.last_step if stop_at is None else min(stop_at, stage.last_step)
    learning = [parameter for group in adam.param_groups for parameter in group["params"]]
    replicas = Replicas(learner, _loss, stage.replicas)
    curve = _Curve(work / "curve.jsonl", stage)
    try:
        with progress.stage(f"Training: {stage.name}", stage.steps) as advance:
            advance(start)
            for step, parts in enumerate(batches(source, stage, start, stop, background=background), start):
                for group in adam.param_groups:
                    group["lr"] = stage.rate * stage.rate_at(step) * group["share"]
                loss, seen = replicas.backward(parts)
                nn.utils.clip_grad_norm_(learning, stage.clip)
                adam.step()
                curve.note(step, loss, seen)
                if (step + 1) % save_every == 0 or step + 1 == stop:
                    replicas.settle()
                    _save(state, step + 1, learner, adam)
                advance(1)
    finally:
        replicas.close()


def _loss(learner: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    result: tuple[Tensor, dict[str, float]] = learner(batch)
    return result


def finished(stage: Stage, model: FastVLM, work: Path, made_from: Mapping[str, str]) -> bool:
    """Returns whether `work` holds the finished stage, and if so gives `model` the parts that it learned."""
    file = StateFile(work, stage, made_from)
    state = file.read()
    if state is None or state["step"] < stage.last_step:
        return False
    with file.intact():
        _load_parts(model, state["parts"])
    return True


def _save(file: StateFile, step: int, learner: Learner, adam: torch.optim.AdamW) -> None:
    parts = {part: getattr(learner.model, part).state_dict() for part in file.stage.trains}
    file.save(step, parts, _heads(learner).state_dict(), adam.state_dict())


def _heads(learner: Learner) -> nn.ModuleDict:
    """What a stage has beside the model; thrown away at its end, kept while it can be resumed."""
    heads = {"dense": learner.heads, "finding": learner.finding}
    return nn.ModuleDict({name: module for name, module in heads.items() if module is not None})


def _resume(file: StateFile, learner: Learner, adam: torch.optim.AdamW) -> int:
    state = file.read()
    if state is None:
        return 0
    with file.intact():
        _load_parts(learner.model, state["parts"])
        _heads(learner).load_state_dict(state["heads"])
        adam.load_state_dict(state["adam"])
    return int(state["step"])


def _load_parts(model: FastVLM, parts: dict[str, dict[str, Tensor]]) -> None:
    for part, tensors in parts.items():
        getattr(model, part).load_state_dict(tensors)


class _Curve:
    """Appends means over every 20 steps to a file of JSON lines."""

    def __init__(self, path: Path, stage: Stage) -> None:
        self.path, self.stage = path, stage
        self.values: dict[str, list[float]] = {}
        self.since = time.monotonic()

    def note(self, step: int, loss: float, seen: dict[str, float]) -> None:
        """Keeps a step's numbers; writes their means every LOG_EVERY steps and at the end."""
        for name, value in {"loss": loss, **seen}.items():
            if value == value:  # not NaN: a batch can lack a label
                self.values.setdefault(name, []).append(value)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == self.stage.steps:
            means = {name: float(f"{sum(values) / len(values):.4g}") for name, values in self.values.items()}
            seconds = round(time.monotonic() - self.since, 1)
            line = {"stage": self.stage.name, "step": step + 1, "seconds": seconds, **means}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self.values, self.since = {}, time.monotonic()
