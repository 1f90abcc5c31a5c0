"""Prompts: a template as data, text in, ids before and after the image out.

Notable choices:
- a template's own text is cut at its control tokens before any user text enters; each run of text between two
  controls (or the image) is encoded by itself, and the ids are joined. So nothing that a user types can become a
  control token, and the ids are those that training saw (its text, too, was cut there);
- template text and user text that touch are one run: a sentencepiece vocabulary puts a space at the start of each run,
  so that cutting there would change the ids;
- a custom template is a JSON file with the fields of `Template`. `PromptConfig.template` holds a built-in name or, for
  a custom one, that JSON itself: no path of one machine reaches a manifest.
- a user's text is held to a length before anything is done with it, a template to counts that keep its work small.
It does not know what a tokenizer is made of.
Sources: ml-fastvlm `llava/conversation.py` (conv_qwen_2, conv_llava_plain, conv_vicuna_v1) and `mm_utils.py`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from fastvlm.errors import TokenizerError, UsageError
from fastvlm.paths import open_followed
from fastvlm.quoting import short
from fastvlm.tokenizer_json import check_length, check_text
from fastvlm_ref.config import PromptConfig

MAX_TEMPLATE_BYTES = 65_536
MAX_CONTROLS = 64  # of a template, and as many stops; qwen_2 has two
MAX_SYSTEM = 8  # places of the system text in a template's turns
LISTS = ("controls", "stops")


class Encoder(Protocol):
    """What a template needs of a tokenizer."""

    @property
    def bos(self) -> int | None:
        """The id that every sequence begins with, None where there is none."""

    def encode_runs(self, runs: Sequence[str]) -> list[list[int]]:
        """Returns ids of each run of plain text in one prompt; never a control token."""

    def control(self, name: str) -> int:
        """Returns the id of a control token; raises TokenizerError when there is none."""

    def has_control(self, name: str) -> bool:
        """True where `control` would answer."""


@dataclass(frozen=True)
class Template:
    """One conversation turn about one image, which stands between `before` and `after`.

    `{system}` stands for the system text, `{prompt}` for the user's. `system_turn` is left out whole when the system
    text is empty. Only the strings in `controls` become control tokens, and only where the template itself has them.
    """

    name: str
    before: str
    after: str
    system: str = ""
    system_turn: str = ""
    controls: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()  # controls that end an answer, those that the tokenizer has
    needs_bos: bool = False  # a tokenizer without a begin-of-text token is then an error


QWEN_2 = Template(
    name="qwen_2",
    system="You are a helpful assistant.",
    system_turn="<|im_start|>system\n{system}<|im_end|>\n",
    before="<|im_start|>user\n",
    after="\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
    controls=("<|im_start|>", "<|im_end|>"),
    stops=("<|im_end|>", "<|endoftext|>"),
)
PLAIN = Template(name="plain", before="", after="\n{prompt}\n", stops=("<|im_end|>", "<|endoftext|>", "</s>"))
VICUNA_V1 = Template(
    name="vicuna_v1",
    system="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    system_turn="{system} ",
    before="USER: ",
    after="\n{prompt} ASSISTANT:",
    stops=("</s>",),
    needs_bos=True,
)
TEMPLATES: Mapping[str, Template] = {template.name: template for template in (QWEN_2, PLAIN, VICUNA_V1)}


def encode_prompt(tokenizer: Encoder, text: str, prompt: PromptConfig | None = None) -> tuple[list[int], list[int]]:
    """Returns (ids before the image, ids after it) of the user's text.

    Without `prompt` the tokenizer's own (`tokenizer.prompt`, set by `load_checkpoint`) is used, else qwen_2.
    Raises PromptError for an empty or overlong text, UsageError for an unknown template, TokenizerError for a control
    token that the tokenizer lacks, and where the text became the id that marks the image.
    """
    check_text(text)
    prompt = prompt or getattr(tokenizer, "prompt", None) or PromptConfig()
    template = find_template(prompt.template)
    system = template.system if prompt.system is None else prompt.system
    check_length(system)
    values = {"{system}": system, "{prompt}": text}
    before = (template.system_turn if system else "") + template.before
    start = _begin(tokenizer, template)
    first, second = _encode(tokenizer, template, (before, template.after), values)
    _check_slot([*start, *first, *second], prompt)
    return start + first, second


def encode_follow_up(tokenizer: Encoder, text: str, prompt: PromptConfig | None = None) -> list[int]:
    """Returns the ids that stand between an answer and the next one: the end of a turn, the user's text, a new turn.

    A turn ends with the template's first stop that the tokenizer has, and with the space that the template puts behind
    it. The new turn has neither system text nor image, nor the line break that parts the image from a text. Raises as
    `encode_prompt`. Source: ml-fastvlm `llava/conversation.py`, which puts turns together in the same way.
    """
    check_text(text)
    prompt = prompt or getattr(tokenizer, "prompt", None) or PromptConfig()
    template = find_template(prompt.template)
    system = template.system if prompt.system is None else prompt.system
    check_length(system)
    stop = next((name for name in template.stops if tokenizer.has_control(name)), None)
    behind = template.after.partition(stop)[2] if stop else ""
    gap = behind[: len(behind) - len(behind.lstrip())]
    turn = gap + template.before + template.after.removeprefix("\n")
    end = [tokenizer.control(stop)] if stop else list(prompt.stop_ids[:1])
    ids = end + _encode(tokenizer, template, (turn,), {"{system}": system, "{prompt}": text})[0]
    _check_slot(ids, prompt)
    return ids


def stop_ids(tokenizer: Encoder, prompt: PromptConfig | None = None) -> tuple[int, ...]:
    """Returns the ids that end an answer: those of the checkpoint and those of its template, sorted."""
    prompt = prompt or getattr(tokenizer, "prompt", None) or PromptConfig()
    names = [name for name in find_template(prompt.template).stops if tokenizer.has_control(name)]
    return tuple(sorted({*prompt.stop_ids, *map(tokenizer.control, names)}))


def find_template(template: str) -> Template:
    """Returns the template of a built-in name or of a custom template's JSON. Raises UsageError for anything else."""
    if template.lstrip().startswith("{"):
        return _parse(template, "the template")
    if template in TEMPLATES:
        return TEMPLATES[template]
    known = ", ".join(TEMPLATES)
    raise UsageError(f"template {short(template)} is unknown; known are {known}, or a JSON file (--template FILE)")


