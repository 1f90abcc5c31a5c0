"""A Hub id as a checkpoint: `owner/name` or `owner/name@revision`, fetched into the Hub's own cache.

Notable choices:
- an existing folder wins, and a `Path` is always a folder: only text that names nothing here can be an id;
- huggingface_hub does everything that touches the network (HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are its
  own); it is imported when an id is given, never before;
- files are chosen from the repository's list by `_is_wanted`, an allow-list: weights as safetensors, JSON, tokenizer,
  licences and README, all at the top. A pickle, a program or a picture is never asked for;
- a branch is resolved to a commit first, and everything after speaks of that commit alone: a push in between cannot mix
  two. The cache's path holds id and commit, from which `source.py` names the source;
- what is whole in the cache is used without asking the Hub for anything but the branch's commit, and without even that
  for a commit hash. Whole means: every wanted file of the list that was kept beside it;
- where the connection breaks, huggingface_hub goes on with a range request; where it gives up, finished files stay and
  the next call fetches the others.

It does not know what a checkpoint is: `folder.py` judges what was fetched.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from json import JSONDecodeError
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from fastvlm import __version__
from fastvlm.errors import CheckpointError, HubError, MissingDependency, OutputError
from fastvlm.progress import SILENT, Advance, Progress, ignore
from fastvlm.quoting import first_line
from fastvlm_ref.checkpoint.lora import OTHERS
from fastvlm_ref.checkpoint.source import TEXT_FILES, is_licence

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# The Hub's own rule for names: letters, digits and . _ -, neither at an end, no two of . or - beside each other.
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_ID = re.compile(rf"({_PART}/{_PART})(?:@([A-Za-z0-9_][A-Za-z0-9_./+-]{{0,199}}))?")
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
_LICENCE_ENDINGS = ("", ".txt", ".md", ".rst")
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may read it"


Accept = Callable[[Mapping[str, int]], None]


@dataclass(frozen=True)
class HubId:
    """A repository of the Hub and the revision that was asked for: a branch, a tag, a commit, or None for `main`."""

    repo: str
    revision: str | None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def hub_id(word: str | Path) -> HubId | None:
    """Returns the id that `word` means, or None where it is a Path, names something here, or cannot be an id."""
    found = _ID.fullmatch(word) if isinstance(word, str) else None
    if found is None or re.search(r"--|\.\.", str(word)) or os.path.exists(word):
        return None
    return HubId(found[1], found[2])


def on_disk(word: str | Path, progress: Progress = SILENT, accept: Accept | None = None) -> str | Path:
    """Returns what stands for a CHECKPOINT on this machine: a Hub id's folder in the cache, anything else unchanged.

    Raises as `fetch` does.
    """
    asked = hub_id(word)
    return word if asked is None else fetch(asked, progress, accept)


def fetch(asked: HubId, progress: Progress = SILENT, accept: Accept | None = None) -> Path:
    """Returns the folder of one commit in the Hub's cache, after fetching what is missing there.

    `accept` is given {file name: bytes} before anything is fetched, and may raise.
    Raises HubError (no such repository, revision or permission, no connection, an interrupted download),
    CheckpointError where the repository holds no safetensors, OutputError where the disk is too full.
    """
    api = _api()
    with _named_errors(asked):
        commit = api.resolve_revision(asked.repo, revision=asked.revision).resolved
        folder = _cached(asked, commit)
        if folder is None:
            return _download(api, asked, commit, progress, accept)
    if asked.revision != commit:
        progress.note(f"{asked} is commit {commit}, whole in the cache")
    return folder


def cached_file(asked: HubId, name: str) -> Path | None:
    """Returns where one file of an id lies in the Hub's cache, None where it does not; the network is not asked."""
    _api()
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(asked.repo, name, revision=asked.revision)
    return Path(found) if isinstance(found, str) else None


