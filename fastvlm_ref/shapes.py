"""The decoder's tensors by name and shape, as arithmetic: for whoever must know sizes and needs no torch for it.

A test holds it against `fastvlm_ref.model.decoder.Decoder` itself.
"""

from __future__ import annotations

from fastvlm_ref.config import TextConfig

Shape = tuple[int, ...]


def decoder_shapes(text: TextConfig) -> dict[str, Shape]:
    """Returns the shape of every tensor of the decoder by the checkpoint's name; the head counts also where it is tied.

    Names are `Decoder`'s: embed_tokens.weight, layers.0.self_attn.q_proj.weight, …, norm.weight, lm_head.weight.
    """
    rows = (text.vocab_size, text.hidden_size)
    layer = _layer(text)
    layers = {f"layers.{at}.{name}": shape for at in range(text.layers) for name, shape in layer.items()}
    return {"embed_tokens.weight": rows, **layers, "norm.weight": (text.hidden_size,), "lm_head.weight": rows}


def _layer(text: TextConfig) -> dict[str, Shape]:
    hidden, inner, queries = text.hidden_size, text.intermediate_size, text.heads * text.head_dim
    rows = {"q": queries, "k": text.kv_width, "v": text.kv_width}
    shapes: dict[str, Shape] = {"input_layernorm.weight": (hidden,)}
    shapes |= {f"self_attn.{name}_proj.weight": (width, hidden) for name, width in rows.items()}
    if text.qkv_bias:
        shapes |= {f"self_attn.{name}_proj.bias": (width,) for name, width in rows.items()}
    return shapes | {
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
