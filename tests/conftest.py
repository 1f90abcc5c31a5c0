"""What all tests share: where data lies, one exported build, no network, and the same random numbers every time."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from made_once import made_once

from fastvlm.progress import Advance, Progress

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The same examples in every run, and no time limit per example: other work on the machine must not fail a test.
hypothesis.settings.register_profile("project", derandomize=True, deadline=None, database=None, max_examples=50)
hypothesis.settings.load_profile("project")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def data() -> Path:
    """Goldens and small inputs that are committed with the tests."""
    return ROOT / "tests" / "data"


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The embedded checkpoint, a LLaVA folder; never written to (copy it)."""
    return ROOT / "fastvlm_ref" / "tiny"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data that lies beside some checkouts; tests that need it are skipped elsewhere."""
    folder = ROOT.parent / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip("no reference data beside this checkout")
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run of the tests, shared by all its processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "run"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def conversions(run_folder: Path) -> Iterator[None]:
    """Each graph goes through coremltools once in a run (`conversions.py`)."""
    from conversions import remembering

    from export import convert

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "convert", remembering(convert.convert, run_folder / "conversions"))
        yield


@pytest.fixture(autouse=True)
def _conversions(request: pytest.FixtureRequest) -> None:
    """For every test that can convert; one of the hall does not import torch for that."""
    if "export.convert" in sys.modules:
        request.getfixturevalue("conversions")


@pytest.fixture(scope="session")
def exported_tiny(conversions: None, run_folder: Path) -> Path:
    """The embedded checkpoint, exported once for all tests; never written to (use `tiny_build`)."""
    from export import export

    return made_once(run_folder / "exported" / "tiny", lambda place: export("tiny", place))


@pytest.fixture(scope="session")
def exported_app(conversions: None, run_folder: Path) -> Path:
    """The embedded checkpoint's encoder for Apple's sample app, exported once; never written to (use `app_build`)."""
    from export import export

    return made_once(run_folder / "exported" / "app", lambda place: export("tiny", place, purpose="apple-app"))


@pytest.fixture
def app_build(exported_app: Path, tmp_path: Path) -> Path:
    """The encoder for Apple's sample app, which this test may damage."""
    return Path(shutil.copytree(exported_app, tmp_path / "app"))


@pytest.fixture
def tiny_build(exported_tiny: Path, tmp_path: Path) -> Path:
    """A build of the embedded checkpoint that this test may damage."""
    return Path(shutil.copytree(exported_tiny, tmp_path / "build"))


@pytest.fixture(scope="session")
def validated_tiny(exported_tiny: Path, run_folder: Path) -> Path:
    """A build of the embedded checkpoint with a passed verdict and its self-test, made once; copy it to change it."""
    from validation import validate

    def make(place: Path) -> None:
        shutil.copytree(exported_tiny, place)
        assert validate(place, steps=16).passed

    return made_once(run_folder / "validated" / "tiny", make)


@pytest.fixture(scope="session")
def tiny_bundle(validated_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The iOS bundle of `validated_tiny`; copy it to change it."""
    from ios_bundle import bundle

    return bundle(validated_tiny, tmp_path_factory.mktemp("bundled") / "tiny-256")


class Heard(Progress):
    """Keeps what it is told: per stage the announced total and the sum of what was advanced; the notes."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int | None]] = {}
        self.notes: list[str] = []

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        done = self.stages[name] = [total, 0]

        def advance(count: int) -> None:
            done[1] = (done[1] or 0) + count

        yield advance

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def heard() -> Heard:
    """A listener to pass as `progress`."""
    return Heard()


@pytest.fixture(autouse=True)
def _same_torch() -> Iterator[None]:
    """Seeds torch and gives it its threads back where a test uses it; one of the hall does not import it for that.

    What is left at two threads makes all tests behind it wait for threads that wait for each other.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="module")
def _collected() -> None:
    """Takes what there is before a file from the garbage collector: coremltools has it go through all objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where fixtures of a whole session find no scan of anything, nor write into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTVLM_CACHE", str(tmp_path_factory.mktemp("shared-cache")))
        yield


@pytest.fixture(scope="session")
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A new folder each time; pytest's own way looks through all folders that there are for the next number."""
    parent = tmp_path_factory.mktemp("caches")
    return (parent / str(number) for number in count())


@pytest.fixture(autouse=True)
def cache(_caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """This test's own cache folder, empty; its commands and programs use it too."""
    folder = next(_caches)
    folder.mkdir()
    monkeypatch.setenv("FASTVLM_CACHE", str(folder))
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One torch thread: convolutions give other bytes on two."""
    from fastvlm_ref import threads

    with threads.one_thread():
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """A test that reaches for the network fails at once instead of waiting, or passing by luck."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield
