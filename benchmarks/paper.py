"""The FastVLM paper's claims measured again on this machine, each beside its value there and what contradicts it.

    python -P benchmarks/paper.py counts                              # parameters and tokens: 3.4×, 4×, 16×
    python -P benchmarks/paper.py first-token CHECKPOINT [--onnx BUILD]   # 85×, LLaVA-OneVision-0.5B run beside ours
    PYTHONPATH=.venv/oracles python -P benchmarks/paper.py encoders   # the encoder table at 224 to 336
    PYTHONPATH=.venv/oracles python -P benchmarks/paper.py cambrian   # 7.9×, by FLOPs and an estimate
    PYTHONPATH=.venv/oracles python -P benchmarks/paper.py all CHECKPOINT [--onnx BUILD]

    options: --rounds N (3), --threads N (torch's), --clock cpu, --json FILE; first-token: --size N (1024)

`-P` keeps this folder off the path, where export.py would hide the package. timm and torchvision come with `make
oracles`, transformers with the tests' requirements; CHECKPOINT is a FastVLM-0.5B, real or made by `fastvlm synth 0.5b`.

Notable choices:
- the paper's times are of a Neural Engine and a GPU in fp16, those here of a CPU in float32: what can be compared are
  ratios, and what both do to them is told by the FLOPs beside;
- who is compared runs in the same run, in turn; weights are random, of official size, all in memory at once: 6 GB for
  `encoders`, 8 for `cambrian`, 11 for `first-token`, of which LLaVA-OneVision's process has 5.6;
- a number of the paper that its own tables contradict has the other one in a remark (`paper_claims.py`).
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
# Last, so that the package `export` comes before the file beside this one; torchvision_ops.py is the tests'.
sys.path += [str(HERE), str(HERE.parent / "tests" / "reference")]

import paper_oracles  # noqa: E402
from paper_counts import counts  # noqa: E402
from paper_table import Section, as_json, in_text, surroundings  # noqa: E402
from paper_turns import CLOCKS  # noqa: E402

from fastvlm.errors import FastVLMError  # noqa: E402


def run_counts(_: argparse.Namespace) -> Section:
    """Parameters and tokens."""
    return counts()


def run_encoders(options: argparse.Namespace) -> Section:
    """The encoder table."""
    paper_oracles.timm()
    from paper_encoders import section

    return section(options.rounds, options.clock)


def run_cambrian(options: argparse.Namespace) -> Section:
    """7.9×."""
    paper_oracles.timm()
    from paper_cambrian import section

    return section(options.rounds, options.clock)


def run_first_token(options: argparse.Namespace) -> Section:
    """85×."""
    from paper_first_token import Asked, contenders, measure, section

    asked = Asked(options.checkpoint, options.onnx, options.size, options.rounds, options.threads, options.clock)
    found = contenders(asked)
    measure(found, asked.rounds)
    return section(found, asked)


SECTIONS: dict[str, Callable[[argparse.Namespace], Section]] = {
    "counts": run_counts,
    "encoders": run_encoders,
    "cambrian": run_cambrian,
    "first-token": run_first_token,
}


def positive(text: str) -> int:
    """A count of at least one."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in (*SECTIONS, "all"):
        command = commands.add_parser(name)
        command.add_argument("--rounds", type=positive, default=3)
        command.add_argument("--threads", type=positive, default=None)
        command.add_argument("--clock", choices=CLOCKS, default="elapsed", help="what is timed (paper_turns.py)")
        command.add_argument("--json", type=Path, metavar="FILE")
        if name in ("first-token", "all"):
            command.add_argument("checkpoint", metavar="CHECKPOINT")
            command.add_argument("--onnx", metavar="BUILD", help="a build of ONNX files beside PyTorch")
            command.add_argument(
                "--size", type=positive, default=1024, help="FastVLM's image side; the paper's is 1024"
            )
    options = parser.parse_args(arguments)
    if options.json is not None and not options.json.absolute().parent.is_dir():
        parser.error(f"there is no folder {options.json.absolute().parent}")  # said before minutes are spent
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs what is asked, prints each section as it is found; 2 for what a user can put right."""
    options = parsed(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    here, found = surroundings(), []
    try:
        for name in SECTIONS if options.command == "all" else [options.command]:
            found.append(SECTIONS[name](options))
            print(in_text(found[-1], here), flush=True)
            gc.collect()  # the models of one section make room for the next
    except FastVLMError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(found, here), indent=1, ensure_ascii=False) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
