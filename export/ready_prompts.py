"""The ready-made prompts of one export: those of the checkpoint that fit into the context beside an image.

A prompt that fits beside the largest image fits beside every other; one that does not is left out and told, since no
host could ask it. It does not know what a prompt says: `fastvlm_ref.ready_prompts` does.
"""

from __future__ import annotations

from export.plan import ExportPlan
from fastvlm.progress import Progress
from fastvlm.prompts import EncodedPrompt
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.ready_prompts import encoded, ready_prompts


def fitting_prompts(model: FastVLM, plan: ExportPlan, progress: Progress) -> tuple[EncodedPrompt, ...]:
    """Returns the checkpoint's prompts with their ids, without those that leave no position for an answer.

    Of an encoder alone all are kept: its context is that of a language model which is not there. Raises CheckpointError
    for a prompts.json that is none, TokenizerError for a vocabulary that cannot be used.
    """
    assert model.source is not None
    assert model.tokenizer is not None
    prompts = encoded(ready_prompts(model.source), model.tokenizer, model.config.prompt)
    if not plan.language:
        return prompts
    tokens = max(map(model.config.vision.tokens_at, plan.image_sizes))
    fitting = tuple(prompt for prompt in prompts if tokens + prompt.count < plan.context)
    for prompt in prompts:
        if prompt not in fitting:
            progress.note(
                f"the ready-made prompt {prompt.title!r} is left out: {prompt.count} ids and the {tokens} tokens of an "
                f"image leave no room in --context {plan.context}"
            )
    return fitting
