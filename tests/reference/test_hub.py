"""A Hub id as a checkpoint, fetched by huggingface_hub from a stand-in server on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hub_server
import pytest
import torch
from hub_server import REPO, Hub
from safetensors.torch import save_file

from export.build import BuildWriter
from export.plan import make_plan
from export.side_files import write_licences, write_text_files
from fastvlm.build import Build, read_build
from fastvlm.errors import CheckpointError, FastVLMError, HubError, OutputError, UsageError
from fastvlm.manifest import write_manifest
from fastvlm.progress import SILENT
from fastvlm_ref import load_checkpoint
from fastvlm_ref.checkpoint import hub as hub_module
from fastvlm_ref.checkpoint.hub import HubId, fetch, hub_id
from fastvlm_ref.model.fastvlm import FastVLM
from validation import original

COMMIT, LATER = "a" * 40, "b" * 40
WEIGHTS = "model.safetensors"
FORBIDDEN = {
    "pytorch_model.bin": b"pickle", "training_args.bin": b"pickle", "modeling.py": b"code", "picture.png": b"picture",
    "LICENSE.py": b"code", "notice.png": b"picture", "onnx/config.json": b"{}", "other/model.safetensors": b"weights",
    "LICENSE_OF/other.txt": b"text",
    "events.out": b"log",
}  # fmt: skip
LICENCE = b"As is.\n"
ODD = "odd[1].json"  # a name that is a pattern too


def checkpoint_files(tiny: Path) -> dict[str, bytes]:
    """What a repository of the embedded checkpoint would hold, a licence included."""
    return {path.name: path.read_bytes() for path in tiny.iterdir() if path.is_file()} | {
        "LICENSE": LICENCE,
        ODD: b"{}",
    }


@pytest.fixture(scope="module")
def _session() -> Iterator[None]:
    """huggingface_hub's connections: one pool for all tests, which knows of no proxy."""
    from huggingface_hub import close_session

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "*")
        close_session()
        yield
        close_session()


