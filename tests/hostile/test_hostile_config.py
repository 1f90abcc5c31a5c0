"""Whatever config.json says, it opens no socket, imports nothing, starts nothing, writes nothing; and it ends by name.

An audit hook in the child sees what the interpreter does. It cannot be taken away again, which is why it is set there.
"""

from __future__ import annotations

import importlib
import json
import random
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import CONFIG, Files, folder_of, micro_files
from config_lies import CHOSEN, NUMBERS, VALUES, texts
from messages import check_message
from ordeal import Case, in_lines, size, tally, try_all

from fastvlm.errors import FastVLMError
from fastvlm_ref import load_checkpoint
from fastvlm_ref.checkpoint import load

OURS = {"fastvlm", "fastvlm_ref", "torch", "numpy", "tokenizers", "safetensors", "PIL", *sys.stdlib_module_names}
STARTED = ("subprocess.", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "pty.", "ctypes.dlopen")
SEEN: list[str] = []  # what the hook saw in this process, which is a child
HOOKED: list[bool] = []
EVIL = {"evil.py": b"raise SystemExit('it ran')", "modeling_evil.py": b"raise SystemExit('it ran')"}


def watch() -> None:
    """From here on this process tells in SEEN what no checkpoint may make it do."""
    if not HOOKED:
        HOOKED.append(True)
        sys.addaudithook(_hook)
    SEEN.clear()


def _hook(event: str, given: tuple[Any, ...]) -> None:
    foreign = event == "import" and str(given[0]).partition(".")[0] not in OURS
    writes = event == "open" and isinstance(given[1], str) and set(given[1]) & set("wax+")
    if foreign or writes or event.startswith(("socket.", *STARTED)):
        SEEN.append(f"{event} {given!r}"[:200])


def check_said(said: str) -> None:
    assert not SEEN, SEEN
    check_message(said, 20_000)
    assert "x" * 200 not in said


def judged(files: Files, config: bytes) -> None:
    with folder_of({**files, **EVIL, CONFIG: config}) as folder:
        sys.path.insert(0, str(folder))
        watch()
        try:
            model = load_checkpoint(folder)
        except FastVLMError as error:
            check_said(str(error))
            raise
        finally:
            sys.path.remove(str(folder))
        assert not SEEN, SEEN
        text = model.config.text
        assert 1e-12 <= text.rms_norm_eps <= 0.1
        assert 1 <= text.rope_theta <= 1e12
        assert all(type(stop) is int and 0 <= stop <= 2**24 for stop in model.config.prompt.stop_ids)


def cases(files: Files, count: int, names: list[str] | None = None) -> list[Case]:
    good = json.loads(files[CONFIG])

    def case(config: bytes) -> Callable[[], object]:
        return lambda: judged(files, config)

    found = {name: json.dumps(good | change).encode() for name, change in CHOSEN.items()}
    found |= {f"text: {name}": content for name, content in texts(good).items()}
    drawn = random.Random("config")
    pairs = [(name, value) for name in NUMBERS for value in VALUES]
    for name, value in drawn.sample(pairs, min(max(count - len(found), 0), len(pairs))):
        found[f"{name} = {str(value)[:12]}"] = json.dumps(good | {name: value}).encode()
    return [(name, case(content)) for name, content in found.items() if names is None or name in names]


@pytest.fixture(scope="module")
def files() -> Files:
    found = micro_files()
    with folder_of(found) as folder:
        load_checkpoint(folder)  # what has to be imported is
    return found


def test_no_config_reaches_out(files: Files) -> None:
    tried = cases(files, size(80, 220))
    assert len(tried) >= 80
    outcomes = try_all(tried)
    loaded = [outcome.name for outcome in outcomes if outcome.kind == "passed"]
    assert tally("hostile config.json", outcomes, loaded=len(loaded)) == [], in_lines(
        [one for one in outcomes if not one.held]
    )
    print("loaded:", ", ".join(loaded))
    assert len(loaded) < len(outcomes) // 3


def by_name(config: Any) -> str:
    return str(importlib.import_module(str(config["auto_map"]["AutoConfig"]).partition(".")[0]))


def from_the_net(config: Any) -> str:
    with socket.socket() as line:
        line.connect_ex(("127.0.0.1", 9))
    return str(config["model_type"])


@pytest.mark.parametrize(("lax", "seen"), [(by_name, "it ran"), (from_the_net, "socket.")])
def test_a_reader_that_follows_a_name_is_seen(
    lax: Callable[[Any], str], seen: str, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert try_all(cases(files, 0, ["auto_map"]))[0].kind == "passed"
    monkeypatch.setattr(load, "model_type", lax)
    (outcome,) = try_all(cases(files, 0, ["auto_map"]))
    assert not outcome.held
    assert seen in outcome.detail or "import ('evil'" in outcome.detail


REDS: dict[str, tuple[str, Any, str]] = {
    "eps": ("fastvlm_ref.checkpoint.text_config.EPS_RANGE", (0.0, 1e30), "eps of 1e-300"),
    "theta": ("fastvlm_ref.checkpoint.text_config.THETA_RANGE", (1e-30, 1e30), "theta of 1e-17"),
    "ids": ("fastvlm_ref.checkpoint.statements._is_id", lambda _: True, "an end of -5"),
    "a quotation": ("fastvlm_ref.checkpoint.text_config.short", repr, "a model type of megabytes"),
}


@pytest.mark.parametrize("red", REDS)
def test_without_its_check_a_config_passes(red: str, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    place, instead, lie = REDS[red]
    monkeypatch.setattr(place, instead)
    (outcome,) = try_all(cases(files, 0, [lie]))
    assert not outcome.held, outcome


def test_the_files_are_where_they_were(files: Files) -> None:
    """A config that is good loads from such a folder, evil modules and all."""
    with folder_of({**files, **EVIL}) as folder:
        assert load_checkpoint(Path(folder)).config.text.layers == 1
