"""From nothing to the embedded checkpoint: every stage of the recipe in turn, then the folder.

Notable choices:
- each stage starts from the parts that the stages before it left in the work folder, so an interrupted recipe goes on
  where it stopped, in the middle of a stage too;
- the encoder keeps its batch norms through all stages; they are folded when the folder is written.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from fastvlm.progress import SILENT, Progress
from fastvlm_ref.checkpoint.opening import TINY as EMBEDDED_FOLDER
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.tokenizer import load_tokenizer
from fastvlm_ref.training.batch_norm import add_batch_norms, fold_batch_norms
from fastvlm_ref.training.batches import DrawnScenes
from fastvlm_ref.training.examples import write_examples, write_prompts
from fastvlm_ref.training.initial import initialise
from fastvlm_ref.training.loop import finished, train_stage
from fastvlm_ref.training.saving import save_llava
from fastvlm_ref.training.stages import RECIPE, TINY
from fastvlm_ref.training.vocabulary import write_vocabulary

SEED = 0  # of the first values
MADE_FROM = {"recipe": f"tiny, first values of seed {SEED}, drawn scenes"}  # the rest is in the stages

CARD = """---
license: apache-2.0
---
# tiny: the embedded checkpoint of fastvlm-coreml

A FastVLM of 3.7 million parameters that answers questions about drawn scenes: their shapes, colours, sizes, counts and
places, and a word or number written in them. It knows nothing else; no photo, no Apple weight and no text from
elsewhere went into it. Trained by `fastvlm train` (`docs/training.md`), a pure function of a seed and this code.
Licence: Apache-2.0, like the code.
"""


def start_model() -> FastVLM:
    """Returns the untrained tiny model, with batch norms in its encoder."""
    model = FastVLM(TINY)
    initialise(model, SEED)
    add_batch_norms(model.vision_encoder)
    return model


def run_recipe(work: Path, *, progress: Progress = SILENT) -> FastVLM:
    """Returns the model after all stages of the recipe, going on from what `work` holds.

    Raises CheckpointError where a state in `work` is damaged or belongs to another run.
    """
    work.mkdir(parents=True, exist_ok=True)
    write_vocabulary(work)
    tokenizer = load_tokenizer(work, TINY.text.vocab_size)
    model = start_model()
    for stage in RECIPE:
        if not finished(stage, model, work, MADE_FROM):
            train_stage(model, stage, DrawnScenes(tokenizer), work, made_from=MADE_FROM, progress=progress)
    return model


def write_checkpoint(model: FastVLM, work: Path, folder: Path) -> None:
    """Folds the batch norms and writes the LLaVA folder, with its card, licence, prompts and pictures."""
    fold_batch_norms(model.vision_encoder)
    save_llava(model.eval(), load_tokenizer(work, TINY.text.vocab_size), folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    shutil.copyfile(EMBEDDED_FOLDER / "LICENSE", folder / "LICENSE")
    write_prompts(folder)
    write_examples(folder / "pictures")
