"""What an app may weigh and use: which phone stands in for which, and what fits."""

from __future__ import annotations

import pytest

from fastvlm.app_limits import APP_LIMIT, MAC_APP_LIMIT, app_limit, class_of, map_bytes, state_bytes, verdict
from fastvlm.devices import DEVICES, device


@pytest.mark.parametrize(
    ("name", "stand_in"),
    [
        ("iPhone 15 Pro", "iPhone 15 Pro"),
        ("iPhone 12", "iPhone 12 mini"),
        ("iPhone 14", "iPhone 13 Pro"),
        ("iPhone 17 Pro", "iPhone 15 Pro"),
        ("iPad 10", "iPhone 12 mini"),
        ("iPad Pro M4", "iPhone 15 Pro"),
    ],
)
def test_a_device_takes_the_figure_of_one_with_no_more_memory(name: str, stand_in: str) -> None:
    found = class_of(device(name))
    assert found is not None
    assert found.name == stand_in
    assert found.memory_gb[0] <= min(device(name).memory_gb)


def test_a_mac_has_no_limit_of_that_kind() -> None:
    assert class_of(device("MacBook Air M2")) is None
    assert all(class_of(each) is not None for each in DEVICES if each.kind != "mac")


def test_an_app_may_weigh_what_the_store_takes() -> None:
    assert (app_limit(device("iPhone 12")), app_limit(device("iPad Pro M5"))) == (APP_LIMIT, APP_LIMIT)
    assert app_limit(device("Mac mini M4")) == MAC_APP_LIMIT


def test_a_need_is_held_against_both_limits() -> None:
    app = device("iPhone 15 Pro").app_memory  # 3 and 6 GB
    assert app is not None
    needs = (3_000_000_000, 3_000_000_001, 6_000_000_000, 6_000_000_001)
    with_it = "with increased-memory-limit"
    assert [verdict(need, app) for need in needs] == ["yes", with_it, with_it, "no"]


def test_sizes_are_counted_in_fp16() -> None:
    assert state_bytes([(48, 2, 64, 2048), (2, 2, 64, 2048)]) == 2 * 50 * 2 * 64 * 2048
    assert map_bytes(96, 1024) == 3 * 2 * 96 * 512 * 512
