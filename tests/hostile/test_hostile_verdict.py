"""A process that dies between a new self-test and its verdict: the old pair, the new one, or nobody says passed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest
from ordeal import Case, in_lines, try_all
from stand_in import Steps, failed, killed, quick_disk, restored, without_exchange, without_locks

from fastvlm import steps
from fastvlm.build import read_build
from fastvlm.commands.inspect import _verdict
from fastvlm.commands.options import after_running
from fastvlm.errors import BuildError, OutputError
from fastvlm.manifest import SELFTEST, dump, find_changes, read_manifest
from fastvlm.verdict_file import FILE, selftest_hashes
from ios_bundle.standing import standing_of
from validation import judging, validate
from validation.selftest import SelfTest
from validation.verdict import Verdict

Pair = tuple[bytes, dict[str, str]]


class Prepared(NamedTuple):
    """A build with a passed verdict, what is published anew, and where copies lie."""

    build: Path
    verdict: Verdict
    test: SelfTest
    tries: Path


@pytest.fixture(scope="module")
def prepared(validated_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    tests: list[SelfTest] = []
    worked_out = judging._example

    def kept(comparison: judging.Comparison) -> SelfTest:
        tests.append(worked_out(comparison))
        return tests[0]

    with quick_disk(tmp_path_factory.mktemp("verdicts")) as top, pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "_example", kept)
        patch.setattr(judging, "lower_rungs", lambda *_: [])
        patch.setattr(judging, "block_rung", lambda *_: (judging.NOT_COMPARED, []))
        patch.setattr(judging, "excused", lambda pair, *_: set(pair.limits))
        build = Path(shutil.copytree(validated_tiny, top / "build"))
        verdict = validate(build, steps=2)
        (test,) = tests
        shutil.copy(validated_tiny / FILE, build / FILE)
        shutil.rmtree(build / SELFTEST)
        shutil.copytree(validated_tiny / SELFTEST, build / SELFTEST)
        yield Prepared(build, verdict, test, top)


def pair_of(build: Path) -> Pair:
    return (build / FILE).read_bytes(), selftest_hashes(build)


def publish(prepared: Prepared, build: Path) -> None:
    """What `validate` does at its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "_example", lambda _: prepared.test)
        judging._publish(replace(prepared.verdict, path=build / FILE), build, None)  # type: ignore[arg-type]


def called_passed(build: Path) -> list[str]:
    """Who calls the build passed."""
    said = {
        "inspect": _verdict(build, read_manifest(build)).startswith("passed"),
        "bundle": standing_of(read_build(build)).validated,
        "next step": "fastvlm bundle" in after_running(str(build)),
    }
    return [name for name, passed in said.items() if passed]


def set_up(exchange: bool) -> None:
    if not exchange:
        without_exchange()
        without_locks()


def copied(prepared: Prepared, name: str) -> Path:
    return Path(shutil.copytree(prepared.build, prepared.tries / name))


def taken(prepared: Prepared, exchange: bool) -> tuple[Steps, Pair]:
    """The steps of a publishing that nothing disturbs, and the pair that it leaves."""
    with restored():
        set_up(exchange)
        steps.before = watch = Steps()
        build = copied(prepared, f"counted {exchange}")
        publish(prepared, build)
        found = pair_of(build)
        shutil.rmtree(build)
    return watch, found


def stops(prepared: Prepared, number: int, exchange: bool, new: Pair, stop: Callable[[Path], object]) -> None:
    """One try: who reads the build then, and the next run."""
    with restored():
        set_up(exchange)
        build = copied(prepared, f"{number} {exchange} {stop.__name__}")
        stop(build)
        steps.before = lambda *_: None
        if names := called_passed(build):
            assert pair_of(build) in (pair_of(prepared.build), new), f"{names} call a mixture passed"
            assert len(names) == 3, names
        assert find_changes(build, read_manifest(build)) == []
        publish(prepared, build)
        assert pair_of(build) == new
        assert sorted(os.listdir(build)) == sorted(os.listdir(prepared.build))
        shutil.rmtree(build)


def cases(prepared: Prepared, exchanges: tuple[bool, ...] = (True, False)) -> list[Case]:
    """A death before every step, with and without an atomic exchange of folders."""
    found: list[Case] = []
    for exchange in exchanges:
        watch, new = taken(prepared, exchange)
        for number in range(1, watch.seen + 1):

            def dies(build: Path, number: int = number) -> None:
                assert killed(lambda: publish(prepared, build), number)

            found.append((f"{exchange} {number}", partial(stops, prepared, number, exchange, new, dies)))
    return found


def test_a_verdict_and_its_self_test_belong_together_whenever_a_process_dies(prepared: Prepared) -> None:
    assert called_passed(prepared.build) == ["inspect", "bundle", "next step"]
    outcomes = try_all(cases(prepared))
    assert not failed(outcomes), in_lines(failed(outcomes))
    assert len(outcomes) > 20


def test_the_suite_sees_readers_who_do_not_look_at_the_self_test(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = cases(prepared, (True,))
    monkeypatch.setattr("fastvlm.verdict_file.names_selftest", lambda *_: True)
    outcomes = failed(try_all(tried))
    assert outcomes
    assert "call a mixture passed" in in_lines(outcomes)


def test_a_full_disk_leaves_the_old_pair(prepared: Prepared) -> None:
    """Both are written and synced before either takes its name."""
    watch, new = taken(prepared, True)
    names = [name for name, _ in watch.names]
    before = names.index("exchange")
    assert "write" in names[:before]
    assert [step for step, path in watch.names[:before] if path.name.startswith(f".{FILE}.stage-")] == ["write", "sync"]
    for number in range(1, before + 1):

        def full(build: Path, number: int = number) -> None:
            def refuse() -> NoReturn:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            steps.before = Steps(refuse, number)
            with suppress(OutputError):
                publish(prepared, build)
            assert pair_of(build) == pair_of(prepared.build)
            assert len(called_passed(build)) == 3

        stops(prepared, number, True, new, full)


def test_a_passed_build_without_a_self_test_is_not_said_to_be_ready(prepared: Prepared) -> None:
    """A verdict of an encoder alone names none, and `bundle` takes none such."""
    build = copied(prepared, "without")
    shutil.rmtree(build / SELFTEST)
    verdict = json.loads((build / FILE).read_text())
    for selftest in ({}, None):
        (build / FILE).write_bytes(dump(verdict | {"selftest": selftest}))
        assert called_passed(build) == ["inspect"], selftest


def test_a_self_test_without_end_is_not_hashed(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = max(path.stat().st_size for path in (prepared.build / SELFTEST).iterdir())
    monkeypatch.setattr("fastvlm.verdict_file.MOST_OF_A_FILE", largest)
    assert called_passed(prepared.build) == ["inspect", "bundle", "next step"]
    monkeypatch.setattr("fastvlm.verdict_file.MOST_OF_A_FILE", 100)
    with pytest.raises(BuildError, match="at most 100 are read"):
        selftest_hashes(prepared.build)
    assert "fastvlm validate" in after_running(str(prepared.build))
