"""metadata.json: the one file that a runtime must read, written and read.

A superset of the metadata that Apple's coreai-models writes for a vision-language model (version 0.2, see its
ModelBundle.swift and LanguageConfig.swift): those keys have their meaning, so that a reader of them finds name, assets,
tokenizer, context and image rule; ours stand beside them. Assets are named by role and stem, without an ending, because
a device has STEM.mlmodelc where a developer has STEM.mlpackage. Where, when and by whom it was written is not in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastvlm import __version__
from fastvlm.app_limits import APP_LIMIT
from fastvlm.build import HIDDEN, MASKED, Build
from fastvlm.errors import BundleError
from fastvlm.json_file import read_json
from fastvlm.licences import licence_text
from ios_bundle import layout
from ios_bundle.host_files import most_new_tokens, stop_ids
from ios_bundle.memory import memory_record
from ios_bundle.promises import language_entries, packages
from ios_bundle.seal import check_schema
from ios_bundle.standing import Standing

STRATEGIES = {"pad": "pad", "crop": "center_crop"}  # as Apple's ImageStrategy calls them
LADDERS = {
    "ane": ["cpuAndNeuralEngine", "cpuAndGPU", "cpuOnly"],  # MLComputeUnits, the first that loads; never "all"
    "gpu": ["cpuAndGPU", "cpuOnly"],
}
MINIMUM_OS = {"iOS": "18.0", "iPadOS": "18.0", "macOS": "15.0", "visionOS": "2.0"}  # functions and state of Core ML
MAX_BYTES = 4 << 20
_REQUIRED: dict[str, type] = {
    "name": str, "kind": str, "assets": dict, "language": dict, "vision": dict, "embedding": dict, "prompt": dict,
    "files": dict, "validation": dict, "bundle": dict,
}  # fmt: skip


def metadata_record(build: Build, name: str, size: int, standing: Standing, digest: str, tests: bool) -> dict[str, Any]:
    """Returns the content of metadata.json.

    size: bytes of all other files; digest: SHA-256 of the build's manifest; tests: whether there is a self-test.
    """
    manifest = build.manifest
    return {
        "metadata_version": layout.METADATA_VERSION,
        "kind": "vlm",
        "name": name,
        "assets": {
            "main": layout.stem(build.language[0].package.name),
            "vision": layout.stem(packages(build)[0]),
            "embedding": layout.EMBED,
        },
        "language": _language(build),
        "vision": _vision(build),
        "embedding": _embedding(build),
        "prompt": {
            **manifest["prompt"], "bos_id": manifest["tokenizer"].get("bos_id"), "stop_ids": stop_ids(build),
        },
        "files": _files(tests),
        "profiles": list(_profiles(build)),
        "compute_units": {"vision": LADDERS["ane"], "main": LADDERS[build.target]},
        "minimum_os": MINIMUM_OS,
        "memory": memory_record(build),
        "size": {"bytes": size, "app_limit_bytes": APP_LIMIT, "fits_app": size <= APP_LIMIT},
        "validation": standing.as_json(),
        "source": {key: manifest["source"].get(key) for key in ("id", "revision", "layout")},
        "compression": {key: manifest["compression"][key] for key in ("scheme",) if key in manifest["compression"]},
        "licence": {"name": manifest["licence"], "text": licence_text(manifest["licence"]), "folder": layout.LICENSES},
        "bundle": {"schema": layout.SCHEMA, "fastvlm_version": __version__, "manifest_sha256": digest},
    }  # fmt: skip


def _language(build: Build) -> dict[str, Any]:
    assert build.embeddings is not None
    chain = [
        {
            "asset": layout.stem(stage.package.name),
            "functions": {key: entry[key] for key in ("prefill", "decode") if key in entry},
            "logits": list(stage.logits),
            **({"state": entry["state"]} if "state" in entry else {}),
        }
        for stage, entry in zip(build.language, language_entries(build), strict=True)
    ]
    return {
        "tokenizer": build.source_id,
        "vocab_size": build.vocab_size,
        "max_context_length": build.context,
        "embedded_tokenizer": True,
        "function_map": {"main": ["decode"], "prefill": ["prefill"]},
        "prefill_chunk_size": build.query,
        "hidden_size": build.embeddings.width,
        "head_dim": build.head_dim,
        "rope_theta": build.rope_theta,
        "mask_value": MASKED,
        "hidden": HIDDEN,
        "chain": chain,
    }


def _vision(build: Build) -> dict[str, Any]:
    functions = build.manifest["functions"]["encoder"]
    first = build.image_sizes[0]
    return {
        "image_size": first,
        "patch_size": build.stride,
        "image_token_count": build.tokens_at(first),
        "image_token_id": build.prompt.get("image_token_id"),
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
        "rescale_factor": build.manifest["image"].get("scale"),
        "image_strategy": STRATEGIES[build.image_rule],
        "functions": {
            f"encode_{size}": {
                "image_size": size, "image_token_count": build.tokens_at(size), **functions[f"encode_{size}"],
            }
            for size in build.image_sizes
        },
    }  # fmt: skip


def _embedding(build: Build) -> dict[str, Any]:
    table = build.embeddings
    assert table is not None
    record = {"file": layout.EMBED, "rows": table.rows, "width": table.width, "dtype": table.dtype}
    return record | ({"scales": {"file": layout.SCALES, "dtype": "float16"}} if table.dtype == "int8" else {})


def _files(tests: bool) -> dict[str, str]:
    return {
        "tokenizer": f"{layout.TOKENIZER}/tokenizer.json",
        "preprocess": layout.PREPROCESS,
        "generation": layout.GENERATION,
        "prompts": layout.PROMPTS,
        "checksums": layout.CHECKSUMS,
    } | ({"selftest": f"{layout.SELFTEST}/selftest.json"} if tests else {})


def _profiles(build: Build) -> Iterator[dict[str, Any]]:
    """What an app can choose among: an image side, and the room for text that it leaves in the context."""
    for size in build.image_sizes:
        yield {
            "name": str(size), "function": f"encode_{size}", "image_size": size, "image_tokens": build.tokens_at(size),
            "context": build.context, "text_positions": build.context - build.tokens_at(size),
            "max_new_tokens": most_new_tokens(build, size),
        }  # fmt: skip


def read_metadata(bundle: Path) -> dict[str, Any]:
    """Returns metadata.json of a bundle, its required keys proven to be there; unknown keys stay.

    Raises BundleError: unreadable, of a newer MAJOR schema, or keys missing (all listed).
    """
    path = bundle / layout.METADATA
    try:
        content = read_json(path, MAX_BYTES)
    except OSError as problem:
        raise BundleError(f"{path} cannot be read ({problem.strerror}); is {bundle} a bundle?") from problem
    except ValueError as problem:
        raise BundleError(f"{path} is not valid JSON ({str(problem)[:120]}); copy the bundle again") from problem
    own = content.get("bundle") if isinstance(content, dict) else None
    if isinstance(own, dict):
        check_schema(own.get("schema"), path)
    missing = [
        key for key, kind in _REQUIRED.items() if not isinstance(content, dict) or type(content.get(key)) is not kind
    ]
    if missing:
        raise BundleError(f"{path} lacks {', '.join(missing)}; it is no bundle of this tool, or was changed")
    return dict(content)
