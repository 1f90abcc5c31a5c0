"""tokenizer/chat_template.jinja, for runtimes that expect one: the checkpoint's own, else what the prompt rule says.

A runtime of this project follows `prompt` in metadata.json, never this file: a template rendered as text lets user
text become a control token (transformers #47853). What is made here is one turn about one picture, `<image>`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastvlm.build import Build
from fastvlm.errors import BuildError
from fastvlm.json_file import read_json

FILE = "chat_template.jinja"
IMAGE = "<image>"
MAX_BYTES = 4 << 20
_SYSTEM = "{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else SYSTEM -%}\n"


def chat_template(copied: Build) -> bytes:
    """Returns the text for a bundle without the file: that of chat_template.json, of tokenizer_config.json, a made one.

    copied: the build with the bundle's tokenizer in place of its own. Raises BuildError for a file that is no JSON.
    """
    names = ("chat_template.json", "tokenizer_config.json")
    found = (_told(copied.tokenizer / name) for name in names if (copied.tokenizer / name).is_file())
    return (next(filter(None, found), None) or _made(copied.prompt)).encode()


def _told(file: Path) -> str | None:
    """The template in a JSON file: text, or a list of named ones, of which `default` counts."""
    try:
        content = read_json(file, MAX_BYTES)
    except OSError as problem:
        raise BuildError(f"{file.name} of the tokenizer cannot be read ({problem.strerror}); export again") from problem
    except ValueError as problem:
        raise BuildError(f"{file.name} of the tokenizer is no JSON ({str(problem)[:80]}); export again") from problem
    template = content.get("chat_template") if isinstance(content, dict) else None
    if isinstance(template, list):
        named = {row.get("name"): row.get("template") for row in template if isinstance(row, dict)}
        template = named.get("default")
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
