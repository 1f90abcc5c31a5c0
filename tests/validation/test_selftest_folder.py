"""A self-test is replaced only where nothing else would be lost."""

import pytest

from validation.selftest import is_selftest


@pytest.mark.parametrize(
    ("names", "ours"),
    [
        (("selftest.json", "picture.png", "features.bin"), True),
        (("selftest.json", ".DS_Store"), True),
        (("picture.png",), False),
        (("selftest.json", "my notes.txt"), False),
        ((), False),
    ],
)
def test_only_a_selftest_alone_may_be_replaced(tmp_path, names, ours):
    for name in names:
        (tmp_path / name).touch()
    assert is_selftest(tmp_path) is ours
    assert not is_selftest(tmp_path / "absent")
