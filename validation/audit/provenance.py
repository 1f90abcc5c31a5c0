"""What a build carries of its checkpoint besides numbers: licence, origin, tokenizer files, and how it was made.

An app shows the licence, a host reads the tokenizer's files, a bundle passes all of it on; nothing that is executed
shows a wrong one. Texts for people may change in a checkpoint's folder after the export, which makes it no other
checkpoint: a licence text is held to the hash that the manifest has of the source's own, the licence's name to the
checkpoint only while all of its texts are still those.
What the manifest did not have before its schema 0.3 is not missed in an older one; what is there is held all the same.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from export.compression.recipe import FP16, MIXED
from export.compression.schemes import SCHEMES
from fastvlm.hashes import sha256_bytes, sha256_file
from fastvlm.licences import FOLDER as LICENCE
from fastvlm.licences import licence_text
from fastvlm.manifest import is_older
from fastvlm_ref.checkpoint.source import Source, differing, is_licence, is_prose
from fastvlm_ref.tokenizer import load_tokenizer
from validation.audit.findings import CONSTANTS, Findings
from validation.differences import short
from validation.pair import Pair

SINCE = "0.3"  # the manifest's schema
RECIPE = "recipe"  # what `compression.scheme` says of one from a file


def hold_provenance(pair: Pair, saturable: Collection[str], findings: Findings) -> None:
    """Counts what the build says of its origin otherwise than the checkpoint; `saturable`: its parameters' names."""
    checks: tuple[Callable[[Pair], Iterator[str]], ...] = (_origin, _licence, _licence_files, _scheme, _tokenizer)
    for check in checks:
        findings.look(CONSTANTS)
        for words in check(pair):
            findings.count(CONSTANTS, words)
    findings.look(CONSTANTS)
    for words in _saturated(pair, saturable):
        findings.count(CONSTANTS, words)


def _origin(pair: Pair) -> Iterator[str]:
    """Layout, and the revision where both go by one name; a folder's name says nothing about its content."""
    source, told = pair.model.source, pair.build.manifest["source"]
    if source is None or not _is_source(pair, source):
        return
    if told.get("layout") != source.layout:
        yield f"manifest.json: source.layout is {short(told.get('layout'))}, expected {source.layout}"
    # another commit of the Hub's may hold the same files
    both = told.get("revision") is not None and source.revision is not None
    if told.get("id") == source.id and told.get("revision") != source.revision and not both:
        yield f"manifest.json: source.revision is {short(told.get('revision'))}, expected {source.revision}"


def _is_source(pair: Pair, source: Source) -> bool:
    """Whether the checkpoint's files are those of the manifest, by names and sizes: `validate` compares the hashes."""
    listed = {name: row.get("bytes") for name, row in pair.build.source_files.items() if isinstance(row, dict)}
    return not differing({name: path.stat().st_size for name, path in source.paths.items()}, listed)


def _licence(pair: Pair) -> Iterator[str]:
    manifest, source = pair.build.manifest, pair.model.source
    told = manifest["licence"]
    if source is not None and _same_prose(pair, source) and told != pair.model.config.licence:
        yield f"manifest.json: licence is {short(told)}, expected {pair.model.config.licence}"
    if (text := manifest.get("licence_text")) != licence_text(told) and not (text is None and _older(pair)):
        yield f"manifest.json: licence_text is {short(text)}, expected {short(licence_text(told))}"


def _same_prose(pair: Pair, source: Source) -> bool:
    """Whether the checkpoint's texts for people are still those that it had at the export."""
    found = {name: sha256_file(path) for name, path in source.paths.items() if is_prose(_plain(name))}
    return found == {name: digest for name, digest in _hashes(pair).items() if is_prose(_plain(name))}


def _licence_files(pair: Pair) -> Iterator[str]:
    """Each licence text of the source, its base's under `base/`, byte for byte, and no other."""
    folder = pair.build.folder / LICENCE
    wanted = {name: digest for name, digest in _hashes(pair).items() if is_licence(_plain(name))}
    found = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    for name in sorted(found.keys() - wanted.keys()):
        yield f"{LICENCE}/{name} is no text of the checkpoint's"
    for name, digest in wanted.items():
        if name not in found:
            if not _older(pair):
                yield f"{LICENCE}/{name} is missing, which the checkpoint had"
        elif sha256_file(found[name]) != digest:
            yield f"{LICENCE}/{name} is another text than the checkpoint's, by its hash in source.files"