def template_option(option: str) -> str:
    """Returns what `PromptConfig.template` holds for `--template NAME|FILE`; a built-in name wins over a file.

    Raises UsageError when it is neither, or when the file's fields are wrong (all of them listed).
    """
    if option in TEMPLATES or option.lstrip().startswith("{"):
        return _canonical(find_template(option))
    path = Path(option)
    if not os.path.isfile(path):
        raise UsageError(
            f"template '{option}' is neither a name ({', '.join(TEMPLATES)}) nor a file; "
            f"a template file is JSON with {', '.join(field.name for field in fields(Template))}"
        )
    try:
        with open_followed(path) as file:
            data = file.read(MAX_TEMPLATE_BYTES + 1)
            size = max(len(data), os.fstat(file.fileno()).st_size)
        if size > MAX_TEMPLATE_BYTES:
            raise UsageError(f"{path} has {size} bytes; a template has at most {MAX_TEMPLATE_BYTES}")
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as a template ({error}); it must be UTF-8 JSON") from error
    return _canonical(_parse(text, str(path)))


def prompt_record(prompt: PromptConfig) -> dict[str, Any]:
    """Returns what a runtime needs to build the same ids: the template's fields, with the system text in force."""
    template = find_template(prompt.template)
    record = asdict(template)
    record["template"] = record.pop("name")
    record["system"] = template.system if prompt.system is None else prompt.system
    record |= {"stop_ids": list(prompt.stop_ids), "image_token_id": prompt.image_token_id}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in record.items()}


def prompt_from_record(record: Mapping[str, Any]) -> PromptConfig:
    """Returns the PromptConfig of a manifest's record, the inverse of `prompt_record`; unknown fields are ignored."""
    known = {field.name for field in fields(Template)} - {"name", "system"}
    turns = {key: value for key, value in record.items() if key in known}
    name, system = str(record.get("template", "")), record.get("system")
    built_in = TEMPLATES.get(name)
    if turns:  # the record's own turns count, whatever the name is worth in this version
        custom = _parse(json.dumps({"name": name, **turns}), "the manifest's prompt")
        template = name if built_in and replace(custom, system=built_in.system) == built_in else _canonical(custom)
    else:
        template = find_template(name).name
    stops, slot = record.get("stop_ids", []), record.get("image_token_id", PromptConfig.image_token_id)
    problems = [] if system is None or isinstance(system, str) else [f"its system text is {short(system)}"]
    if not isinstance(stops, (list, tuple)) or not all(type(stop) is int for stop in stops):
        problems.append(f"its stop_ids are {short(stops)}")
    if type(slot) is not int:
        problems.append(f"its image_token_id is {short(slot)}")
    if problems:
        raise UsageError(f"the manifest's prompt cannot be used: {'; '.join(problems)}; export the build again")
    return PromptConfig(template=template, system=system, stop_ids=tuple(stops), image_token_id=slot)


