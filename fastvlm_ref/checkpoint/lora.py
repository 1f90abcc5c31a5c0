"""LoRA: merges an adapter, and what was trained beside it, into a base checkpoint while reading.

W + scale · B·A, scale = alpha / r, or alpha / √r for rank-stabilised LoRA; tensors that the adapter holds whole
(modules_to_save, trained biases, LLaVA's non-LoRA tensors) replace the base's. Nothing is merged until a tensor is
read, so that it works for streaming too.
LLaVA keeps its non-LoRA tensors in a pickle. It is opened only when asked, and then as `pickled.py` says.
Source: LoRA, arXiv 2106.09685; rsLoRA, arXiv 2312.03732; the adapter format of huggingface/peft; LLaVA `train.py`.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fastvlm.errors import CheckpointError, ConfigError, MissingBase, TensorError
from fastvlm.quoting import short
from fastvlm_ref.checkpoint.folder import VISIBLE_WEIGHTS, read_json
from fastvlm_ref.checkpoint.header import is_name
from fastvlm_ref.checkpoint.layouts import own_names, unused, unwrapped
from fastvlm_ref.checkpoint.pickled import read_pickle
from fastvlm_ref.checkpoint.tensors import LazyTensor, TensorFile, computed

CONFIG = "adapter_config.json"
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
OTHERS = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")
MOST = 1_000_000  # of r, alpha and their patterns; adapters have 4 to 1,024
MOST_PATTERNS = 1_024  # lines of them; one for each matrix of 7B would be 224
MOST_NAMED = 60  # problems that one error lists
FACTOR = re.compile(r"^(.+)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?$")


@dataclass(frozen=True)
class Rule:
    """The fields of adapter_config.json that decide how a pair of factors becomes a change of weights."""

    r: int
    alpha: float
    rank_stabilised: bool
    transposed: bool  # fan_in_fan_out: the base stores (in, out)
    ranks: Mapping[str, Any]
    alphas: Mapping[str, Any]

    def scale(self, module: str, rank: int) -> float:
        """Returns the factor of B·A for a module; raises TensorError when its rank is not the stated one."""
        stated = _matching(self.ranks, module, self.r)
        if stated != rank:
            raise TensorError(f"the adapter of {module} has rank {rank}, {CONFIG} states {stated}")
        alpha = _matching(self.alphas, module, self.alpha)
        return float(alpha / math.sqrt(rank) if self.rank_stabilised else alpha / rank)


@dataclass(frozen=True)
class Adapter:
    """An opened adapter folder: its rule, its tensors by stored name (prefixes stripped), and the files read."""

    folder: Path
    rule: Rule
    tensors: dict[str, LazyTensor]
    files: tuple[Path, ...]


def is_adapter(folder: Path) -> bool:
    """Tells whether a folder holds a LoRA adapter and no weights of its own."""
    return (folder / CONFIG).is_file() and not any(
        not path.name.startswith(("adapter_", "non_lora_")) for path in folder.glob(VISIBLE_WEIGHTS)
    )


def needs_base(folder: Path) -> MissingBase:
    """Returns the error for an adapter without its base, with the options that the command lacks."""
    named = read_json(folder / CONFIG).get("base_model_name_or_path")
    base = str(named) if is_name(named) else "CHECKPOINT"
    pickle = any((folder / name).is_file() for name in (ADAPTERS[1], OTHERS[1])) and not (folder / OTHERS[0]).is_file()
    options = ("--base", base, *(["--allow-pickle"] if pickle else []))
    return MissingBase(
        f"{folder} is a LoRA adapter, which needs the checkpoint it was trained on; add {shlex.join(options)}", options
    )


def open_adapter(folder: Path, allow_pickle: bool) -> Adapter:
    """Opens an adapter folder; raises CheckpointError for missing or damaged files, ConfigError for other methods."""
    rule = _rule(read_json(folder / CONFIG))
    files = [_one_of(folder, ADAPTERS), _one_of(folder, OTHERS)]
    if files[0] is None:
        raise CheckpointError(f"{folder} has {CONFIG} but no {ADAPTERS[0]}; copy it from the training output")
    tensors: dict[str, LazyTensor] = {}
    found = [file for file in files if file is not None]
    for file in found:
        held = TensorFile(file).tensors if file.suffix == ".safetensors" else _pickled(file, allow_pickle)
        for name, tensor in held.items():
            plain = re.sub(r"\.(base_layer|modules_to_save(\.default)?)(?=\.|$)", "", unwrapped(name))
            if plain in tensors:
                raise CheckpointError(f"the adapter holds {plain!r} twice, last in {file.name}; expected it once")
            tensors[plain] = tensor
    return Adapter(folder, rule, tensors, tuple(found))


def _one_of(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if os.path.lexists(folder / name)), None)


def _rule(config: Mapping[str, Any]) -> Rule:
    problems = []
    if config.get("peft_type", "LORA") != "LORA":
        problems.append(f"peft_type is {short(config['peft_type'])}, supported is LORA")
    problems += [
        f"{name} is set, which is not supported" for name in ("use_dora", "use_qalora", "lora_bias") if config.get(name)
    ]
    r, alpha = config.get("r"), config.get("lora_alpha")
    if not _number(r) or not isinstance(r, int):
        problems.append(f"r is {short(r)}, expected a whole number from 1 to {MOST:,}")
    if not _number(alpha):
        problems.append(f"lora_alpha is {short(alpha)}, expected a number above 0, at most {MOST:,}")
    patterns = [config.get(name) or {} for name in ("rank_pattern", "alpha_pattern")]
    if not all(isinstance(value, dict) and all(map(_number, value.values())) for value in patterns):
        problems.append(f"rank_pattern or alpha_pattern is no table of numbers above 0, at most {MOST:,}")
    elif sum(map(len, patterns)) > MOST_PATTERNS:
        problems.append(f"rank_pattern and alpha_pattern have more than {MOST_PATTERNS:,} lines")
    elif odd := [name for value in patterns for name in value if not re.fullmatch(r"\^?[\w.]+", name)]:
        # They are regular expressions in peft; one that is not understood must not fall back to the default in silence.
        problems.append(
            f"rank_pattern or alpha_pattern uses the expression {short(odd[0])}, supported are plain module names"
        )
    if problems:
        raise ConfigError(f"{CONFIG} cannot be used: {'; '.join(problems)}")
    return Rule(
        int(str(r)), float(str(alpha)), bool(config.get("use_rslora")), bool(config.get("fan_in_fan_out")), *patterns
    )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= MOST


def _matching(patterns: Mapping[str, Any], module: str, default: float) -> float:
    """Returns the value of the first pattern that names the module, or whose dotted end does (peft's rule)."""
    for pattern, value in patterns.items():
        name = pattern.removeprefix("^")
        if module == name or (name == pattern and module.endswith("." + name)):
            return float(value)
    return default


def _pickled(file: Path, allowed: bool) -> dict[str, LazyTensor]:
    """Reads a pickle of tensors with torch's weights-only unpickler, when allowed."""
    if not allowed:
        raise CheckpointError(
            f"{file} is a pickle, which can run code when opened; if you trust who made it, add --allow-pickle "
            "(it is then read by torch's weights-only reader)"
        )
    return read_pickle(file)


def merged(base: Mapping[str, LazyTensor], base_stored: list[str], adapter: Adapter) -> dict[str, LazyTensor]:
    """Returns the base's tensors (by our names) with the adapter merged in.

    `base_stored` are the base's stored names, by which the adapter names its modules. Raises TensorError listing every
    factor without partner, module that the base lacks, and shape that does not fit.
    """
    names = {unwrapped(stored): ours for stored, ours in own_names(base_stored).items()}
    result, problems = dict(base), []
    pairs: dict[tuple[str, bool], dict[str, LazyTensor]] = {}
    for name, tensor in adapter.tensors.items():
        if found := FACTOR.match(name):
            pairs.setdefault((found[1], bool(found[2])), {})[found[3]] = tensor
        elif "lora_" in name:
            problems.append(f"{name} belongs to another method than plain LoRA")
        else:
            ours = names.get(name) or own_names([name])[name]
            if not unused(ours):
                result[ours] = tensor
    for (module, embedding), pair in pairs.items():
        ours = names.get(f"{module}.weight") or own_names([f"{module}.weight"])[f"{module}.weight"]
        if ours not in result:
            problems.append(f"the base has no {module}.weight")
        elif pair.keys() != {"A", "B"}:
            problems.append(f"{module} has lora_{next(iter(pair))} alone")
        elif isinstance(change := _changed(result[ours], pair, adapter.rule, module, embedding), str):
            problems.append(change)
        else:
            result[ours] = change
    if problems:
        more = [f"and {len(problems) - MOST_NAMED} more"] if len(problems) > MOST_NAMED else []
        listed = "; ".join([*problems[:MOST_NAMED], *more])
        raise TensorError(f"the adapter in {adapter.folder} does not fit its base: {listed}")
    return result


def _changed(
    weight: LazyTensor, pair: Mapping[str, LazyTensor], rule: Rule, module: str, embedding: bool
) -> LazyTensor | str:
    """Returns the merged weight, or the sentence that says why the shapes do not allow it."""
    down, up = pair["A"], pair["B"]  # (r, in, …) and (out, r, …)
    if len(down.shape) < 2 or len(up.shape) != len(down.shape) or math.prod(up.shape[1:]) != down.shape[0]:
        return f"{module}: lora_A {list(down.shape)} and lora_B {list(up.shape)} do not multiply"
    transposed = embedding or rule.transposed
    shape = (up.shape[0], *down.shape[1:])
    if transposed:
        shape = shape[::-1]
    if shape != weight.shape:
        return f"{module}: the adapter changes {list(shape)}, the base has {list(weight.shape)}"
    scale = rule.scale(module, down.shape[0])

    def delta() -> Tensor:
        product = (up.read().flatten(1) @ down.read().flatten(1)).mul_(scale)
        return product.t() if transposed else product.view(shape)

    def read() -> Tensor:
        return weight.read().add_(delta())

    whole = computed(weight.shape, down.where, read)
    return _with_rows(whole, weight, up, down, scale) if embedding else whole


def _with_rows(whole: LazyTensor, weight: LazyTensor, up: LazyTensor, down: LazyTensor, scale: float) -> LazyTensor:
    """Gives a merged embedding table a way to read single rows without merging all of it."""

    def rows(ids: Tensor) -> Tensor:
        return weight.rows(ids) + (down.read()[:, ids].t() @ up.read().t()) * scale

    return replace(whole, rows=rows)