def _api() -> HfApi:
    try:
        from huggingface_hub import HfApi
    except ImportError as problem:
        raise MissingDependency(
            f"a Hub id needs huggingface_hub ({problem}); pip install -c constraints.txt huggingface_hub"
        ) from problem
    return HfApi(library_name="fastvlm-coreml", library_version=__version__)


def _sizes(api: HfApi, asked: HubId, commit: str) -> dict[str, int]:
    info = api.model_info(asked.repo, revision=commit, files_metadata=True)
    listed = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    return {name: listed[name] for name in _chosen(asked, listed)}


def _is_wanted(name: str) -> bool:
    if "/" in name:
        return False
    if is_licence(name):
        return Path(name).suffix.lower() in _LICENCE_ENDINGS
    return name in TEXT_FILES or name.endswith((".safetensors", ".json"))


def _chosen(asked: HubId, listed: Iterable[str]) -> list[str]:
    """Returns the names to fetch of a repository's; raises CheckpointError where they cannot make a checkpoint."""
    every = set(listed)
    chosen = sorted(filter(_is_wanted, every))
    if not any(name.endswith(".safetensors") for name in chosen):
        other = sorted(
            name for name in every if name.endswith((".bin", ".pt", ".pth", ".gguf", ".onnx", ".safetensors"))
        )
        found = f"found {', '.join(other[:5])}" if other else f"found {len(every)} other files"
        raise CheckpointError(
            f"{asked} holds no *.safetensors at its top ({found}); pickles are not fetched: name a repository that was "
            "saved with safe_serialization=True"
        )
    if OTHERS[1] in every and OTHERS[0] not in every:  # leaving it out would silently give another model
        raise CheckpointError(
            f"{asked} keeps part of its weights in {OTHERS[1]}, a pickle, which is not fetched; if you trust it, fetch "
            f"the repository with `hf download {asked.repo} --local-dir DIR` and give DIR with --allow-pickle"
        )
    return chosen