def _check_slot(ids: list[int], prompt: PromptConfig) -> None:
    """Raises TokenizerError where text became the id that marks the image."""
    if prompt.image_token_id in ids:
        raise TokenizerError(
            f"text became id {prompt.image_token_id}, which marks the image; config.json names a token that text is "
            "made of, correct its image_token_index"
        )


def _begin(tokenizer: Encoder, template: Template) -> list[int]:
    if tokenizer.bos is not None:
        return [tokenizer.bos]
    if template.needs_bos:
        raise UsageError(
            f"template {template.name} begins with a begin-of-text token and this tokenizer has none; "
            f"choose another with --template ({', '.join(TEMPLATES)})"
        )
    return []


def _encode(tokenizer: Encoder, template: Template, turns: Sequence[str], values: Mapping[str, str]) -> list[list[int]]:
    """Cuts each turn at the template's controls, fills in the values afterwards, and encodes run by run."""
    longest_first = sorted(template.controls, key=len, reverse=True)
    cut = re.compile(f"({'|'.join(map(re.escape, longest_first))})" if template.controls else r"(?!)")
    parts = [[run for run in cut.split(turn) if run] for turn in turns]
    plain = [_fill(run, values) for part in parts for run in part if run not in template.controls]
    encoded = iter(tokenizer.encode_runs(plain))
    return [
        [id_ for run in part for id_ in ([tokenizer.control(run)] if run in template.controls else next(encoded))]
        for part in parts
    ]


def _fill(run: str, values: Mapping[str, str]) -> str:
    """Replaces the placeholders in one pass, so that a prompt that spells `{system}` stays as typed."""
    return re.sub(r"\{system\}|\{prompt\}", lambda match: values[match.group()], run)


def _canonical(template: Template) -> str:
    if TEMPLATES.get(template.name) == template:
        return template.name
    return json.dumps(asdict(template), ensure_ascii=False, sort_keys=True)


def _parse(text: str, where: str) -> Template:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise UsageError(f"{where} holds a {type(found).__name__}; expected a JSON object with a template's fields")
    problems = _problems(found)
    if problems:
        raise UsageError(f"{where} is no template: {'; '.join(problems)}")
    known: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    return Template(**known)


def _problems(found: dict[str, Any]) -> list[str]:
    """Lists everything that is wrong with a template's fields."""
    kinds = {field.name: type(getattr(QWEN_2, field.name)) for field in fields(Template)}
    strange = [short(key) for key in found if key not in kinds]
    problems = [f"{key} is unknown (known: {', '.join(kinds)})" for key in strange[:8]]
    problems += [f"'{key}' is missing" for key in ("name", "before", "after") if key not in found]
    for key, kind in kinds.items():
        if key in found and not _is_a(found[key], kind):
            expected = {str: "a text", tuple: "a list of texts", bool: "true or false"}[kind]
            problems.append(f"'{key}' is {json.dumps(found[key])[:60]}, expected {expected}")
    if problems:
        return problems
    if sum(map(len, _texts(found))) > MAX_TEMPLATE_BYTES:
        problems.append(f"its texts have over {MAX_TEMPLATE_BYTES} characters together")
    problems += [f"'{key}' has over {MAX_CONTROLS} texts" for key in LISTS if len(found.get(key, ())) > MAX_CONTROLS]
    if problems:
        return problems
    if found["after"].count("{prompt}") + found["before"].count("{prompt}") != 1:
        problems.append("{prompt} must stand once in 'before' or 'after'")
    turns = found.get("system_turn", "") + found["before"] + found["after"]
    if turns.count("{system}") > MAX_SYSTEM:
        problems.append(f"{{system}} stands over {MAX_SYSTEM} times in its turns")
    for name in found.get("controls", ()):
        if name not in turns:
            problems.append(f"control {short(name)} stands in no turn")
        if "{system}" in name or "{prompt}" in name:
            problems.append(f"control {short(name)} holds a placeholder")
    return problems


def _texts(found: dict[str, Any]) -> Iterator[str]:
    for value in found.values():
        yield from [value] if isinstance(value, str) else value if isinstance(value, list) else []


def _is_a(value: Any, kind: type) -> bool:
    if kind is tuple:
        return isinstance(value, list) and all(isinstance(item, str) and item for item in value)
    return isinstance(value, kind)
