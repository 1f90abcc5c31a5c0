"""Doctor works out the Hub's cache folder without importing huggingface_hub, and names the same one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "variables",
    [{}, {"HF_HOME": "~/x"}, {"HF_HUB_CACHE": "$HOME/y", "HF_HOME": "z"}, {"XDG_CACHE_HOME": "here"}],
)
def test_doctor_names_the_same_cache(root: Path, variables: dict[str, str]) -> None:
    script = "from fastvlm.doctor import hub_cache; from huggingface_hub import constants as c"
    script += "; assert str(hub_cache()) == c.HF_HUB_CACHE, (hub_cache(), c.HF_HUB_CACHE)"
    plain = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "there")}
    subprocess.run([sys.executable, "-c", script], cwd=root, env=plain | variables, check=True)
