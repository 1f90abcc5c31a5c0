"""Each check of the readers of packages, ONNX files and manifests, taken away: what it was for is then taken.

REDS names an attack for each check; BEHIND says of the others what stands behind them, so that nothing turns red. All
checks that there are stand in one of the two. LIMITS are constants and functions in whose place others are put.
Of the limits of the MIL reader those of planning are in test_hostile_work.py; MOST_VALUES and MOST_ELEMENTS cannot be
shown red, for what they let through is an allocation that fails, which is named with the op (test_hostile_room.py).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from manifest_attacks import MANIFESTS
from one_check_less import Check, checks_of, without
from onnx_attacks import ONNX
from ordeal import in_lines, try_all
from package_attacks import PACKAGES, Attack, cases
from test_hostile_build_limits import Same

from fastvlm import paths

WORDS = "the words alone: the same is refused in others"
REDS: dict[str, dict[str, str]] = {
    "fastvlm.paths": {
        "open_contained: most is not None and (size := os.fstat(file.": "a manifest of a megabyte",
        "_check_plain: not is_plain(relative)": "a path with ..",
        "open_contained: except OSError": "a manifest that is a link",
        "_opened: not is_regular(os.fstat(handle))": "a manifest that is a pipe",
        "check_tree: not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))": "a link beside",
        "check_tree: count > most": "files by the thousand",
    },
    "fastvlm.json_file": {
        "_at_most: len(data) > most": "32 MB of blanks",
        "counted: (lists := (data.count(b'[') + data.count(b'{'))) > ": "lists by the million",
        "counted: data.count(b',') >= MOST_VALUES": "values by the million",
        "_finite: not math.isfinite(value)": "beyond any number",
        "parse: except RecursionError": "a manifest without end",
    },
    "validation.mil.package": {
        "_read_manifest: not isinstance(entries, dict) or not all((is": "items in a list",
        "Package._weight_path: not file_name.startswith(_WEIGHT_PREFI": "weights of another folder",
        "_read_manifest: except FileNotFoundError": "no manifest",
        "_read_manifest: except ValueError": "a manifest that is no JSON",
        "_spec: except FileNotFoundError": "no model",
        "_spec: except DecodeError": "a model that is no message",
        "_check_size: ops > MOST_OPS or blocks > MOST_BLOCKS": "blocks by the thousand",
        "Package._file: except FileNotFoundError": "no weights",
    },
    "validation.mil.blob": {
        "BlobFile.__init__: version != _VERSION": "another version of weights",
        "BlobFile._locate: offset < 0 or offset + _METADATA_BYTES > t": "a blob behind the end",
        "BlobFile._locate: sentinel != _SENTINEL": "a blob without its mark",
        "BlobFile._locate: code != dtype.blob": "a blob of another type",
        "BlobFile._locate: size != expected": "a blob of nibbles with more behind them",
        "BlobFile.__init__: except (OSError, ValueError)": "empty weights",
    },
    "validation.mil.values": {
        "_tensor_type: message.rank != len(message.dimensions)": "a rank that is none",
        "_as_declared: lost.any()": "a number beyond its type",
        "Constant._place: not isinstance(self.type, TensorType) or se": "a text among the weights",
    },
    "validation.ort.external": {
        "_region: tensor.data_location != TensorProto.EXTERNAL": "values and a place",
        "_region: unknown or len(entries) != len(tensor.external_data": "a place told twice",
        "_region: start is None or length != wanted": "a place that is no number",
        "bytes_of: bits is None": "a type that no weight has",
        "bytes_of: len(tensor.dims) > MOST_DIMENSIONS or min(tensor.d": "nine axes",
        "_misplaced: beyond": "a place behind the end",
        "_misplaced: region.start < last.end and region.start < regio": "shared bytes",
    },
    "validation.ort.opening": {
        "open_file: problems": "functions",
        "_read: path.suffix != SUFFIX": "another kind of name",
        "_parse: not model.graph.node": "no graph",
        "_version_problems: model.ir_version not in IR_VERSIONS": "an IR version to come",
        "_version_problems: '' not in domains or len(set(domains)) !=": "an opset twice",
        "_content_problems: _holds_unknown(model)": "a field that nobody knows",
        "_content_problems: model.functions": "functions",
        "_content_problems: model.training_info": "training",
        "state_of: except OSError": "data that are gone",
        "check_unchanged: state_of(path) != state": "data that are exchanged",
        "_read: except (OSError, ValueError)": "a model of 8 MB",
        "_parse: except DecodeError": "no message",
        "_parse: count == MOST_PARTS": "parts by the million",
        "_parse: not _is_text(message)": "a name that is no text",
        "_version_problems: domain not in OPSETS": "ops of a stranger",
        "_content_problems: isinstance(message, SparseTensorProto)": "a sparse tensor",
        "_content_problems: node.domain not in imported": "an op of a domain that is not imported",
        "_content_problems: node.op_type == CONTEXT": "a provider's own file",
        "_weight_problems: wanted != found": "a weight inside of another size",
        "_port_problems: port.type.WhichOneof('value') != 'tensor_typ": "a sequence for an input",
        "_version_problems: version not in OPSETS[domain]": "an opset to come",
        "_content_problems: isinstance(message, AttributeProto) and (m": "a graph in a node",
        "_content_problems: isinstance(message, AttributeProto) and (n": "a number beyond 32 bits",
    },
    "validation.ort.inside": {
        "read_past_weights: found != size or size > LARGEST": "more bytes than the manifest says",
        "_Reader._field: length > end - self._at": "a weight inside that is cut",
        "_Reader._count: self._fields < 0": "fields by the million beside weights",
        "_Reader._bytes: self._kept > self._most": "8 MB beside the weights inside",
    },
    "fastvlm.manifest": {
        "check_files: problems": "a file of other bytes",
        "_size_problem: not path.is_file()": "a file that is missing",
        "_load: not isinstance(content, dict)": "a list",
        "_check_schema: match is None": "no schema",
        "_check_schema: int(match[1]) > int(SCHEMA.split('.')[0])": "a schema to come",
        "_check_fields: wrong": "a field that is missing",
        "_load: except OSError": "a manifest that is a link",
        "_load: except ValueError": "no JSON",
    },
}
BEHIND: dict[str, dict[str, str]] = {
    "fastvlm.paths": {
        "check_entry": WORDS,
        "_refusal": WORDS,
        "contained: _is_link": "what is named is opened without following links, or judged by lstat",
        "open_contained: except FileNotFoundError": WORDS,
        "open_plain: except OSError": WORDS,
        "_descend": "the folder is the user's own word",
        "_opened: except ValueError": "names of files are plain (_check_plain), others are the user's",
        "_opened: except BaseException": "it closes what was opened",
        "open_contained: missing": WORDS,
        "open_plain: problem": WORDS,
    },
    "fastvlm.json_file": {
        "parse: except UnicodeError": "it is a ValueError too",
        "each_once": "of config.json and tokenizers, which have attacks of their own (test_hostile_mended.py)",
    },
    "validation.mil.package": {
        "_model_name": "no number or None in a path is plain (_check_plain)",
        "open_folder": "no file holds a manifest",
        "Package.__init__": "what is no program has no function",
        "Package._weight_path: self._model_folder": "of specs in memory, which are nobody's files",
    },
    "validation.mil.blob": {
        "BlobFile.__init__: len": "no blob lies in so few bytes (_locate)",
        "BlobFile.part": "of callers, not of files",
        "BlobFile._locate: start + size": "so few values have another shape (numpy)",
    },
    "validation.mil.values": {
        "_tensor_type: message.dataType": "whoever reads the value names the op",
        "_tensor_type: len": "numpy takes no more axes, and the op is named",
        "_tensor_type: math.prod": "an allocation that fails is named with the op",
        "decode_constant": "the binder takes no state",
        "_immediate_tensor": "so few values have another shape (numpy)",
        "_as_declared: stored": "numpy compares no texts with numbers",
        "_from_bytes: len(raw)": "numpy takes whole values alone",
        "_from_bytes: len(packed)": "so few values have another shape (numpy)",
    },
    "validation.ort.external": {
        "_region: not is_plain": "`contained` asks the same again: both are taken away below",
    },
    "validation.ort.opening": {
        "_read: except FileNotFoundError": WORDS,
    },
    "validation.ort.inside": {
        "_Reader._bytes: count > end": "protobuf refuses what reaches beyond its message",
        "_Reader._bytes: len(data)": "of a file that is cut while it is read",
    },
    "fastvlm.manifest": {
        "_size_problem: (size": "what is longer has another hash (test_hostile_build_limits.py takes both away)",
        "_no_build": WORDS,
        "_load: except FileNotFoundError": WORDS,
        "_load: except NotADirectoryError": WORDS,
    },
}


def attack_of(name: str, module: str) -> Attack:
    """The attack of that name: of packages, of ONNX files or of manifests, whichever the module reads."""
    kinds = {"validation.ort": (ONNX,), "validation.mil": (PACKAGES,), "fastvlm.manifest": (MANIFESTS,)}
    some = next((kind for start, kind in kinds.items() if module.startswith(start)), (PACKAGES, MANIFESTS, ONNX))
    return next(attacks[name] for attacks in some if name in attacks)


def check_of(module: str, start: str) -> Check:
    """The one check of the module whose function and words begin like that."""
    found = [check for check in checks_of(module) if f"{check.function}: {check.words}".startswith(start)]
    assert len(found) == 1, f"{module} has {len(found)} checks {start!r}; name those that it has in REDS or BEHIND"
    return found[0]


@pytest.mark.parametrize("attacks", [PACKAGES, ONNX, MANIFESTS], ids=["packages", "ONNX files", "manifests"])
def test_every_attack_is_named(attacks: dict[str, Attack], tmp_path: Path) -> None:
    outcomes = [outcome for outcome in try_all(cases(attacks, tmp_path)) if outcome.kind != "named"]
    assert not outcomes, in_lines(outcomes)


@pytest.mark.parametrize("module", REDS)
def test_every_check_is_known(module: str) -> None:
    starts = [*REDS[module], *BEHIND.get(module, {})]
    known = [check_of(module, start) for start in starts]
    assert sorted(map(str, known)) == sorted(map(str, checks_of(module)))


@pytest.mark.parametrize("module", REDS)
def test_without_each_check_its_attack_is_taken(module: str, tmp_path: Path) -> None:
    held = []
    for start, name in REDS[module].items():
        with pytest.MonkeyPatch.context() as patch:
            without(check_of(module, start), patch)
            held += [start for one in try_all(cases({name: attack_of(name, module)}, tmp_path)) if one.held]
    assert not held, f"red with the check, and without it: {held}"


@pytest.mark.long
@pytest.mark.parametrize("module", BEHIND)
def test_something_stands_behind_the_others(module: str, tmp_path: Path) -> None:
    for start in BEHIND[module]:
        with pytest.MonkeyPatch.context() as patch:
            without(check_of(module, start), patch)
            for attacks in (PACKAGES, ONNX, MANIFESTS):
                outcomes = [outcome for outcome in try_all(cases(attacks, tmp_path)) if not outcome.held]
                assert not outcomes, f"without {start!r}: {in_lines(outcomes)}"


def test_a_place_elsewhere_is_taken_without_both_of_its_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("validation.ort.external.is_plain", lambda _: True)
    without(check_of("fastvlm.paths", "_check_plain"), monkeypatch)
    without(check_of("validation.ort.external", "_region: not is_plain"), monkeypatch)
    name = "a place elsewhere"
    (outcome,) = try_all(cases({name: with_data_above(ONNX[name])}, tmp_path))
    assert not outcome.held, outcome


def with_data_above(attack: Attack) -> Attack:
    """The same, with a file of zeros where the place leads to."""

    def run(folder: Path) -> None:
        (folder.parent / "model.onnx.data").write_bytes(bytes(1 << 16))
        attack(folder)

    return run


FOLLOWED = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
LIMITS: dict[str, tuple[str, object, str]] = {
    "hashes of a manifest": ("fastvlm.manifest.sha256_open", lambda *_: Same(), "a file of other bytes"),
    "foreign files": ("fastvlm.manifest._foreign", lambda *_: [], "a file that nobody listed"),
    "fields of a file": ("fastvlm.manifest.is_file_hash", lambda _: True, "a size that is a text"),
    "numbers of JSON": ("fastvlm.json_file._no_number", lambda _: 0, "NaN"),
    "links are not followed": ("fastvlm.paths._FILE", FOLLOWED, "a model that is a link"),
    "links to folders are not": ("fastvlm.paths._FOLDER", paths._ROOT, "weights in a folder that is a link"),
    "pipes": ("fastvlm.paths.is_regular", lambda _: True, "a model that is a pipe"),
    "plain names": ("fastvlm.paths.is_plain", lambda _: True, "a path with .."),
    "bytes of a package's manifest": ("validation.mil.package.MOST_MANIFEST", 1 << 40, "a manifest of a megabyte"),
    "bytes of a program": ("validation.mil.package.MOST_PROGRAM", 1 << 40, "a model of 16 MB"),
    "ops": ("validation.mil.package.MOST_OPS", 1 << 40, "ops by the hundred thousand"),
    "blocks": ("validation.mil.package.MOST_BLOCKS", 1 << 40, "blocks by the thousand"),
    "what Core ML gets": ("validation.mil.package.check_tree", lambda *_: None, "a link beside"),
    "bytes of a model": ("validation.ort.opening.MOST_BYTES", 1 << 40, "a model of 8 MB"),
    "attributes": ("validation.ort.opening.LARGEST", 1 << 62, "a number beyond 32 bits"),
    "opsets": ("validation.ort.opening.OPSETS", {"": range(99), "com.microsoft": range(99)}, "an opset to come"),
    "axes of a weight": ("validation.ort.external.MOST_DIMENSIONS", 99, "nine axes"),
    "where weights are": ("validation.ort.opening.external_problems", lambda *_: (), "shared bytes"),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_without_each_limit_its_attack_is_taken(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, instead, attack = LIMITS[limit]
    monkeypatch.setattr(name, instead)
    (outcome,) = try_all(cases({attack: attack_of(attack, name)}, tmp_path), seconds=10)
    assert not outcome.held, outcome
