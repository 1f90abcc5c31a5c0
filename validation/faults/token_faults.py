"""Faults of what a user reads: which ids a prompt becomes, and which token is said."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from fastvlm_ref.model.decoder import Decoder
from fastvlm_ref.prompt import prompt_record
from validation.faults.bench import Bench
from validation.faults.fault import Fault, fault
from validation.faults.otherwise import instead
from validation.faults.programs import result

FAULTS: list[Fault] = []
planted = partial(fault, FAULTS, "tokens")


@planted("build")
def another_template(bench: Bench) -> None:
    """The manifest states the template `plain`."""
    bench.tell("prompt", lambda _: prompt_record(replace(bench.model.config.prompt, template="plain", system=None)))


@planted("build")
def another_system_text(bench: Bench) -> None:
    """The manifest states another system text."""
    bench.tell("prompt.system", lambda text: f"{text} Answer in French.")


@planted("build")
def image_behind_the_text(bench: Bench) -> None:
    """The manifest puts the picture behind the question."""
    bench.tell("prompt.before", lambda before: before + "{prompt}\n")
    bench.tell("prompt.after", lambda after: after.replace("\n{prompt}", ""))


@planted("build")
def control_tokens_as_text(bench: Bench) -> None:
    """The manifest names no control tokens: `<|im_end|>` is spelled out."""
    bench.tell("prompt.controls", lambda _: [])


@planted("build")
def merges_lost(bench: Bench) -> None:
    """The build's tokenizer knows no merges: every letter is a token."""
    bench.retokenize("tokenizer.json", lambda content: content["model"].update(merges=[]))


@planted("build")
def space_before_every_text(bench: Bench) -> None:
    """The build's tokenizer puts a space before every piece of text."""

    def change(content: dict[str, Any]) -> None:
        (letters,) = (part for part in content["pre_tokenizer"]["pretokenizers"] if part["type"] == "ByteLevel")
        letters["add_prefix_space"] = True

    bench.retokenize("tokenizer.json", change)


@planted("build")
def lower_case(bench: Bench) -> None:
    """The build's tokenizer makes all letters small."""
    bench.retokenize("tokenizer.json", lambda content: content.update(normalizer={"type": "Lowercase"}))


@planted("build")
def text_begins_with_a_token(bench: Bench) -> None:
    """The build's tokenizer begins every text with a token, as Llama's does."""
    change = {"add_bos_token": True, "bos_token": "<|endoftext|>"}
    bench.retokenize("tokenizer_config.json", lambda content: content.update(change))


@planted("graph")
def neighbouring_tokens_exchanged(bench: Bench) -> None:
    """The logits of every two neighbouring tokens are exchanged."""
    with bench.language() as program:
        function = program.functions["decode"]
        logits = result(function.weighted("lm_head"))
        readers, shape = function.readers(logits), function.shape(logits)
        pairs = (1, shape[1] // 2, 2, 1)
        apart = function.add("reshape", logits, pairs, x=logits, shape=np.array(pairs, np.int32))
        turned = function.add("reverse", apart, x=apart, axes=np.array([2], np.int32))
        whole = function.add("reshape", logits, shape, x=turned, shape=np.array(shape, np.int32))
        for reader in readers:
            function.bind(reader, x=whole)


@planted("reference")
def template_of_the_reference(bench: Bench) -> None:
    """The reference is asked by the template `plain`."""
    config = bench.model.config
    bench.model.config = replace(config, prompt=replace(config.prompt, template="plain", system=None))


@planted("reference")
def second_best_token_said(bench: Bench) -> None:
    """The reference's two best logits are exchanged: it says what the package finds second."""

    def head(decoder: Decoder, hidden: Tensor) -> Tensor:
        logits = Decoder.head(decoder, hidden)
        best = logits.topk(2, -1)
        return logits.scatter(-1, best.indices, best.values.flip(-1))

    instead(bench.model.decoder, head, "head")
