"""A process that dies at any moment: nothing, the old whole build or the new one is there, and the next run is clean.

The moments are every step that publishing takes, in each of SITUATIONS, and random lines between them; a power cut is
a death after which files are empty that were never synced. A real export dies too, in the long form.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from ordeal import LONG, Case, in_lines, size, tally, try_all
from stand_in import (
    Steps,
    beside,
    failed,
    killed,
    killed_at_line,
    lines_of,
    quick_disk,
    restored,
    stand_in,
    whole,
    without_exchange,
    without_locks,
)

from fastvlm import steps
from fastvlm.errors import OutputError
from fastvlm.publish import remove_folder, replace_file

ROW = "kill −9"


class Situation(NamedTuple):
    """What a run finds: an older build, an interrupted run's parts, locks, an exchange in one step; how it dies."""

    old: bool = False
    parts: bool = False
    locks: bool = True
    exchange: bool = True
    power: bool = False

    def __str__(self) -> str:
        return " ".join(f"{name}={value:d}" for name, value in self._asdict().items())


SITUATIONS = (
    Situation(),
    Situation(old=True),
    Situation(old=True, parts=True),
    Situation(old=True, power=True),
    Situation(old=True, parts=True, locks=False),
    Situation(old=True, locks=False, exchange=False),
    Situation(old=True, locks=False, exchange=False, power=True),
)
Dies = Callable[[Callable[[], object], Path], bool]


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for each situation, which every case copies, and `tries` for the copies."""
    with quick_disk(tmp_path_factory.mktemp("prepared")) as top:
        (top / "tries").mkdir()
        for situation in SITUATIONS:
            folder = top / str(situation)
            folder.mkdir()
            if situation.old:
                stand_in(folder / "build", "old")
            if situation.parts:
                with pytest.raises(KeyboardInterrupt):
                    stand_in(folder / "build", "new", stop=interrupt)
        yield top


@pytest.fixture(autouse=True)
def _undone() -> Iterator[None]:
    with restored():
        yield


def set_up(situation: Situation) -> None:
    """Makes this process as a situation says."""
    if not situation.locks:
        without_locks()
    if not situation.exchange:
        without_exchange()


def steps_of(prepared: Path, situation: Situation) -> int:
    """How many steps a run takes there."""
    with restored():
        set_up(situation)
        steps.before = watch = Steps()
        folder = shutil.copytree(prepared / str(situation), prepared / "tries" / "counted")
        stand_in(folder / "build", "new")
        shutil.rmtree(folder)
    return watch.seen


def dies(prepared: Path, situation: Situation, name: str, kill: Dies) -> None:
    """One try: a copy of the situation, a run that dies, what is left, the next run, and that nothing is left of it."""
    with restored():
        set_up(situation)
        folder = Path(shutil.copytree(prepared / str(situation), prepared / "tries" / name))
        assert kill(partial(stand_in, folder / "build", "new"), folder)
        found = whole(folder / "build") if (folder / "build").exists() else None
        if situation.old and situation.exchange:
            assert found is not None, "the name leads nowhere"
        assert found in ("old", "new", None) if situation.old else (None, "new")
        with suppress(OutputError):  # there is a build
            stand_in(folder / "build", "other", overwrite=False)
        assert whole(folder / "build") in (("old", "new") if situation.old else ("new", "other"))
        stand_in(folder / "build", "newer")
        assert whole(folder / "build") == "newer"
        assert beside(folder) == ["build"]
        shutil.rmtree(folder)


def at_step(number: int, power: bool) -> Dies:
    return lambda work, folder: killed(work, number, power=folder if power else None)


def at_line(number: int) -> Dies:
    return lambda work, _: killed_at_line(work, number)


def step_cases(prepared: Path, situations: tuple[Situation, ...] = SITUATIONS, every: int = 1) -> list[Case]:
    """A case for every step, or for each of `every` one, of every situation."""
    return [
        (f"{situation} step {number}", partial(dies, prepared, situation, f"{situation} {number}", how))
        for situation in situations
        for number in range(1, steps_of(prepared, situation) + 1, every)
        for how in (at_step(number, situation.power),)
    ]


def line_cases(prepared: Path, count: int) -> list[Case]:
    """Random moments in the situations without a power cut."""
    known = [situation for situation in SITUATIONS if not situation.power]
    lines = {}
    for situation in known:
        with restored():
            set_up(situation)
            folder = shutil.copytree(prepared / str(situation), prepared / "tries" / "counted")
            lines[situation] = lines_of(partial(stand_in, folder / "build", "new"))
            shutil.rmtree(folder)
    cases: list[Case] = []
    for index in range(count):
        random_number = random.Random(f"{ROW} {index}")
        situation = random_number.choice(known)
        moment = random_number.randrange(1, lines[situation] * 9 // 10)  # a few lines fewer are executed now and then
        name = f"{index} {situation} line {moment}"
        cases.append((name, partial(dies, prepared, situation, name, at_line(moment))))
    return cases


def file_cases(folder: Path) -> list[Case]:
    """Every step of what replaces a file, and of what removes a folder."""

    def replaces(number: int) -> bool:
        place = folder / f"file {number}"
        place.mkdir()
        replace_file(place / "rows.json", b"old")
        died = killed(lambda: replace_file(place / "rows.json", b"newer"), number, power=place)
        assert (place / "rows.json").read_bytes() in (b"old", b"newer")
        replace_file(place / "rows.json", b"newest")
        assert (place / "rows.json").read_bytes() == b"newest"
        assert beside(place) == ["rows.json"]
        return died

    def removes(number: int) -> bool:
        place = folder / f"folder {number}"
        stand_in(place / "build", "old")
        died = killed(lambda: remove_folder(place / "build"), number)
        assert not (place / "build").exists() or whole(place / "build") == "old"
        stand_in(place / "build", "new")
        assert beside(place) == ["build"]
        return died

    def all_of(one: Callable[[int], bool]) -> None:
        assert sum(one(number) for number in range(1, 8)) >= 2

    return [("replaces a file", partial(all_of, replaces)), ("removes a folder", partial(all_of, removes))]


def real_cases(folder: Path) -> list[Case]:
    """A real export, of ONNX files, dies in the middle, and one takes its place."""

    import export.onnx.build
    from export import export
    from fastvlm.manifest import check_files, read_manifest

    def real() -> None:
        work = partial(export, "tiny", folder / "real", only="encoder", image_sizes=[64], format="onnx", overwrite=True)
        assert killed(work, random.Random(ROW).randrange(8, 20))
        assert not (folder / "real").exists()
        work()
        check_files(folder / "real", read_manifest(folder / "real"))
        assert beside(folder) == ["real"]

    return [("a real export", real)]


def test_nothing_is_lost_whenever_a_process_dies(prepared: Path) -> None:
    for name in ("files", "real"):
        (prepared / name).mkdir()
    cases = [
        *step_cases(prepared),
        *line_cases(prepared, size(50, 550)),
        *file_cases(prepared / "files"),
        *(real_cases(prepared / "real") if LONG else ()),
    ]
    outcomes = try_all(cases)
    tally(ROW, outcomes, random_moments=size(50, 550))
    assert not failed(outcomes), in_lines(failed(outcomes))
    assert len(cases) > 300


def removed_then_renamed(stage: Path, place: Path, _: object) -> None:
    """What publishing must not be: the old build goes, then the new one comes."""
    steps.remove(place)
    steps.rename(stage, place)


BROKEN: dict[str, tuple[str, object, Situation]] = {
    "no swap": ("fastvlm.publish.swap", removed_then_renamed, Situation(old=True)),
    "no cleaning": ("fastvlm.publish._remove_left", lambda *_: None, Situation(old=True)),
    "no fsync": ("fastvlm.steps.sync_tree", lambda _: None, Situation(old=True, power=True)),
    "not put back": ("fastvlm.publish._put_back", lambda _: None, Situation(old=True, locks=False, exchange=False)),
    "written in place": ("fastvlm.publish.hidden", lambda place, _: place, Situation()),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_the_suite_sees_what_is_broken(prepared: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    name, instead, situation = BROKEN[broken]
    cases = step_cases(prepared, (situation,))
    monkeypatch.setattr(name, instead)
    assert failed(try_all(cases))


def test_every_step_is_one_of_those_that_are_told(prepared: Path) -> None:
    """And the last of them brings the new name to the disk, before the older build goes."""
    folder = Path(shutil.copytree(prepared / str(Situation(old=True)), prepared / "tries" / "told"))
    with restored():
        steps.before = watch = Steps()
        stand_in(folder / "build", "new")
    names = [name for name, _ in watch.names]
    assert set(names) == set(steps.STEPS)
    (swapped,) = (index for index, name in enumerate(names) if name == "exchange")
    assert watch.names[swapped + 1] == ("sync", folder)
    assert names[swapped + 2 :] == ["remove"]
    assert os.listdir(folder) == ["build"]