@pytest.fixture
def hub(_session: None, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that holds the embedded checkpoint, and huggingface_hub pointed at it with an empty cache."""
    with hub_server.served(COMMIT, checkpoint_files(tiny) | FORBIDDEN) as server:
        _point_at(server, tmp_path / "home", monkeypatch)
        yield server


def _point_at(server: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def connect(self: socket.socket, address: Any) -> None:
        assert address == ("127.0.0.1", server.server_port), f"a test tried to reach {address}"
        super(socket.socket, self).connect(address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    # huggingface_hub reads its variables once, when it is imported.
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # Bytes are counted, and kept for a range request, in pieces of this size: smaller than the tiny weights.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 20)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)  # before it tries again


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def assert_same_tensors(model: FastVLM, other: FastVLM) -> None:
    found, expected = model.state_dict(), other.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_it_loads_the_same_tensors_and_fetches_nothing_else(hub: Hub, tiny: Path, heard: Any) -> None:
    model = load_checkpoint(REPO, progress=heard)
    assert_same_tensors(model, load_checkpoint("tiny"))
    files = checkpoint_files(tiny)
    assert sorted(hub.asked()) == sorted(files)
    assert set(hub.asked("HEAD")) == set(files), "a forbidden file was looked at"
    source = model.source
    assert source is not None
    assert (source.id, source.revision) == (REPO, COMMIT)
    assert "LICENSE" in source.names
    size = sum(map(len, files.values()))
    assert heard.stages[f"Fetching {REPO}"] == [size, size]
    said = f"{REPO} is commit {COMMIT}: {size / 1e6:.1f} MB in {len(files)} files, {size / 1e6:.1f} MB to fetch into "
    assert [note for note in heard.notes if note.startswith(said) and note.endswith(" GB free)")]


def test_a_second_use_asks_for_the_commit_of_the_branch_alone(hub: Hub) -> None:
    folder = fetch(HubId(REPO, None))
    hub.requests.clear()
    assert fetch(HubId(REPO, "main")) == folder
    assert [request.path for request in hub.requests] == [f"/api/models/{REPO}/revision/main"]
    hub.requests.clear()
    assert fetch(HubId(REPO, COMMIT)) == folder
    assert hub.requests == []


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_offline_after_the_first_use(hub: Hub, monkeypatch: pytest.MonkeyPatch, revision: str | None) -> None:
    fetch(HubId(REPO, None))
    hub.requests.clear()
    offline(monkeypatch)
    assert (fetch(HubId(REPO, revision)) / WEIGHTS).is_file()
    assert hub.requests == []


def test_a_pinned_commit_stays_when_the_branch_moves_on(hub: Hub) -> None:
    files = hub.commits[COMMIT]
    hub.commits[LATER], hub.branches["main"] = files | {"README.md": b"another"}, LATER
    assert fetch(HubId(REPO, COMMIT)).name == COMMIT
    hub.requests.clear()
    assert fetch(HubId(REPO, None)).name == LATER
    assert hub.asked() == ["README.md"], "files that both commits have are fetched once"


def test_a_broken_connection_is_taken_up_where_it_broke(hub: Hub) -> None:
    hub.cut[WEIGHTS] = 1
    folder = fetch(HubId(REPO, None))
    assert (folder / WEIGHTS).read_bytes() == hub.commits[COMMIT][WEIGHTS]
    ranges = [request.range for request in hub.resolved() if request.path.endswith(WEIGHTS)]
    assert ranges[0] is None
    assert len(ranges) == 2
    assert int(str(ranges[1]).removeprefix("bytes=").rstrip("-")) >= 1 << 20


def test_a_download_that_gives_up_keeps_what_is_complete(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.cut[WEIGHTS], hub.fails, hub.pause = 1, {WEIGHTS}, 0.1  # the small files are complete before the weights fail
    with pytest.raises(HubError, match=rf"^{REPO} could not be fetched.*503.*same command again.*are kept"):
        load_checkpoint(REPO)
    hub.pause = 0
    with monkeypatch.context() as patch:
        offline(patch)
        with pytest.raises(HubError, match="not whole in the cache"):
            fetch(HubId(REPO, None))
    hub.fails.clear()
    hub.requests.clear()
    assert_same_tensors(load_checkpoint(REPO), load_checkpoint("tiny"))
    assert hub.asked() == [WEIGHTS]


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C raises, as in the foreground: a job in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_ends_the_file_under_way(hub: Hub) -> None:
    def interrupt() -> None:
        while hub.sent < 2 * hub_server.PIECE:
            event.wait(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    hub.pause, event, before = 0.2, threading.Event(), signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        fetch(HubId(REPO, None))
    sent = hub.sent
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
    assert sent < len(hub.commits[COMMIT][WEIGHTS]) - hub_server.PIECE
    hub.pause = 0
    assert (fetch(HubId(REPO, None)) / WEIGHTS).read_bytes() == hub.commits[COMMIT][WEIGHTS]


def _private(hub: Hub, _: pytest.MonkeyPatch) -> None:
    hub.access = "private"


def _gated(hub: Hub, _: pytest.MonkeyPatch) -> None:
    hub.access = "gated"


def _without(hub: Hub, _: pytest.MonkeyPatch) -> None:
    del hub.commits[COMMIT][WEIGHTS]


def _with_a_needed_pickle(hub: Hub, _: pytest.MonkeyPatch) -> None:
    hub.commits[COMMIT]["non_lora_trainables.bin"] = b"pickle"


def _offline(_: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)


def _unreachable(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def _full(_: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(hub_module.shutil, "disk_usage", lambda _: usage(10**7, 0, 1234))


def _read_only(_: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)


@pytest.mark.parametrize(
    ("fault", "word", "error", "says"),
    [
        (_offline, REPO, HubError, ("no folder here", "not whole in the cache", "HF_HUB_OFFLINE is set; unset it")),
        (_offline, f"{REPO}@{COMMIT}", HubError, (COMMIT, "not whole in the cache", "HF_HUB_OFFLINE")),
        (_unreachable, REPO, HubError, ("could not be fetched", "Connection refused", "check the connection")),
        (None, "owner/typo", HubError, ("no such folder: owner/typo", "no repository owner/typo", "hf auth login")),
        (_private, REPO, HubError, ("no repository", "private", "hf auth login", "HF_TOKEN")),
        (_gated, REPO, HubError, (f"{REPO} is gated", "ask for access", "hf auth login", "HF_TOKEN")),
        (None, f"{REPO}@v9", HubError, ("has no revision v9", "branch, tag or commit")),
        (_without, REPO, CheckpointError, ("no *.safetensors", "pytorch_model.bin", "safe_serialization=True")),
        (_with_a_needed_pickle, REPO, CheckpointError, ("non_lora_trainables.bin", "hf download", "--allow-pickle")),
        (_full, REPO, OutputError, ("needs 7,", "1,234 are free", "HF_HOME")),
        (_read_only, REPO, OutputError, ("cannot be written (Permission denied)", "HF_HOME")),
    ],
)
def test_errors_say_what_to_do(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None] | None, word: str,
    error: type[FastVLMError], says: tuple[str, ...],
) -> None:  # fmt: skip
    if fault:
        fault(hub, monkeypatch)
    with pytest.raises(FastVLMError) as raised:
        load_checkpoint(word)
    assert type(raised.value) is error
    assert [part for part in says if part not in str(raised.value)] == []
    assert "\n" not in str(raised.value)
    assert hub.asked() == []


def test_a_wrong_token_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: hub_server.Handler, *_: Any) -> None:
        self.send_response(401)
        self.send_header("X-Error-Message", "Invalid credentials in Authorization header")
        self.send_header("Content-Length", "0")
        self.end_headers()

    monkeypatch.setattr(hub_server.Handler, "_api", refuse)
    with pytest.raises(HubError, match=rf"refuses access to {REPO} \(.*401.*; log in"):
        fetch(HubId(REPO, None))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("apple/FastVLM-0.5B", HubId("apple/FastVLM-0.5B", None)),
        ("a/b@refs/pr/1", HubId("a/b", "refs/pr/1")),
        ("a/b_c.d@v1.0", HubId("a/b_c.d", "v1.0")),
        *((word, None) for word in (
            "tiny", "./a/b", "../b", "/a/b", "a/b/c", "a/", "/b", "a/b@", "a/b@../x", "a/b@x/../../y", "a/.b", "-a/b",
            "a/b--c", "a/b..c", "a b/c", "a/b?x", "a/b@x y", "~/b", "a\\b/c", "a/b\n", "a/" + "b" * 97, Path("a/b"),
        )),
    ],
)  # fmt: skip
def test_what_is_an_id(word: str | Path, expected: HubId | None) -> None:
    assert hub_id(word) == expected


def test_an_existing_folder_wins(hub: Hub, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner").mkdir()
    (tmp_path / REPO).symlink_to(tiny)
    monkeypatch.chdir(tmp_path)
    assert load_checkpoint(REPO).source.revision is None  # type: ignore[union-attr]
    assert hub.requests == []


def test_what_is_neither_keeps_the_folder_error(hub: Hub) -> None:
    for word in ("./owner/model", "no/such/folder", Path(REPO)):
        with pytest.raises(CheckpointError, match=r"^no such folder: .*name a checkpoint folder, or `tiny`"):
            load_checkpoint(word)
    assert hub.requests == []


def built(model: FastVLM, folder: Path) -> Build:
    """A build's manifest, without the minutes that its packages take."""
    assert model.source is not None
    assert model.tokenizer is not None
    writer = BuildWriter(
        model, make_plan(model.config, (), 64, 32, "encoder"), folder, model.source, model.tokenizer, SILENT
    )
    text = write_text_files(folder, model.tokenizer, writer.prompts)
    write_licences(folder, model.source, model.config.licence, SILENT)
    write_manifest(folder / "manifest.json", writer.manifest() | text)
    return read_build(folder)


@pytest.fixture
def build(hub: Hub, tmp_path: Path) -> Build:
    (tmp_path / "build").mkdir()
    return built(load_checkpoint(f"{REPO}@main"), tmp_path / "build")


def test_the_manifest_pins_the_commit(build: Build) -> None:
    source = build.manifest["source"]
    assert (source["id"], source["revision"]) == (REPO, COMMIT)
    assert WEIGHTS in source["files"]
    assert (build.folder / "licence" / "LICENSE").read_bytes() == LICENCE
    assert str(build.folder.parent) not in json.dumps(build.manifest)


def loaded(build, reference, progress, options):
    """The reference of a validation, found and read as `validate` does."""
    source = original.open_reference(build, reference, progress, options, other=False)
    return original.load_reference(build, source, progress, other=False, stream=False)


def test_validate_reads_the_commit_that_the_build_was_made_from(
    hub: Hub, build: Build, heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commits[LATER], hub.branches["main"] = {**hub.commits[COMMIT], WEIGHTS: b"other weights"}, LATER
    model, *_ = loaded(build, REPO, heard, {})
    assert model.source is not None
    assert model.source.revision == COMMIT
    assert f"{REPO} is read at commit {COMMIT}, which this build was made from" in heard.notes
    offline(monkeypatch)
    loaded(build, REPO, heard, {})


def test_validate_refuses_other_weights_before_it_fetches_them(hub: Hub, build: Build, heard: Any) -> None:
    hub.commits[LATER], hub.branches["new"] = {**hub.commits[COMMIT], WEIGHTS: b"other weights"}, LATER
    hub.requests.clear()
    with pytest.raises(UsageError, match=rf"{REPO}@new is not what this build was made from \({WEIGHTS} differ\)"):
        loaded(build, f"{REPO}@new", heard, {})
    assert hub.asked() == []


def test_validate_accepts_a_folder_with_the_same_files(build: Build, hub: Hub, heard: Any) -> None:
    loaded(build, fetch(HubId(REPO, COMMIT)), heard, {})


def test_the_base_of_an_adapter(hub: Hub, tmp_path: Path, tiny: Path, heard: Any) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    query = load_checkpoint("tiny").get_parameter("decoder.layers.0.self_attn.q_proj.weight")
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {"lora_A": torch.ones(2, query.shape[1]), "lora_B": torch.ones(query.shape[0], 2)}
    save_file(
        {f"{module}.{name}.weight": value for name, value in factors.items()}, adapter / "adapter_model.safetensors"
    )
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    model = load_checkpoint(adapter, base=REPO)
    changed = model.get_parameter("decoder.layers.0.self_attn.q_proj.weight")
    torch.testing.assert_close(changed, query + 2)
    (tmp_path / "build").mkdir()
    build = built(model, tmp_path / "build")
    recorded = build.manifest["source"]["base"]
    assert (recorded["id"], recorded["revision"]) == (REPO, COMMIT)
    hub.branches["main"] = "nowhere"
    loaded(build, adapter, heard, {"base": REPO})


SCRIPT = f"""
import sys
from fastvlm_ref import load_checkpoint
load_checkpoint("tiny", stream=True)
assert "huggingface_hub" not in sys.modules, "imported although no id was given"
print(load_checkpoint("{REPO}", stream=True).source.folder)
"""


def test_the_variables_of_huggingface_hub_hold(hub: Hub, root: Path, tmp_path: Path) -> None:
    own = {name: value for name, value in os.environ.items() if not name.upper().endswith(("PROXY", "HF_HUB_OFFLINE"))}
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "mine"), "HF_TOKEN": "hf_mine"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=root, env=own | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "mine" / "hub"))
    assert {request.authorization for request in hub.requests if REPO in request.path} == {"Bearer hf_mine"}
    assert "%|" not in done.stderr, "huggingface_hub draws bars of its own"
