"""What compression loses, ours beside the best that coremltools gives for the same form, layer by layer.

    python benchmarks/compression.py                # seeded weights of 0.5B's shapes
    python benchmarks/compression.py tiny           # every layer of the embedded checkpoint, or of a folder

SNR in dB of the weights, without calibration; Σ w² / Σ (w − q)². coremltools' numbers come from the functions behind
`linear_quantize_weights` (int8 per channel; int4 per block of 32 inputs) and `palettize_weights` (k-means, groups of 32
channels) on fp16 weights; for scales, both of its modes. Seconds are of one thread. int8 is symmetric here, so its
rival is linear_symmetric; what an offset would give stands beside it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from export.compression.codes import compress, dense
from export.compression.recipe import is_compressible
from export.compression.schemes import SCHEMES, Scheme
from export.quiet import import_coremltools

SHAPES = ((896, 896), (4864, 896), (896, 4864))
KINDS = {"gaussian": 0.0, "Student-t, 4": 4.0}
Rival = tuple[str, float, float]  # name, dB, seconds


def seeded() -> Iterator[tuple[str, Tensor]]:
    """Weights of 0.5B's shapes."""
    for shape in SHAPES:
        for kind, freedom in KINDS.items():
            generator = np.random.default_rng(0)
            values = generator.standard_t(freedom, shape) if freedom else generator.standard_normal(shape)
            yield f"{shape[0]}×{shape[1]} {kind}", torch.from_numpy((0.02 * values).astype(np.float32))


def layers(checkpoint: str) -> Iterator[tuple[str, Tensor]]:
    """The weights of a checkpoint that are compressed at all."""
    from fastvlm_ref.checkpoint import load_checkpoint

    for name, weight in load_checkpoint(checkpoint).named_parameters():
        if is_compressible(tuple(weight.shape)):
            yield name.removesuffix(".weight"), weight.detach()


def snr(weights: Tensor, found: Tensor) -> float:
    """In dB, over all weights."""
    reference, error = weights.double(), weights.double() - found.double()
    return float(10 * torch.log10(reference.square().sum() / error.square().sum()))


def exact_palette(bits: int, group: Any) -> tuple[Any, Any]:
    """coremltools' palette of fp16 values and the codes, by its exact program."""
    from coremltools.models.neural_network.quantization_utils import _get_kmeans_lookup_table_and_weight

    table, codes = _get_kmeans_lookup_table_and_weight(bits, group, force_kmeans1d=True)
    return table.astype(group.dtype), codes.astype(np.uint8)


def rivals(scheme: Scheme, weights: Tensor) -> Iterator[Rival]:
    """coremltools' ways to the same form; of palettes the first eight groups, its seconds scaled to all."""
    from coremltools.optimize import _utils
    from coremltools.optimize.coreml._quantization_passes import linear_quantize_weights, palettize_weights

    half = weights.half().numpy()
    if scheme.kind == "palette":
        part = half[: 8 * scheme.group]
        sizes = [scheme.group] + [0] * (half.ndim - 1)
        # What mode KMEANS calls for fp16 groups of 10,000 values or more; below that it would ask for scikit-learn.
        found, seconds = timed(
            lambda: palettize_weights.blockwise_compress(
                part, "CUSTOM", None, sizes, lambda group: exact_palette(scheme.bits, group)
            )
        )
        both = torch.from_numpy(_utils.lut_to_dense(found.indices, found.lut).astype(np.float32))
        # The SNR is of the same rows for both.
        yield "k-means", snr(weights[: len(part)], both), seconds * len(half) / len(part)
        return
    sizes = [1, 0 if scheme.kind == "channel" else scheme.group] + [0] * (half.ndim - 2)
    for mode in ("LINEAR_SYMMETRIC", "LINEAR"):
        found, seconds = timed(lambda: linear_quantize_weights.blockwise_compress(half, scheme.bits, mode, True, sizes))  # noqa: B023
        both = torch.from_numpy(linear_quantize_weights.decompress(found).astype(np.float32))
        yield mode.lower(), snr(weights, both), seconds


def timed(job: Callable[[], Any]) -> tuple[Any, float]:
    """What the job gives, and its seconds."""
    start = time.perf_counter()
    found = job()
    return found, time.perf_counter() - start


def row(name: str, scheme: Scheme, weights: Tensor) -> tuple[float, int, float]:
    """Prints one line; returns our seconds, the weights, and how far we are ahead of the rival of the same form."""
    codes, seconds = timed(lambda: compress(scheme, weights))
    found = dense(scheme, codes)
    ahead, cells = np.inf, []
    for rival, value, spent in rivals(scheme, weights):
        part = slice(0, 8 * scheme.group) if scheme.kind == "palette" else slice(None)
        ours = snr(weights[part], found[part])
        cells.append(f"{rival} {value:7.3f} ({spent:6.2f} s) {ours - value:+.4f}")
        if scheme.affine or rival != "linear":
            ahead = min(ahead, ours - value)
    print(
        f"{name:<44} {scheme.name:<5} {snr(weights, found):7.3f} dB ({seconds:5.2f} s)   {'   '.join(cells)}",
        flush=True,
    )
    return seconds, weights.numel(), float(ahead)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="tiny, or a checkpoint's folder")
    parser.add_argument("--scheme", choices=SCHEMES, action="append", help="only this one; may be repeated")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    import_coremltools()
    totals: dict[str, list[tuple[float, int, float]]] = {}
    for name, weights in layers(arguments.checkpoint) if arguments.checkpoint else seeded():
        for scheme in (SCHEMES[name] for name in arguments.scheme or SCHEMES):
            if scheme.problem(tuple(weights.shape)) is None:
                totals.setdefault(scheme.name, []).append(row(name, scheme, weights))
    for name, rows in totals.items():
        seconds, counts, ahead = zip(*rows, strict=True)
        pace = sum(seconds) / sum(counts) * 1e9
        print(f"{name}: {pace:.0f} s for 1e9 weights on one thread; least ahead {min(ahead):+.4f} dB")


if __name__ == "__main__":
    main()