def _scheme(pair: Pair) -> Iterator[str]:
    """What the manifest calls the compression, against the layers that it lists; these are held against the files."""
    told = pair.build.manifest["compression"]
    scheme, counts = told.get("scheme"), Counter((told.get("layers") or {}).values())
    if scheme == FP16:
        if counts or told.get("embeddings", FP16) != FP16:
            yield f"manifest.json: compression.scheme is {FP16}, and {_counted(counts) or 'the table'} is compressed"
    elif isinstance(scheme, str) and scheme in SCHEMES:
        language = Counter(name for layer, name in (told.get("layers") or {}).items() if layer.startswith("language."))
        if pair.build.language and max(language, key=language.__getitem__, default=None) != scheme:
            yield f"manifest.json: compression.scheme is {scheme}, expected what most layers have: {_counted(language)}"
    elif scheme not in (MIXED, RECIPE):
        known = ", ".join((FP16, *SCHEMES, MIXED, RECIPE))
        yield f"manifest.json: compression.scheme is {short(scheme)}, expected one of {known}"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} in {name}" for name, count in sorted(counts.items()))


def _tokenizer(pair: Pair) -> Iterator[str]:
    """The tokenizer's files, byte for byte what the checkpoint's tokenizer saves."""
    tokenizer = pair.model.tokenizer
    if tokenizer is None or pair.build.purpose is not None:
        return
    folder, copied = pair.build.tokenizer, {file.name for file in tokenizer.files}
    with tempfile.TemporaryDirectory() as place:
        tokenizer.save(Path(place))
        wanted = {path.name: path.read_bytes() for path in _files(Path(place))}
    found = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    for name in sorted(found.keys() - wanted.keys()):
        yield f"{folder.name}/{name} is no file of the checkpoint's tokenizer"
    for name, content in wanted.items():
        if name not in found:
            if not _older(pair):
                yield f"{folder.name}/{name} is missing, which the checkpoint's tokenizer has"
        elif name in copied and sha256_file(found[name]) != sha256_bytes(content):
            yield f"{folder.name}/{name} is otherwise than the checkpoint's tokenizer has it"
        elif name not in copied and not _older(pair) and not _says(pair, found[name], content):
            yield f"{folder.name}/{name} is otherwise than the checkpoint's tokenizer has it"


def _says(pair: Pair, file: Path, content: bytes) -> bool:
    """Whether a file that the export made holds `content`, or is tokenizer.json and says so when it is written anew.

    A tokenizers of another version may have written it.
    """
    if file.name != "tokenizer.json" or sha256_file(file) == sha256_bytes(content):
        return sha256_file(file) == sha256_bytes(content)
    return load_tokenizer(file.parent, pair.build.vocab_size).as_json().encode() == content


def _saturated(pair: Pair, saturable: Collection[str]) -> Iterator[str]:
    """Weights that were clamped are parameters of this model, and each has some number of them."""
    told: Any = pair.build.manifest.get("saturated", {} if _older(pair) else None)
    if not isinstance(told, dict):
        yield f"manifest.json: saturated is {short(told)}, expected weights with how many of their values were clamped"
        return
    for name, count in told.items():
        if name not in saturable:
            yield f"manifest.json: saturated names {short(name)}, expected a parameter of this model"
        elif type(count) is not int or count < 1:
            yield f"manifest.json: saturated.{name} is {short(count)}, expected how many of its values were clamped"


def _older(pair: Pair) -> bool:
    return is_older(pair.build.manifest, SINCE)


def _hashes(pair: Pair) -> dict[str, Any]:
    """The SHA-256 of each file of the source, as the manifest has it."""
    return {name: row.get("sha256") for name, row in pair.build.source_files.items() if isinstance(row, dict)}


def _plain(name: str) -> str:
    return name.rpartition("/")[2]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".DS_Store")
