"""The system text that a Jinja chat template states is what Jinja itself makes of it."""

from __future__ import annotations

import jinja2
import pytest

from fastvlm_ref.checkpoint.statements import system_literal

# as Qwen2's own template: a default where the conversation brings no system message
QUOTED = (
    "{{% if messages[0]['role'] != 'system' %}}"
    "{{{{ {quote}<|im_start|>system\\n{text}<|im_end|>\\n{quote} }}}}{{% endif %}}"
    "{{% for message in messages %}}"
    "{{{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}}}{{% endfor %}}"
)
MESSAGES = [{"role": "user", "content": "What?"}]


def rendered(template: str) -> str:
    text = jinja2.Template(template).render(messages=MESSAGES)
    return text.partition("<|im_start|>system\n")[2].partition("<|im_end|>")[0]


@pytest.mark.parametrize("quote", ["'", '"'])
@pytest.mark.parametrize(
    "text",
    [
        "You are a helpful assistant.",
        r"Be brief.\nAnswer in French.",
        r"It\'s \"you\".",
        r"A path: C:\\new\tdone",
        "Grüße {braces} and <angles>",
    ],
)
def test_a_quoted_default_is_read_as_jinja_reads_it(text: str, quote: str) -> None:
    template = QUOTED.format(quote=quote, text=text)
    assert system_literal(template) == rendered(template)


def test_a_default_with_the_other_quote_inside() -> None:
    template = QUOTED.format(quote='"', text="It's you.")
    assert system_literal(template) == rendered(template) == "It's you."


def test_text_outside_of_jinja_is_taken_as_it_stands() -> None:
    template = "<|im_start|>system\nIt's a \\n in a text.<|im_end|>\n<|im_start|>user\n{{ messages[0]['content'] }}"
    assert system_literal(template) == rendered(template) == "It's a \\n in a text."


@pytest.mark.parametrize(
    "template",
    [
        "",
        "USER: {{ messages[0]['content'] }} ASSISTANT:",
        "{{ '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}",
        "<|im_start|>system\n{{ system }}<|im_end|>",
    ],
)
def test_what_is_put_together_is_no_literal(template: str) -> None:
    assert system_literal(template) is None


def test_a_default_behind_a_computed_one_is_found() -> None:
    computed = "{{ '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    assert system_literal(computed + QUOTED.format(quote="'", text="Default.")) == "Default."
