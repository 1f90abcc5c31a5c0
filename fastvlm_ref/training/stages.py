"""The recipe as frozen numbers: the tiny model's sizes, and one `Stage` for each pass of the training loop.

The paper's order at small scale: encoder apart, language model apart, stage 1 (projector alone), stage 2 (everything).
Stages 1.5 and 3 (higher image side, instruction data of the user's own) are further configs of the same loop.
Change a number here and the weights in `fastvlm_ref/tiny` are no longer this recipe's.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastvlm_ref.config import FastVLMConfig, TextConfig, VisionConfig
from fastvlm_ref.training.scenes import TRAIN_SEED

PARTS = ("vision_encoder", "projector", "decoder")
VOCABULARY = 576  # rows: 559 tokens (256 bytes, 300 merges, three control tokens), the rest unused as in Qwen2

TINY = FastVLMConfig(
    model_type="llava_qwen2",
    vision=VisionConfig(
        image_size=256,
        depths=(1, 1, 2, 2, 2),
        widths=(16, 32, 64, 128, 256),
        mlp_widths=(32, 64, 192, 384, 768),
        features=512,
        se_channels=32,
    ),
    text=TextConfig(
        hidden_size=192,
        layers=4,
        heads=6,
        kv_heads=2,
        head_dim=32,
        intermediate_size=512,
        vocab_size=VOCABULARY,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        qkv_bias=True,
        tied_head=True,
        max_positions=2048,
    ),
    licence="apache-2.0",
)


@dataclass(frozen=True)
class Stage:
    """One pass of the loop: which parts learn, from what, for how long."""

    name: str
    objective: str  # dense: what lies under each token | text: answers from a described scene | answers: from a picture
    # | joint: answers, every question with the same say, and dense, and which token it is
    # | finding: answers about named shapes above all, and where the decoder's middle layers see what is named
    trains: tuple[str, ...]
    steps: int
    pictures: int  # scenes (or rows of the user's data) a step
    questions: int  # asked of each scene, so that a picture is encoded once for several answers
    rate: float  # peak learning rate
    vision_rate: float | None = None  # the encoder's own, where it differs
    warm_up: float = 0.03  # share of the steps
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    replicas: int = 2  # threads that each run a part of the batch; part of the recipe, since sums depend on it
    seed: int = TRAIN_SEED
    image_size: int = 256
    ends_at: int | None = None  # the next stage goes on before this one's schedule has run down

    @property
    def last_step(self) -> int:
        """The number of steps that are really made."""
        return self.steps if self.ends_at is None else self.ends_at

    def rate_at(self, step: int) -> float:
        """The schedule in [0, 1] at `step`: linear warm-up, then a half cosine to zero."""
        from math import cos, pi

        rising = max(1, round(self.warm_up * self.steps))
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + cos(pi * (step - rising) / max(1, self.steps - rising)))


ENCODER = Stage("encoder", "dense", ("vision_encoder",), steps=2400, pictures=24, questions=0, rate=2e-3)
LANGUAGE = Stage("language", "text", ("decoder",), steps=400, pictures=24, questions=6, rate=2e-3)
STAGE_1 = Stage("stage1", "answers", ("projector",), steps=150, pictures=16, questions=6, rate=2e-3)
STAGE_2 = Stage(
    "stage2", "answers", PARTS, steps=1500, pictures=16, questions=6, rate=1e-3, vision_rate=5e-4, ends_at=1000
)
# still stage 2: captions no longer drown one-word answers, and features learn where they are
STAGE_2B = Stage("stage2b", "joint", PARTS, steps=1000, pictures=12, questions=9, rate=1e-3, vision_rate=5e-4)
# the encoder is done; what is left is to find the shape that a question names, which decides four of the nine forms
STAGE_2C = Stage("stage2c", "finding", ("projector", "decoder"), steps=1000, pictures=16, questions=12, rate=1.2e-3)
RECIPE = (ENCODER, LANGUAGE, STAGE_1, STAGE_2, STAGE_2B, STAGE_2C)

# further passes of the same loop; fine-tuning takes STAGE_3 unless told otherwise
STAGE_1_5 = Stage("stage1.5", "answers", PARTS, steps=300, pictures=8, questions=6, rate=3e-4, image_size=512)
STAGE_3 = Stage("stage3", "answers", PARTS, steps=200, pictures=8, questions=1, rate=2e-4, vision_rate=2e-5)
STAGES = {stage.name: stage for stage in (*RECIPE, STAGE_1_5, STAGE_3)}
