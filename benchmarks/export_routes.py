"""The processes that `benchmarks/export.py` measures: one row of it, by one route, into one folder.

    python -P benchmarks/export_routes.py ours  ROW SCHEME CHECKPOINT FOLDER
    python -P benchmarks/export_routes.py stock ROW SCHEME CHECKPOINT FOLDER
    python -P benchmarks/export_routes.py facts CHECKPOINT

The last line printed is JSON: CPU seconds and the most memory that was resident, or what is known of the checkpoint.

The stock route traces an equivalent module (with the re-check, as by default), converts it with coremltools' defaults,
compresses it with coremltools' own, and saves. It makes `decode` alone: no `prefill`, no embedding table. Two encoder
sizes are two conversions, merged by `save_multifunction`.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

SIZES = (1024, 1152)
GROUP = 32  # output channels that share a palette, and inputs that share a scale of int4


def ours(row: str, scheme: str, checkpoint: str, folder: Path) -> None:
    """`fastvlm export`, by its library call."""
    from export.api import export

    sizes = {"encoder-one": SIZES[:1], "language": ()}.get(row, SIZES)
    only = {"encoder-one": "encoder", "encoder-two": "encoder", "language": "language"}.get(row)
    # The stock route makes one file of one output, so the row that compares the two models does as well.
    target = "gpu" if row == "language" or scheme == "int4" else "ane"
    export(
        checkpoint, folder / "build", image_sizes=sizes, only=only, target=target,
        quantize=None if scheme == "fp16" else scheme,
    )  # fmt: skip


def stock(row: str, scheme: str, checkpoint: str, folder: Path) -> None:
    """Trace, convert, compress, save."""
    from export.quiet import import_coremltools
    from fastvlm_ref.checkpoint import load_checkpoint

    import_coremltools()  # here, where it is silent
    model = load_checkpoint(checkpoint)
    if row != "language":
        stock_encoder(model, folder, SIZES[:1] if row == "encoder-one" else SIZES)
    if row in ("language", "everything"):
        compressed(stock_decode(model), scheme).save(str(folder / "LanguageModel.mlpackage"))


def stock_encoder(model: Any, folder: Path, sizes: tuple[int, ...]) -> None:
    """One conversion per size; several are merged, and their single packages removed."""
    import coremltools as ct
    import torch

    from export.encoder import EncoderGraph

    names = [str(folder / f"encode_{side}.mlpackage") for side in sizes]
    for side, name in zip(sizes, names, strict=True):
        shape = (1, 3, side, side)
        traced = torch.jit.trace(EncoderGraph(model).eval(), (torch.zeros(shape),))
        converted(traced, inputs=[ct.ImageType("image", shape, scale=1 / 255)]).save(name)
    if len(sizes) == 1:
        return
    merged = ct.utils.MultiFunctionDescriptor()
    for side, name in zip(sizes, names, strict=True):
        merged.add_function(name, "main", f"encode_{side}")
    merged.default_function_name = f"encode_{sizes[0]}"
    ct.utils.save_multifunction(merged, str(folder / "VisionEncoder.mlpackage"))
    for name in names:
        shutil.rmtree(name)


def stock_decode(model: Any) -> Any:
    """`decode` of the whole language model in one package."""
    import coremltools as ct
    import numpy as np
    import torch

    from export.choice import Compression
    from export.chunks import chunks, head_split
    from export.contract import language_functions
    from export.decoder import filled
    from export.language import chunk_weight, graph_of, whole_sizes
    from export.plan import make_plan
    from export.sizes import language_bytes

    text = model.config.text
    plan = make_plan(model.config, only="language", target="gpu")
    split = head_split(text, plan.target)
    (chunk,) = chunks(text, plan, language_bytes(text, plan, Compression()))
    spec = language_functions(text, plan, chunk, split)[-1]
    sizes = whole_sizes(model.decoder, plan)
    graph = filled(
        graph_of(replace(sizes, query=1), plan.target, spec, chunk, split),
        lambda name: chunk_weight(model.decoder, sizes, plan.target, chunk, split, name),
    )
    *tensors, position = spec.inputs
    example = (*(torch.zeros(item.shape) for item in tensors), torch.zeros(1, dtype=torch.int32))
    inputs = [ct.TensorType(item.name, item.shape, dtype=np.float16) for item in tensors]
    assert spec.state is not None
    wrapped = ct.TensorType(shape=spec.state.shape, dtype=np.float16)
    return converted(
        torch.jit.trace(graph.eval(), example),
        inputs=[*inputs, ct.TensorType(position.name, position.shape, dtype=np.int32)],
        states=[ct.StateType(wrapped, spec.state.name)],
    )


def converted(traced: Any, **options: Any) -> Any:
    """`ct.convert` with its defaults; a state needs iOS 18."""
    import coremltools as ct

    return ct.convert(
        traced, minimum_deployment_target=ct.target.iOS18, skip_model_load=True, convert_to="mlprogram", **options
    )


def compressed(model: Any, scheme: str) -> Any:
    """coremltools' way to the same form: int8 per channel, affine int4 in blocks, k-means palettes of groups."""
    import coremltools.optimize.coreml as cto

    if scheme == "fp16":
        return model
    if scheme.startswith("lut"):
        palette = cto.OpPalettizerConfig(
            "kmeans", nbits=int(scheme[3:]), granularity="per_grouped_channel", group_size=GROUP
        )
        return cto.palettize_weights(model, cto.OptimizationConfig(palette))
    options: dict[str, Any] = {"int8": {}, "int4": {"mode": "linear", "granularity": "per_block", "block_size": GROUP}}
    linear = cto.OpLinearQuantizerConfig(dtype=scheme, **options[scheme])
    return cto.linear_quantize_weights(model, cto.OptimizationConfig(linear))


def facts(checkpoint: str) -> dict[str, Any]:
    """What the rows need to know: the official size's name, bytes of fp16 weights by part, the narrowest layer."""
    from export.choice import Compression
    from export.plan import make_plan
    from export.space import part_bytes
    from fastvlm_ref.checkpoint import load_checkpoint
    from fastvlm_ref.synthetic.sizes import SIZES as OFFICIAL

    model = load_checkpoint(checkpoint, stream=True)
    text = model.config.text
    shape = (text.hidden_size, text.layers)
    names = [name for name, size in OFFICIAL.items() if (size.text.hidden_size, size.text.layers) == shape]
    weights = part_bytes(model, make_plan(model.config, target="gpu"), Compression())
    narrowest = min(text.hidden_size, text.intermediate_size, text.heads * text.head_dim)
    return {"size": names[0] if names else None, "weights": weights, "narrowest": narrowest}


def hide(*modules: str) -> None:
    """Makes imports fail as where it is not installed: coremltools imports scikit-learn, 0.07 GB, needed or not."""
    for module in modules:
        sys.modules[module] = None  # type: ignore[assignment]


def usage() -> dict[str, float]:
    """CPU seconds of this process and the most bytes that it had resident."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    scale = 1 if sys.platform == "darwin" else 1024  # Linux counts kilobytes
    return {"cpu": own.ru_utime + own.ru_stime, "memory": own.ru_maxrss * scale}


def main() -> None:
    """Command line; what a user can cause is one line."""
    from fastvlm.errors import FastVLMError

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("route", choices=("ours", "stock", "facts"))
    parser.add_argument("arguments", nargs="+", metavar="ARGUMENT")
    given = parser.parse_args()
    try:
        if given.route == "facts":
            print(json.dumps(facts(*given.arguments)))
            return
        row, scheme, checkpoint, folder = given.arguments
        if given.route == "ours" or not scheme.startswith("lut"):
            hide("sklearn", "scipy")
        {"ours": ours, "stock": stock}[given.route](row, scheme, checkpoint, Path(folder))
    except FastVLMError as error:
        raise SystemExit(f"Error: {error}") from None
    print(json.dumps(usage()))


if __name__ == "__main__":
    main()
