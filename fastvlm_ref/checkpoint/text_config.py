"""The decoder's numbers, read from config.json by an explicit list of fields.

Only what is listed is read, and whatever would change the arithmetic in a way that the decoder here does not know is
refused by name: another activation, scaled rotary angles, a sliding window in use, biases in the MLP.
Source: Qwen2Config and LlamaConfig of transformers, whose defaults stand in (and are told) where a field is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastvlm.errors import ConfigError
from fastvlm.quoting import listed, short
from fastvlm_ref.config import TextConfig

QWEN2, LLAMA = "qwen2", "llama"
# model_type -> family of the decoder; None: the config's text_config, or its tensors, decide
MODEL_TYPES: dict[str, str | None] = {
    "llava_qwen2": QWEN2,
    "qwen2": QWEN2,
    "llava_llama": LLAMA,
    "llama": LLAMA,
    "vicuna": LLAMA,
    "llava": None,
    "fast_vlm": None,
    "fastvlm": None,
}
ROPE_THETA = 10_000.0  # the default of both families in transformers
NORM_EPS = 1e-6
OTHER_CONFIG = "take the config.json that belongs to these weights, or another checkpoint"
MAX_POSITIONS = {QWEN2: 32_768, LLAMA: 2_048}


def model_type(config: Mapping[str, Any]) -> str:
    """Returns config.json's model_type; raises ConfigError for one that is not known, naming those that are."""
    found = config.get("model_type")
    if not isinstance(found, str) or found not in MODEL_TYPES:
        raise ConfigError(
            f"config.json has model_type {short(found)}, known are {', '.join(sorted(MODEL_TYPES))}; "
            "name a FastVLM checkpoint"
        )
    return found


def family(config: Mapping[str, Any]) -> str:
    """Returns `qwen2` or `llama`: what config.json, its text_config or its architectures say."""
    known = MODEL_TYPES[model_type(config)]
    if known:
        return known
    inner = text_section(config).get("model_type")
    if inner in (QWEN2, LLAMA):
        return str(inner)
    if isinstance(inner, str) and inner not in MODEL_TYPES:
        raise ConfigError(f"config.json has text_config.model_type {short(inner)}, known are {LLAMA}, {QWEN2}")
    architectures = config.get("architectures") or []
    names = " ".join(name for name in architectures if isinstance(name, str)) if isinstance(architectures, list) else ""
    return LLAMA if "Llama" in names and "Qwen" not in names else QWEN2


