"""What a stranger's config.json may say, as changes to a good one or as whole texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

HUGE = "9" * 5000  # more digits than Python makes a number of
NUMBERS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "eos_token_id", "image_token_index",
)  # fmt: skip
VALUES = (0, -1, 7, 2**24, 2**63, 10**400, 1.5, "4", True, [], {}, [[1]])

# Named and chosen: code by name, ranges, kinds. Values stand in the place of a field of the good config.
CHOSEN: dict[str, dict[str, Any]] = {
    "auto_map": {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}},
    "a module for a model type": {"model_type": "evil"},
    "a path for a model type": {"model_type": "../evil"},
    "architectures by name": {"architectures": ["os.system"]},
    "architectures of objects": {"architectures": [{"__class__": "evil.Evil"}]},
    "architectures that are a number": {"architectures": 3},
    "trust_remote_code": {"trust_remote_code": True, "custom_pipelines": {"x": {"impl": "evil.Evil"}}},
    "a quantisation by name": {"quantization_config": {"quant_method": "evil", "modules": ["evil"]}},
    "a Python object": {"text_config": {"__reduce__": ["os.system", ["touch marker"]]}},
    "a dtype by name": {"torch_dtype": "evil.Evil"},
    "a tower on the Hub": {"mm_vision_tower": "evil/remote-tower_128"},
    "a tower by address": {"mm_vision_tower": "http://127.0.0.1:9/tower_128"},
    "a tower by path": {"mm_vision_tower": "/etc/passwd"},
    "a base by address": {"_name_or_path": "http://127.0.0.1:9/evil", "base_model_name_or_path": "evil/evil"},
    "a projector by name": {"mm_projector_type": "evil.Evil"},
    "a projector that is a table": {"mm_projector_type": {"a": 1}},
    "an activation by name": {"hidden_act": "evil.gelu"},
    "an activation that is a list": {"hidden_act": ["silu"]},
    "eps of 0": {"rms_norm_eps": 0},
    "eps of 1e-300": {"rms_norm_eps": 1e-300},
    "eps of 1e17": {"rms_norm_eps": 1e17},
    "theta of 1e-17": {"rope_theta": 1e-17},
    "theta of 1e300": {"rope_theta": 1e300},
    "theta of 10^400": {"rope_theta": 10**400},
    "theta as a text": {"rope_parameters": {"rope_theta": "x"}},
    "theta as a table": {"rope_parameters": {"rope_theta": {}}},
    "scaling that is a number": {"rope_scaling": 3},
    "scaling of a kind that is a list": {"rope_scaling": {"type": ["yarn"]}},
    "half of the head turned": {"partial_rotary_factor": [1]},
    "layer types of numbers": {"layer_types": [1, 2]},
    "layer types as a text": {"layer_types": "full_attention"},
    "layer types by the hundred thousand": {"layer_types": [f"kind {number}" for number in range(100_000)]},
    "a window as a text": {"use_sliding_window": True, "sliding_window": "x"},
    "a window behind 10^400 layers": {"use_sliding_window": True, "sliding_window": 1, "max_window_layers": "x"},
    "an image rule that is a list": {"image_aspect_ratio": ["pad"]},
    "an image rule of megabytes": {"image_aspect_ratio": "x" * 10**6},
    "a model type of megabytes": {"model_type": "x" * 10**6},
    "an activation of escapes": {"hidden_act": "\x1b[2J\n\x07"},
    "an end of -5": {"eos_token_id": -5},
    "an end that is a truth": {"eos_token_id": [True]},
    "an end of 300 digits": {"eos_token_id": [10**300]},
    "ends by the hundred thousand": {"eos_token_id": list(range(100_000))},
    "an image token of -7": {"image_token_index": -7},
    "an image token of 2^70": {"image_token_id": 2**70},
    "an image token as a text": {"image_token_index": "evil"},
    "an image side of 2^40": {"mm_vision_tower": None, "vision_config": {"image_size": 2**40}},
    "an image side of a million digits": {"mm_vision_tower": "_" + "1" * 10**6},
    "layers and sizes of 2^24": dict.fromkeys(NUMBERS[:8], 2**24),
    "a text config that is a number": {"text_config": 3},
    "a text config of a text config": {"text_config": {"text_config": {"text_config": {}}, "model_type": "evil"}},
    "a half character": {"model_type": "\ud800"},
    "a tie that is a text": {"tie_word_embeddings": "evil"},
}


def texts(good: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns whole texts of a config.json that no JSON writer would make, by name."""
    whole = json.dumps(good)
    body = whole[:-1]
    return {
        "a key twice": ('{"hidden_size": 4096, ' + whole[1:]).encode(),
        "NaN": (body + ', "rms_norm_eps": NaN}').encode(),
        "NaN that nobody reads": (body + ', "zzz": NaN}').encode(),
        "infinity": (body + ', "zzz": -Infinity}').encode(),
        "1e400": (body + ', "zzz": 1e400}').encode(),
        "5,000 digits": (body + f', "zzz": {HUGE}}}').encode(),
        "nesting without end": b'{"a":' * 100_000,
        "lists without end": b'{"a":' + b"[" * 100_000,
        "a list": b"[]",
        "nothing": b"",
        "null": b"null",
        "half a document": whole[: len(whole) // 2].encode(),
        "a programme": b"\x7fELF" + bytes(1000),
        "no UTF-8": body.encode() + b', "zzz": "\xff"}',
        "half a character in a key": (body + ', "\\ud800": 1}').encode(),
        "YAML": b"!!python/object/apply:os.system ['touch marker']",
        "lists by the million": body.encode() + b', "zzz": [' + b"[]," * 2_500_000 + b"0]}",
        "16 MiB of blanks": whole.encode() + b" " * (16 << 20),
    }
