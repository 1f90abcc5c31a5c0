"""What a user does with the encoder for Apple's sample app: what `export --for apple-app` and its `validate` end with.

The steps are those of github.com/apple/ml-fastvlm (app/README.md, model_export/README.md) with one file exchanged;
docs/apple-app.md tells them at length.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import click

MODEL = "app/FastVLM/model"  # in Apple's checkout
RELEASED = {896: "0.5b", 1536: "1.5b", 3584: "7b"}  # by the decoder's width: what Apple's script calls its models


def show_steps(build: Path) -> None:
    """Prints, on stderr, where the encoder goes and where the language model beside it comes from."""
    from fastvlm.manifest import read_manifest

    size = RELEASED.get(read_manifest(build)["model"]["text"]["hidden_size"], "0.5b")
    click.echo(
        f"in a checkout of github.com/apple/ml-fastvlm, where {MODEL} is to hold both halves of one checkpoint:\n"
        "  1. the language model, by MLX; first, because the script empties the folder:\n"
        f"     bash app/get_pretrained_mlx_model.sh --model {size} --dest {MODEL}\n"
        "     that is Apple's; for a fine-tune, in model_export/, with mlx-vlm patched as its README says, and a copy\n"
        "     of the checkpoint, because the first command edits it:\n"
        "     python export_vision_encoder.py --model-path COPY\n"
        f"     python -m mlx_vlm.convert --hf-path COPY --mlx-path ../{MODEL} --only-llm\n"
        "  2. this encoder in place of the one that came with it:\n"
        f"     rm -r {MODEL}/fastvithd.mlpackage && {_copying(build)}\n"
        "  3. app/FastVLM.xcodeproj: build and run (docs/apple-app.md)",
        err=True,
    )


def app_step(build: str) -> str | None:
    """Returns what to type where a build is an encoder for the app and is good; None for any other build."""
    from fastvlm.manifest import read_manifest

    if read_manifest(build).get("for") is None:
        return None
    return f"{_copying(Path(build))}, in a checkout of Apple's app (docs/apple-app.md)"


def _copying(build: Path) -> str:
    from fastvlm.build import read_build

    package = read_build(build).encoder
    assert package is not None  # no build for the app lacks it
    return f"cp -R {shlex.quote(str(package.resolve()))} {MODEL}/"