def text_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the part of config.json that speaks of the decoder: text_config, llm_config, or all of it."""
    for name in ("text_config", "llm_config"):
        section = config.get(name)
        if isinstance(section, Mapping) and section:
            return section
    return config


LARGEST = 1 << 24  # no size of any model comes near; what is larger is damage, and would cost memory
EPS_RANGE = (1e-12, 0.1)  # released models have 1e-5 and 1e-6
THETA_RANGE = (1.0, 1e12)  # released models have 1e4 to 1e9


class Fields:
    """Reads typed fields of a config and gathers every problem, so that one error can list them all."""

    def __init__(self, section: Mapping[str, Any]) -> None:
        self.section = section
        self.problems: list[str] = []

    def whole(self, name: str, default: int | None = None, least: int = 1) -> int:
        """Returns a positive whole number, or `default` where the field is absent or null."""
        value = self.section.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST:
            return value
        self.problems.append(
            f"{name} is {short(value)}, expected a whole number from {least} to {LARGEST}"
            if value is not None
            else f"{name} is missing"
        )
        return least

    def number(self, name: str, value: Any, least: float, most: float) -> float:
        """Returns `value` as a float from `least` to `most`."""
        if isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most:
            return float(value)
        self.problems.append(f"{name} is {short(value)}, expected a number from {least:g} to {most:g}")
        return least


def text_config(config: Mapping[str, Any], qkv_bias: bool, tied_head: bool) -> tuple[TextConfig, list[str]]:
    """Returns the decoder's sizes and one sentence per thing that had to be assumed.

    `qkv_bias` and `tied_head` come from the tensors. Raises ConfigError listing every missing, impossible or
    unsupported field.
    """
    section, kind = text_section(config), family(config)
    fields, assumed = Fields(section), []
    hidden, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    theta, theta_note = _rope_theta(section, fields)
    eps = section.get("rms_norm_eps")
    if eps is None:
        assumed.append(f"config.json states no rms_norm_eps: {NORM_EPS} assumed, as transformers does")
    positions = fields.whole("max_position_embeddings", MAX_POSITIONS[kind])
    if section.get("max_position_embeddings") is None:
        assumed.append(f"config.json states no max_position_embeddings: {positions} assumed, as transformers does")
    result = TextConfig(
        hidden_size=hidden,
        layers=fields.whole("num_hidden_layers"),
        heads=heads,
        kv_heads=fields.whole("num_key_value_heads", heads),
        head_dim=fields.whole("head_dim", max(hidden // heads, 1)),
        intermediate_size=fields.whole("intermediate_size"),
        vocab_size=fields.whole("vocab_size"),
        rms_norm_eps=NORM_EPS if eps is None else fields.number("rms_norm_eps", eps, *EPS_RANGE),
        rope_theta=theta,
        qkv_bias=qkv_bias,
        tied_head=tied_head,
        max_positions=positions,
    )
    _check_ratios(section, result, fields)
    _check_supported(section, fields)
    if fields.problems:
        raise ConfigError(f"config.json cannot be used: {'; '.join(fields.problems)}; {OTHER_CONFIG}")
    return result, assumed + theta_note


def _rope_theta(section: Mapping[str, Any], fields: Fields) -> tuple[float, list[str]]:
    parameters = section.get("rope_parameters")
    theta = parameters.get("rope_theta") if isinstance(parameters, Mapping) else None
    if theta is None:
        theta = section.get("rope_theta")
    if theta is None:
        return ROPE_THETA, [f"config.json states no rope_theta: {ROPE_THETA:g} assumed, as transformers does"]
    return fields.number("rope_theta", theta, *THETA_RANGE), []


def _check_ratios(section: Mapping[str, Any], text: TextConfig, fields: Fields) -> None:
    if section.get("head_dim") is None and text.hidden_size % text.heads:
        fields.problems.append(f"hidden_size {text.hidden_size} is no multiple of num_attention_heads {text.heads}")
    if text.heads % text.kv_heads:
        fields.problems.append(
            f"num_attention_heads {text.heads} is no multiple of num_key_value_heads {text.kv_heads}"
        )
    if text.head_dim % 2:
        fields.problems.append(f"head_dim {text.head_dim} is odd, rotary embedding needs pairs")


def _check_supported(section: Mapping[str, Any], fields: Fields) -> None:
    """Adds a problem for every field that asks for arithmetic which the decoder does not do."""
    act = section.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        fields.problems.append(f"hidden_act is {short(act)}, supported is silu")
    for name in ("rope_scaling", "rope_parameters"):
        scaling = section.get(name)
        if not isinstance(scaling, Mapping):
            if scaling is not None:
                fields.problems.append(f"{name} is {short(scaling)}, expected an object")
            continue
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind not in ("default", None):
            fields.problems.append(f"{name} has rope_type {short(kind)}, supported is default (no scaling)")
        partial = scaling.get("partial_rotary_factor", 1)
        if partial not in (None, 1):
            fields.problems.append(f"{name} has partial_rotary_factor {short(partial)}, supported is 1")
    if section.get("partial_rotary_factor") not in (None, 1):
        fields.problems.append(f"partial_rotary_factor is {short(section['partial_rotary_factor'])}, supported is 1")
    if section.get("mlp_bias"):
        fields.problems.append("mlp_bias is true, supported is false")
    if section.get("rope_traditional"):
        fields.problems.append("rope_traditional is true (interleaved pairs), supported is false")
    _check_window(section, fields)


def _check_window(section: Mapping[str, Any], fields: Fields) -> None:
    # Qwen2 states a window and turns it off with use_sliding_window; where that is on, layers from max_window_layers
    # on use it, so max_window_layers = num_hidden_layers also means off.
    kinds = section.get("layer_types")
    if kinds is not None:
        other = [kind for kind in kinds if kind != "full_attention"] if isinstance(kinds, list) else [kinds]
        if other:
            names = sorted({short(kind) if not isinstance(kind, str) else kind for kind in other[:1000]})
            fields.problems.append(f"layer_types holds {listed(names)}, supported is full_attention")
        return
    window, layers = section.get("sliding_window"), section.get("num_hidden_layers")
    from_layer = section.get("max_window_layers", 0)
    used = section.get("use_sliding_window", False) and window is not None
    if used and not (isinstance(from_layer, int) and isinstance(layers, int) and from_layer >= layers):
        fields.problems.append(
            f"use_sliding_window is true with sliding_window {short(window)}, supported is full attention"
        )
