"""The encoder package of this project beside the one that Apple's export script makes, op by op, by the linter.

    python -P benchmarks/apple_route.py tiny
    python -P benchmarks/apple_route.py FastVLM-0.5B            # minutes: two conversions of a traced tower
    python -P benchmarks/apple_route.py tiny --run              # Apple's packages are also run, beside PyTorch

`-P` keeps this folder off the path, where export.py would hide the package.

Apple's route is what `model_export/export_vision_encoder.py` of ml-fastvlm does: the vision tower alone, without the
projector; traced in float32 at the checkpoint's own size; converted for iOS 16 with a float32 tensor `images` as input
and a float32 tensor `image_features` as output, in float32 throughout, for CPU and GPU. Both packages hold the same
weights. The tower is this project's, whose modules keep the checkpoint's form; the three of them that it computes in
other words (mean of squeeze-excite, attention, channel norm) are traced here with the ops that Apple's `mci.py` uses.

A third column converts the same trace in coremltools' default precision, fp16: what Apple's graph would lose if its
precision were all that is changed. The reparameterised form is what checkpoints hold; training branches are not looked
at. Prints Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.api import export
from export.quiet import import_coremltools, quietly
from fastvlm.errors import FastVLMError
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.model.attention import MHSA, LayerNormChannel
from fastvlm_ref.model.mobileone import SEBlock
from validation.lint.checking import lint
from validation.lint.report import PackageReport

OURS, APPLE, APPLE_HALF = "this project", "Apple's route", "the same in fp16"


class AppleSE(nn.Module):
    """The mean as a pool whose window is the whole map."""

    def __init__(self, block: SEBlock) -> None:
        super().__init__()
        self.reduce, self.expand = block.reduce, block.expand

    def forward(self, x: Tensor) -> Tensor:
        channels, height, width = x.shape[1:]
        gate = F.avg_pool2d(x, [height, width])
        gate = torch.sigmoid(self.expand(torch.relu(self.reduce(gate))))
        return x * gate.view(-1, channels, 1, 1)


class AppleNorm(nn.Module):
    """The mean is taken away twice, gain and bias are applied at the end."""

    def __init__(self, norm: LayerNormChannel) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class AppleAttention(nn.Module):
    """Tokens last but one, one product for queries, keys and values, two products and a softmax."""

    def __init__(self, mixer: MHSA) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads, self.head_dim = mixer.qkv, mixer.proj, mixer.heads, mixer.head_dim

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = height * width
        x = x.flatten(2).transpose(-2, -1)
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q * self.head_dim**-0.5) @ k.transpose(-2, -1)).softmax(-1)
        x = self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, channels))
        return x.transpose(-2, -1).reshape(batch, channels, height, width)


FORMS: Mapping[type, Any] = {SEBlock: AppleSE, LayerNormChannel: AppleNorm, MHSA: AppleAttention}


def apple_form(module: nn.Module) -> nn.Module:
    """The tower with Apple's ops, in place; weights are shared, not copied."""
    for name, child in module.named_children():
        form = FORMS.get(type(child))
        setattr(module, name, form(child) if form else apple_form(child))
    return module


def apple_packages(tower: nn.Module, side: int, folder: Path) -> dict[str, Path]:
    """Traces once, converts in both precisions; returns where the packages lie."""
    ct = import_coremltools()
    import numpy as np

    shape = (1, 3, side, side)
    found = {}
    with quietly():
        traced = torch.jit.trace(tower, torch.rand(shape))
        for name, precision in ((APPLE, ct.precision.FLOAT32), (APPLE_HALF, ct.precision.FLOAT16)):
            package = ct.convert(
                traced, inputs=[ct.TensorType("images", shape)],
                outputs=[ct.TensorType("image_features", dtype=np.float32)], convert_to="mlprogram",
                minimum_deployment_target=ct.target.iOS16, compute_precision=precision,
                compute_units=ct.ComputeUnit.CPU_AND_GPU, skip_model_load=True,
            )  # fmt: skip
            found[name] = folder / f"fastvithd-{precision.value}.mlpackage"
            package.save(str(found[name]))
    return found


