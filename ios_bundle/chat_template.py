"""tokenizer/chat_template.jinja, for runtimes that expect one: the checkpoint's own, else what the prompt rule says.

A runtime of this project follows `prompt` in metadata.json, never this file: a template rendered as text lets user
text become a control token (transformers #47853). What is made here is one turn about one picture, `<image>`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastvlm.build import Build

FILE = "chat_template.jinja"
IMAGE = "<image>"
_SYSTEM = "{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else SYSTEM -%}\n"


def chat_template(build: Build) -> bytes:
    """Returns the template's text: the checkpoint's file, the one inside tokenizer_config.json, or a made one."""
    own = build.tokenizer / FILE
    if own.is_file():
        return own.read_bytes()
    return (_configured(build.tokenizer / "tokenizer_config.json") or _made(build.prompt)).encode()


def _configured(config: Path) -> str | None:
    try:
        template = json.loads(config.read_bytes()).get("chat_template")
    except (OSError, ValueError, RecursionError, AttributeError):  # optional here; the tokenizer's readers complain
        return None
    return template if isinstance(template, str) else None


def _made(prompt: dict[str, Any]) -> str:
    """The prompt rule as Jinja."""
    turn = _filled(
        f"{prompt.get('before', '')}{IMAGE}{prompt.get('after', '{prompt}')}", "{prompt}", "message['content']"
    )
    system = _filled(str(prompt.get("system_turn", "")), "{system}", "system")
    return (
        _SYSTEM.replace("SYSTEM", _literal(str(prompt.get("system") or "")))
        + f"{{%- if system -%}}{{{{ {system} }}}}{{%- endif -%}}\n"
        + f"{{%- for message in messages if message['role'] == 'user' -%}}{{{{ {turn} }}}}{{%- endfor -%}}\n"
    )


def _filled(text: str, place: str, expression: str) -> str:
    """A Jinja expression for `text` with `expression` in the place of `place`."""
    return f" + {expression} + ".join(map(_literal, text.split(place)))


def _literal(text: str) -> str:
    for sign, escape in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(sign, escape)
    return f"'{text}'"