def _cached(asked: HubId, commit: str) -> Path | None:
    """Returns the commit's folder where every wanted file of it is there, without touching the network."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    try:
        listed = [file.path for file in get_cached_repo_tree(asked.repo, revision=commit)]
        patterns = [escape(name) for name in _chosen(asked, listed)]
        return Path(snapshot_download(asked.repo, revision=commit, allow_patterns=patterns, local_files_only=True))
    except (CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
        return None


def _download(api: HfApi, asked: HubId, commit: str, progress: Progress, accept: Accept | None) -> Path:
    from huggingface_hub import snapshot_download

    wanted = _sizes(api, asked, commit)
    if accept is not None:
        accept(wanted)
    options: dict[str, Any] = {"revision": commit, "allow_patterns": [escape(name) for name in wanted]}
    plan = snapshot_download(asked.repo, **options, dry_run=True, tqdm_class=_bars(ignore, threading.Event()))
    missing = sum(wanted.get(file.filename, 0) for file in plan if file.will_download)
    _check_room(asked, commit, wanted, missing, progress)
    with progress.stage(f"Fetching {asked}", missing) as advance, _interrupts() as interrupted:
        return Path(snapshot_download(asked.repo, **options, tqdm_class=_bars(advance, interrupted)))


def _check_room(asked: HubId, commit: str, wanted: dict[str, int], missing: int, progress: Progress) -> None:
    """Says how much there is and how much will be fetched; raises OutputError where it does not fit."""
    cache = _cache()
    free = shutil.disk_usage(next(place for place in (cache, *cache.parents) if place.exists())).free
    progress.note(
        f"{asked} is commit {commit}: {_size(sum(wanted.values()))} in {len(wanted)} files, {_size(missing)} to fetch "
        f"into {cache} ({_size(free)} free)"
    )
    if missing > free:
        raise OutputError(
            f"{asked} needs {missing:,} bytes in {cache}, and {free:,} are free; make room, or set HF_HOME to a folder "
            "on another disk"
        )


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().absolute()


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Yields an event that is set when the user interrupts: huggingface_hub's threads hear of no Ctrl-C.

    It waits for them, which for a file of gigabytes takes minutes in which nothing seems to happen.
    """
    interrupted = threading.Event()
    handlers: dict[int, Any] = {}

    def hear(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        handlers[number](number, frame)

    if threading.current_thread() is threading.main_thread():  # the only one that may change handlers
        found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        handlers |= {number: handler for number, handler in found.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, hear)
    try:
        yield interrupted
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _bars(advance: Advance, interrupted: threading.Event) -> type[Any]:
    """Returns a class of bars that draw nothing: they tell `advance` how many bytes came, and end interrupted threads.

    huggingface_hub counts bytes on two bars, received and written, and files on a third: the fuller of the two counts.
    """
    from huggingface_hub.utils.tqdm import tqdm

    bytes_of: dict[int, int] = {}
    told, lock = 0, threading.Lock()

    class Bar(tqdm):  # type: ignore[misc, unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **(kwargs | {"disable": True}))  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            """Tells of `n` bytes more, and raises KeyboardInterrupt in a thread that was asked to stop."""
            nonlocal told
            if interrupted.is_set():
                raise KeyboardInterrupt
            if self._counts_bytes:
                with lock:
                    bytes_of[id(self)] = bytes_of.get(id(self), 0) + int(n or 0)
                    more, told = max(0, max(bytes_of.values()) - told), max(told, *bytes_of.values())
                advance(more)

    return Bar


@contextmanager
def _named_errors(asked: HubId) -> Iterator[None]:
    """Turns whatever huggingface_hub raises into one HubError that says what to do."""
    from huggingface_hub import errors

    # The HTTP library's own base: which library that is differs between versions of huggingface_hub.
    http_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    # JSONDecodeError: the page of a network that wants a login. RuntimeError: hf_xet's failures.
    expected = (OSError, http_error, errors.RevisionResolutionError, JSONDecodeError, RuntimeError)
    try:
        yield
    except expected as problem:
        if isinstance(problem, OSError) and problem.errno in _LOCAL:
            raise OutputError(
                f"the cache {_cache()} cannot be written ({problem.strerror}); make room there, or set HF_HOME to a "
                "folder of yours"
            ) from problem
        raise HubError(_explained(asked, problem)) from problem


def _explained(asked: HubId, problem: BaseException) -> str:
    """Returns the one line for an error of huggingface_hub, which may be wrapped in another one of its."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{asked.repo}"
    chain = [problem]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)

    def has(kind: type[BaseException]) -> bool:
        return any(isinstance(error, kind) for error in chain)

    if has(errors.OfflineModeIsEnabled):
        return (
            f"{asked} is no folder here and not whole in the cache {_cache()}, and HF_HUB_OFFLINE is set; unset it to "
            "fetch the rest, or name a checkpoint folder"
        )
    if has(errors.GatedRepoError):
        return f"{asked.repo} is gated: ask for access on {page}, then {_LOG_IN}"
    if has(errors.RepositoryNotFoundError):
        return (
            f"no such folder: {asked}, and {constants.ENDPOINT} shows no repository {asked.repo}; check the spelling, "
            f"or, where it is private, {_LOG_IN}"
        )
    if has(errors.RevisionNotFoundError):
        return f"{asked.repo} has no revision {asked.revision}; name a branch, tag or commit of {page}/commits"
    refused = next((error for error in chain if isinstance(error, errors.HfHubHTTPError)), None)
    if refused is not None and refused.response.status_code in (401, 403):
        return f"{constants.ENDPOINT} refuses access to {asked.repo} ({first_line(refused)}); {_LOG_IN}"
    return (
        f"{asked} could not be fetched from {constants.ENDPOINT} ({first_line(chain[-1])}); check the connection and "
        "type the same command again: files that are complete are kept"
    )