def rows(reports: Mapping[str, PackageReport]) -> Iterator[tuple[str, ...]]:
    """The table: what each package takes and gives, then op by op how many and how many leave."""
    functions = {name: report.functions[0] for name, report in reports.items()}

    def row(title: str, cell: Any) -> tuple[str, ...]:
        return (title, *(cell(name) for name in reports))

    yield row("asks for", lambda name: reports[name].system)
    yield row("program, weights", lambda name: _sizes(reports[name]))
    yield row("FLOPs", lambda name: f"{functions[name].flops.total / 1e9:.3f} G")
    yield row("**FLOPs that stay**", lambda name: f"**{functions[name].flops.percent:.6g} %**")
    yield row("bytes that stay", lambda name: f"{functions[name].bytes.percent:.6g} %")
    yield row("ops", lambda name: str(sum(kind.count for kind in functions[name].kinds)))
    yield row("ops that leave", lambda name: str(len(functions[name].leaving)))
    yield row("because of", lambda name: _reasons(functions[name], "leaves"))
    yield row("only costs", lambda name: _reasons(functions[name], "costs"))
    yield row("at the edge", lambda name: _reasons(functions[name], "edge"))
    counts = {name: {kind.op: kind for kind in function.kinds} for name, function in functions.items()}
    for op in sorted({op for found in counts.values() for op in found}):
        yield row(f"`{op}`", lambda name, op=op: _count(counts[name].get(op)))


def _sizes(report: PackageReport) -> str:
    return f"{report.program_bytes / 1e3:.0f} kB, {report.weight_bytes / 1e6:.1f} MB"


def _reasons(function: Any, verdict: str) -> str:
    found: dict[str, int] = {}
    for group in function.by_rule():
        if group.verdict == verdict:
            found[group.rule] = found.get(group.rule, 0) + group.count
    return ", ".join(f"{rule} {count}" for rule, count in found.items()) or "–"


def _count(kind: Any) -> str:
    if kind is None:
        return ""
    return f"{kind.count}" + (f" ({kind.leaving} leave)" if kind.leaving else "")


def agreement(paths: Mapping[str, Path], tower: nn.Module, side: int) -> str:
    """Apple's packages, run in the MIL runtime, beside the tower that was traced."""
    import numpy as np

    from validation.metrics import snr_db
    from validation.mil import MILModel

    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = tower(images).numpy()
    found = []
    for name, precision in ((APPLE, "fp32"), (APPLE_HALF, "fp16")):
        features = MILModel(paths[name], precision=precision).predict({"images": images.numpy()})["image_features"]
        found.append(f"{name} {snr_db(expected, np.asarray(features)):.1f} dB")
    return "Run in the MIL runtime, beside PyTorch: " + ", ".join(found)


def main() -> None:
    """Command line; what a user can cause is one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--device", help="a name of `fastvlm lint --device`; default: all of the table")
    parser.add_argument("--run", action="store_true", help="run Apple's packages and compare with PyTorch")
    given = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as name:
            compare(given.checkpoint, Path(name), given.device, given.run)
    except FastVLMError as error:
        raise SystemExit(f"Error: {error}") from None


def compare(checkpoint: str, folder: Path, device: str | None, run: bool) -> None:
    """Builds the packages, judges them, prints the table."""
    build = export(checkpoint, folder / "build", only="encoder")
    paths = {OURS: build / "VisionEncoder.mlpackage"}
    model = load_checkpoint(checkpoint)
    side = model.config.vision.image_size
    tower = apple_form(model.vision_encoder.eval())
    paths |= apple_packages(tower, side, folder)
    reports = {name: lint(path, device).packages[0] for name, path in paths.items()}
    print(f"\n{checkpoint}, {side} × {side}, judged for {device or 'every device of the table'}\n")
    print(f"| | {' | '.join(reports)} |")
    print("|---" * (len(reports) + 1) + "|")
    for cells in rows(reports):
        print(f"| {' | '.join(cells)} |")
    if run:
        print(f"\n{agreement(paths, tower, side)}")


if __name__ == "__main__":
    main()
