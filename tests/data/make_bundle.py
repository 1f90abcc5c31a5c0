"""Makes `bundles/SCHEMA`: a bundle of a seeded checkpoint of the smallest sizes that still has every part.

Run once when the schema of bundles changes (`python tests/data/make_bundle.py`); what an older version made stays as it
is, because what has once been shipped must stay readable. Needs the layout of a LLaVA folder from tests/reference.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent / "reference")]

from synthetic import SMALL, TEXT, VISION, write_llava  # noqa: E402

from export import export  # noqa: E402
from ios_bundle import bundle  # noqa: E402
from ios_bundle.layout import SCHEMA  # noqa: E402
from validation import validate  # noqa: E402

SIZES = replace(
    SMALL,
    vision=replace(
        VISION, depths=(1,) * 5, widths=(8, 16, 16, 32, 32), mlp_widths=(16, 32, 32, 64, 64), features=64,
        se_channels=8,
    ),
    text=replace(TEXT, head_dim=32, layers=1),
)  # fmt: skip
CONTEXT, STEPS = 128, 8


def main() -> None:
    """Checkpoint, build, verdict, bundle."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_llava(Path(folder) / "seeded", SIZES)
        build = export(checkpoint, Path(folder) / "build", context=CONTEXT)
        assert validate(build, checkpoint, steps=STEPS).passed
        print(bundle(build, HERE / "bundles" / SCHEMA))


if __name__ == "__main__":
    main()
