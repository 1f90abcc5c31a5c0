"""ONNX builds beside Hugging Face transformers on the CPU: the same weights, picture and prompt, in one run.

    fastvlm synth 0.5b -o FastVLM-0.5B --format hf --tokenizer QWEN2_TOKENIZER    # where there are no real weights
    PYTHONPATH=.venv/oracles python -P benchmarks/onnx.py FastVLM-0.5B --builds DIR [--variants fp32,fp16,int8,int4]
        [--image-size 1024] [--rounds 5] [--tokens 32] [--threads N] [--json FILE]

`-P` keeps this folder off the path, where this file would hide the package `onnx`; `make oracles` makes .venv/oracles.
CHECKPOINT is a folder in the Hugging Face layout, for transformers has to read it too. A variant that DIR does not hold
as DIR/VARIANT is exported first. Whether a build passes parity is taken from its validation.json: run
`fastvlm validate DIR/VARIANT --reference CHECKPOINT` before, or the table says `not validated`.

Every contender lives in a process of its own, opened once; in every round each answers once, in turn: picture and
prompt until the first id (encoder, prefill), `--tokens` greedy steps, a further question about the same picture. One
round before that is not counted. Printed are medians, and medians of the rounds' ratios to transformers. Peak memory is
the whole process's, files that are mapped included. Limits of the machine: `onnx_work.py`. Targets are the issue's;
missed ones are listed at the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

# The folder above, for a file here would hide a package: also in the processes of the contenders.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.onnx_work import Peaks, measured_peaks, products_of
from fastvlm.build import FORMATS, Build, read_build
from fastvlm.errors import ExecutionError, FastVLMError
from fastvlm_ref.image import open_image, preprocess
from fastvlm_ref.prompt import encode_follow_up, encode_prompt, prompt_from_record
from fastvlm_ref.samples import shipped_photo
from fastvlm_ref.tokenizer import load_tokenizer
from validation.children import Child
from validation.machine import this_machine
from validation.ort.cores import usable_cores

STOCK = "transformers"
VARIANTS = ("fp32", "fp16", "int8", "int4")
QUESTION, FURTHER = "What are these?", "What colour is the largest?"
DECODE = {"fp32": 2.0, "int8": 3.5, "int4": 6.0}  # tokens per second beside transformers', at least
FIRST, MEMORY, FOLLOW_UP = 0.6, 0.5, 0.06  # at most


@dataclass
class Seconds:
    """What one contender took, round by round, what it said, and what it weighed."""

    stages: dict[str, list[float]] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    peak: float = 0.0
    opened: float = 0.0

    def add(self, stage: str, seconds: float) -> None:
        """Takes in one more round's."""
        self.stages.setdefault(stage, []).append(seconds)

    def median(self, stage: str) -> float:
        """Of all rounds."""
        return median(self.stages[stage])

    def ratio(self, stage: str, other: Seconds, other_stage: str = "") -> float:
        """The median of the rounds' ratios to another contender."""
        pairs = zip(self.stages[stage], other.stages[other_stage or stage], strict=True)
        return median(one / two for one, two in pairs)


def exported(checkpoint: str, folder: Path, variant: str, side: int) -> Build:
    """Returns the build of a variant, made first where the folder has none."""
    target = folder / variant
    if not target.exists():
        print(f"exporting {target}", flush=True)
        asked = ["export", checkpoint, "--format", "onnx", "--image-size", str(side), "-o", str(target)]
        asked += [] if variant == "fp32" else ["--quantize", variant]
        start = "from fastvlm.cli import main; main()"
        subprocess.run([sys.executable, "-P", "-c", start, *asked], check=True, stdout=subprocess.DEVNULL)
    return read_build(target, FORMATS)


def parity(build: Build) -> str:
    """What `validate` said of a build."""
    file = build.folder / "validation.json"
    return json.loads(file.read_text())["verdict"] if file.is_file() else "not validated"


def asked(build: Build) -> tuple[list[int], list[int], list[int]]:
    """Ids before the picture, behind it, and of the further question, by the build's own tokenizer and template."""
    tokenizer = load_tokenizer(build.tokenizer, build.vocab_size)
    prompt = prompt_from_record(build.prompt)
    return *encode_prompt(tokenizer, QUESTION, prompt), encode_follow_up(tokenizer, FURTHER, prompt)


