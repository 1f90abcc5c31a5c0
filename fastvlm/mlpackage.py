"""The one way in which this project's .mlpackage folders are laid out, so that the same content is the same bytes.

    Manifest.json                                  which item is which; ids are derived from what the items hold
    Data/com.apple.CoreML/model.mlmodel            the program
    Data/com.apple.CoreML/weights/weight.bin       its weights

coremltools names the items with random UUIDs. Here an id is the UUID (version 5) of the item's path and SHA-256: no
date, no chance. `export` writes packages so, and whoever passes them on can prove that they are still so.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from fastvlm.json_file import read_json

MODEL = "com.apple.CoreML/model.mlmodel"
WEIGHTS = "com.apple.CoreML/weights"
MODEL_FILE = f"Data/{MODEL}"
WEIGHT_FILE = f"Data/{WEIGHTS}/weight.bin"
MANIFEST_FILE = "Manifest.json"
FILES = (MANIFEST_FILE, MODEL_FILE, WEIGHT_FILE)  # of every package, and no other


def canonical_manifest(model_sha256: str, weights_sha256: str) -> str:
    """Returns Manifest.json of a package whose program and weight file have these hashes (64 hex digits)."""
    model, weights = (
        str(uuid.uuid5(uuid.NAMESPACE_OID, f"{path}:{digest}")).upper()
        for path, digest in ((MODEL, model_sha256), (WEIGHTS, weights_sha256))
    )
    author = "com.apple.CoreML"
    entries = {
        model: {"author": author, "description": "CoreML Model Specification", "name": "model.mlmodel", "path": MODEL},
        weights: {"author": author, "description": "CoreML Model Weights", "name": "weights", "path": WEIGHTS},
    }
    content = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": model}
    return json.dumps(content, sort_keys=True, indent=4) + "\n"


def leads_to_ours(manifest: Path) -> bool:
    """Whether a package's Manifest.json, by whatever ids, names the program and the weights that this project has."""
    try:
        content = read_json(manifest, 1 << 20)
        items = {key: item["path"] for key, item in content["itemInfoEntries"].items()}
        return sorted(items.values()) == [MODEL, WEIGHTS] and items[content["rootModelIdentifier"]] == MODEL
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
