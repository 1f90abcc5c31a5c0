"""Documents and docstrings name only files that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOMS = "docs|tests|benchmarks|export|validation|fastvlm|fastvlm_ref|ios_bundle"
MENTION = re.compile(rf"(?<![\w/.-])((?:{ROOMS})/[\w./-]*\w\.(?:md|py))\b")


def tracked(root: Path) -> list[str]:
    words = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True)
    return listed.stdout.split("\n")


def test_every_named_file_exists(root: Path) -> None:
    wrong = []
    for name in tracked(root):
        if not name.endswith((".md", ".py")) or name == "CHANGELOG.md" or not (root / name).is_file():
            continue
        text = (root / name).read_text("utf-8")
        wrong += [f"{name}: {found}" for found in MENTION.findall(text) if not (root / found).exists()]
    assert wrong == []


def test_every_link_of_the_readme_leads_somewhere(root: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", (root / "README.md").read_text("utf-8"))
    local = [first or second for first, second in links if not (first or second).startswith("http")]
    assert local
    assert [link for link in local if not (root / link).exists()] == []