def measure(
    contenders: dict[str, Child], pixels: Path, ids: tuple[list[int], list[int], list[int]], rounds: int, tokens: int
) -> dict[str, Seconds]:
    """Asks every contender in turn, round by round."""
    found = {name: Seconds() for name in contenders}
    before, after, further = ids
    rows = len(before) + len(after) + (np.load(pixels, mmap_mode="r").shape[0] // 64) ** 2
    for number in range(rounds + 1):
        for name, child in contenders.items():
            first = child.call("first", pixels=str(pixels), before=before, after=after)
            if first["rows"] != rows:  # or they would not have done the same work
                raise ExecutionError(f"{name} read {first['rows']:g} positions, expected {rows}; nothing was compared")
            steps = child.call("decode", count=tokens)
            follow_up = child.call("follow_up", ids=further)
            if not number:  # the first round makes what all others find made
                continue
            for stage in ("encoder", "prefill", "first"):
                found[name].add(stage, first[stage])
            found[name].add("decode", median(steps["seconds"]))
            found[name].add("follow_up", follow_up)
            found[name].ids = steps["ids"]
    for name, child in contenders.items():
        about = child.call("about")
        found[name].peak, found[name].opened = about["peak"], about["opened"]
    return found


def table(found: dict[str, Seconds], builds: dict[str, Build]) -> list[str]:
    """One line a contender; × is of transformers' in the same rounds."""
    stock = found[STOCK]
    lines = [
        f"{'':<13}{'encoder':>15}{'prefill':>15}{'first token':>15}{'tok/s':>14}{'follow-up':>17}"
        f"{'peak memory':>15}{'same ids':>10}  parity"
    ]
    for name, one in found.items():
        times = [
            f"{one.median(stage):6.2f} s {one.ratio(stage, stock):5.2f}×" for stage in ("encoder", "prefill", "first")
        ]
        speed = f"{1 / one.median('decode'):6.1f} {1 / one.ratio('decode', stock):5.1f}×"
        further = f"{one.median('follow_up') * 1e3:5.0f} ms {follow_up(one):5.3f}"
        memory = f"{one.peak / 1e6:6,.0f} MB {one.peak / stock.peak:4.2f}×"
        same = sum(a == b for a, b in zip(one.ids, stock.ids, strict=True))
        said = parity(builds[name]) if name in builds else ""
        lines.append(
            f"{name:<13}" + "".join(f"{text:>15}" for text in times)
            + f"{speed:>14}{further:>17}{memory:>15}{f'{same}/{len(stock.ids)}':>10}  {said}"
        )  # fmt: skip
    return [*lines, "× of transformers; follow-up: of the same contender's first token"]


def follow_up(one: Seconds) -> float:
    """What a further question takes of the first."""
    return one.ratio("follow_up", one, "first")


def limits(found: dict[str, Seconds], builds: dict[str, Build], side: int, rows: int, peaks: Peaks) -> list[str]:
    """How near each stage comes to what the machine does at best."""
    lines = [
        f"the machine: float32 products {2 * peaks.float32 / 1e9:.0f} GFLOP/s, int8 {2 * peaks.int8 / 1e9:.0f} GOP/s, "
        f"memory read {peaks.memory / 1e9:.1f} GB/s",
        f"{'':<13}{'encoder at least':>26}{'prefill at least':>26}{'a token at least':>26}",
    ]
    for name, build in builds.items():
        encoder = products_of(build.encoders[side])
        file = build.language[0].package
        weights = file.with_name(file.name + ".data").stat().st_size
        head = build.vocab_size * build.embeddings.width if build.embeddings else 0
        body = layer_weights(build)
        kind = peaks.int8 if name in ("int8", "int4") else peaks.float32
        least = {
            "encoder": encoder["float32"] / peaks.float32 + encoder["int8"] / peaks.int8,
            "prefill": (body * rows + head) / kind,
            "decode": weights / peaks.memory,
        }
        cells = [
            f"{least[stage] * 1e3:7.1f} ms, reached {least[stage] / found[name].median(stage):4.0%}" for stage in least
        ]
        lines.append(f"{name:<13}" + "".join(f"{cell:>26}" for cell in cells))
    return lines


def layer_weights(build: Build) -> int:
    """Weights of the decoder's matrices: each multiplies once a row."""
    text = build.manifest["model"]["text"]
    hidden, wide, layers = text["hidden_size"], text["intermediate_size"], text["layers"]
    queries, keys = text["heads"] * text["head_dim"], text["kv_heads"] * text["head_dim"]
    return layers * (2 * hidden * queries + 2 * hidden * keys + 3 * hidden * wide)


def missed(found: dict[str, Seconds], builds: dict[str, Build]) -> list[str]:
    """The targets that were not met, in words."""
    stock, lines = found[STOCK], []

    def hold(what: str, value: float, target: float, least: bool = False) -> None:
        if value < target if least else value > target:
            lines.append(f"missed: {what} {value:.3g}, target {'≥' if least else '≤'} {target}")

    passed = [name for name in builds if parity(builds[name]) == "passed"]
    if passed:
        fastest = min(passed, key=lambda name: found[name].median("first"))
        hold(f"first token of {fastest}, the fastest that passes parity,", found[fastest].ratio("first", stock), FIRST)
    else:
        lines.append("missed: no variant is known to pass parity; run `fastvlm validate` on each")
    for name in builds:
        if name in DECODE:
            hold(f"tokens per second of {name}", 1 / found[name].ratio("decode", stock), DECODE[name], least=True)
        hold(f"follow-up of {name}", follow_up(found[name]), FOLLOW_UP)
    if "int4" in builds:
        hold("peak memory of int4", found["int4"].peak / stock.peak, MEMORY)
    return lines


def as_json(found: dict[str, Seconds], peaks: Peaks, rows: int, threads: int) -> str:
    """All that was measured, as data."""
    contenders = {
        name: {"rounds": one.stages, "peak_bytes": one.peak, "opened_s": one.opened, "ids": one.ids}
        for name, one in found.items()
    }
    facts = {"machine": this_machine().as_json(), "threads": threads, "positions": rows, "peaks": vars(peaks)}
    return json.dumps(facts | {"contenders": contenders}, indent=1)


def main() -> None:
    """Reads the command line, runs every contender and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--builds", type=Path, required=True, metavar="DIR")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    unknown = set(names := given.variants.split(",")) - set(VARIANTS)
    if unknown or given.rounds < 1 or given.tokens < 1:
        parser.error(f"variants are {', '.join(VARIANTS)}; rounds and tokens at least 1")
    run(given, names)


def run(given: argparse.Namespace, names: Sequence[str]) -> None:
    """Exports what is missing, then measures."""
    side, threads = given.image_size, given.threads
    builds = {name: exported(given.checkpoint, given.builds, name, side) for name in names}
    peaks = measured_peaks(threads)
    contenders: dict[str, Child] = {}
    with tempfile.TemporaryDirectory() as folder:
        pixels = Path(folder) / "pixels.npy"
        np.save(pixels, preprocess(open_image(shipped_photo()), side))
        ids = asked(next(iter(builds.values())))
        rows = len(ids[0]) + len(ids[1]) + (side // 64) ** 2
        try:
            stock = {"checkpoint": given.checkpoint, "threads": threads}
            contenders[STOCK] = Child("benchmarks.onnx_contenders:Transformers", STOCK, **stock)
            for name, build in builds.items():
                stated: dict[str, Any] = {"build": str(build.folder), "side": side, "threads": threads}
                contenders[name] = Child("benchmarks.onnx_contenders:Ours", name, **stated)
            found = measure(contenders, pixels, ids, given.rounds, given.tokens)
        finally:
            for child in contenders.values():
                child.close()
    asked_for = f"{rows} positions, {given.rounds} rounds, {given.tokens} tokens"
    print(f"{this_machine().chip}, {threads} threads; a picture at {side}, {asked_for}")
    print(*table(found, builds), "", *limits(found, builds, side, rows, peaks), "", sep="\n")
    print(*(missed(found, builds) or ["every target is met"]), sep="\n")
    if given.json:
        given.json.write_text(as_json(found, peaks, rows, threads) + "\n")


if __name__ == "__main__":
    try:
        main()
    except FastVLMError as error:
        raise SystemExit(f"Error: {error}") from None
