"""`fastvlm export tiny` twice, with everything else different: the same bytes.

Working and temporary folder, umask, time zone, locale, hash seed, threads, clock, random ids, name and home of the user
and, where the tests may change it, the user itself differ all at once; what each run saw is written down by itself when
it ends, so that a condition that was not in force is a failure of its own. Modes of files follow the umask.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import coremltools
import pytest

from fastvlm.hashes import hash_tree

# Run by Python itself before anything else: another clock, other random ids, and at the end a record of what differs.
CUSTOMISED = """
import atexit, datetime, json, os, random, sys, time, uuid

SHIFT = float(os.environ["SHIFT"])
_time, _time_ns, _localtime, _gmtime, _strftime = time.time, time.time_ns, time.localtime, time.gmtime, time.strftime
time.time = lambda: _time() + SHIFT
time.time_ns = lambda: _time_ns() + int(SHIFT * 1e9)
time.localtime = lambda seconds=None: _localtime(time.time() if seconds is None else seconds)
time.gmtime = lambda seconds=None: _gmtime(time.time() if seconds is None else seconds)
time.strftime = lambda form, when=None: _strftime(form, when or time.localtime())

class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls):
        return cls.fromtimestamp(time.time(), datetime.timezone.utc).replace(tzinfo=None)

datetime.datetime = Shifted
_ids = random.Random(SHIFT)
uuid.uuid4 = uuid.uuid1 = lambda *_: uuid.UUID(int=_ids.getrandbits(128), version=4)

def record():
    import getpass, locale, tempfile, torch
    os.umask(umask := os.umask(0))
    seen = {
        "time": round(time.time() / 1e6), "datetime": datetime.datetime.now().year, "uuid4": str(uuid.uuid4()),
        "uuid1": str(uuid.uuid1()), "zone": time.strftime("%z"), "folder": os.getcwd(),
        "temporary": tempfile.gettempdir(), "umask": umask, "locale": locale.setlocale(locale.LC_CTYPE),
        "encoding": locale.getpreferredencoding(False),
        "utf8 mode": sys.flags.utf8_mode, "hash": hash("text"), "threads": torch.get_num_threads(),
        "user": getpass.getuser(), "home": os.path.expanduser("~"), "uid": os.getuid(),
        "coremltools": "coremltools" in sys.modules,
    }
    with open(os.environ["SEEN"], "w") as file:
        json.dump(seen, file)

atexit.register(record)
"""
COMMAND = "from fastvlm.cli import main; main()"
SAME = {"coremltools"}  # of what is recorded
OTHER_USER = 65_534
UTF_8 = "C.UTF-8" if sys.platform == "linux" else "en_US.UTF-8"


@dataclass(frozen=True)
class Conditions:
    """What a run finds around it."""

    name: str
    umask: int
    shift: int  # seconds
    variables: dict[str, str] = field(default_factory=dict)


RUNS = (
    Conditions(
        "first", 0o022, -900_000_000,
        {"TZ": "UTC", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1", "USER": "ann"},
    ),
    Conditions(
        "second", 0o077, 900_000_000,
        {"TZ": "XYZ-5:45", "LC_ALL": UTF_8, "PYTHONUTF8": "1", "PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "2",
         "USER": "bob"},
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that other users can enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="fastvlm-same-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def another_user(place: Path) -> int | None:
    """Returns the id of a user as whom an export can run, None where the tests may not change theirs."""
    needed = [place, Path(sys.executable), Path(json.__file__), Path(coremltools.__file__), Path(__file__)]
    parents = {parent for path in needed for parent in (*path.parents, *path.resolve().parents)}
    free = all(parent.stat().st_mode & 0o001 for parent in parents)
    return OTHER_USER if os.getuid() == 0 and free else None


def start(run: Conditions, place: Path, root: Path, user: int | None) -> subprocess.Popen[str]:
    """Starts an export in folders of its own below `place`; its build becomes `place`/NAME/build."""
    own = place / run.name
    for folder in (own, own / "home", own / "temporary", own / "sites"):
        folder.mkdir()
        if user is not None:
            os.chown(folder, user, user)
    (own / "sites" / "sitecustomize.py").write_text(CUSTOMISED)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "FASTVLM_"))}
    environment = inherited | run.variables | {
        "PYTHONPATH": os.pathsep.join([str(own / "sites"), str(root)]), "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(own / "temporary"), "HOME": str(own / "home"), "LOGNAME": run.variables["USER"],
        "SHIFT": str(run.shift), "SEEN": str(own / "seen.json"),
    }  # fmt: skip
    command = [sys.executable, "-P", "-c", COMMAND, "export", "tiny", "-o", "build"]
    sizes = ["--image-size", "256", "--image-size", "64"]
    return subprocess.Popen(
        [*command, *sizes], cwd=own, env=environment, umask=run.umask, user=user, group=user,
        extra_groups=None if user is None else [], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def seen(place: Path, root: Path) -> list[dict[str, object]]:
    """What the two runs saw, after both have made their build."""
    users = (None, another_user(place))
    started = [start(run, place, root, user) for run, user in zip(RUNS, users, strict=True)]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    return [json.loads((place / run.name / "seen.json").read_text()) for run in RUNS]


def test_every_condition_was_in_force(seen: list[dict[str, object]], place: Path) -> None:
    same = {name for name in seen[0] if seen[0][name] == seen[1][name]}
    assert same == SAME | (set() if another_user(place) else {"uid"})
    assert seen[0]["coremltools"] is True
    assert str(seen[1]["encoding"]).lower() == "utf-8"
    modes = [(place / run.name / "build" / "manifest.json").stat().st_mode & 0o777 for run in RUNS]
    assert modes == [0o644, 0o600], "the umask is the user's"


def test_both_runs_made_the_same_bytes(seen: list[dict[str, object]], place: Path) -> None:
    first, second = (hash_tree(place / run.name / "build") for run in RUNS)
    assert {name for name in first | second if first.get(name) != second.get(name)} == set()
    assert {"manifest.json", "embeddings.bin", "prompts.json", "tokenizer/tokenizer.json"} <= first.keys()


def test_one_other_byte_would_be_found(seen: list[dict[str, object]], place: Path) -> None:
    """And another name, so that the comparison above cannot pass by looking at nothing."""
    first = hash_tree(place / "first" / "build")
    copy = Path(shutil.copytree(place / "first" / "build", place / "copy"))
    with (copy / "VisionEncoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin").open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    (copy / "prompts.json").rename(copy / "prompt.json")
    second = hash_tree(copy)
    assert sorted(name.rpartition("/")[2] for name in first | second if first.get(name) != second.get(name)) == [
        "prompt.json", "prompts.json", "weight.bin",
    ]  # fmt: skip
