"""What a stranger's tokenizer.json may hold, read with Python's own parser before the tokenizers library sees it.

The library trusts its file: a padding of 10¹² ends the process, a missing token is a panic. So everything that it
would act on is checked here first, against limits that leave room for the largest vocabularies in use:
- a model of BPE (all decoders of FastVLM), or WordLevel; its vocabulary, merges and added tokens are counted;
- normalizer, splitter, decoder and post-processor are of kinds whose cost is known (`tokenizer_steps`);
- truncation, padding and dropout are the habits of a training: they are dropped, and a sentence says so.
The same field twice is refused, because two parsers may see two files. It knows neither the library nor checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fastvlm.errors import FastVLMError, PromptError
from fastvlm.hashes import Opener
from fastvlm.json_file import each_once
from fastvlm.paths import open_plain
from fastvlm.quoting import one_line, printable, short
from fastvlm.tokenizer_room import Growth
from fastvlm.tokenizer_steps import Unfit, check_decoder, check_ends, check_normalizer, check_splitter

MAX_FILE_BYTES = 64 * 1024 * 1024  # a tokenizer.json of 250,000 tokens has 35 MB
MAX_TOKENS = 1_000_000  # the largest vocabularies have 262,144 and 514,906 merges
MAX_LISTS = 1_200_000  # each merge may be one; 64 MB of [] would take a gigabyte
MAX_ID = 2**24
MAX_ADDED = 16_384  # Qwen2 has 22, Gemma 3 6,242
MAX_TOKEN_BYTES = 4_096  # the longest of Qwen2 has 256
# of a text before it is encoded: eight bytes for each of Qwen2's 32,768 positions; takes 0.4 s and 100 MB
MAX_TEXT_BYTES = 262_144
MAX_RUN_BYTES = 2 * MAX_TEXT_BYTES  # of what is encoded at a time: a user's text and a template's, or a system text


def read_tokenizer(path: Path, error: type[FastVLMError], opened: Opener = open_plain) -> tuple[str, tuple[str, ...]]:
    """Returns the text of a tokenizer.json that is safe to load, and the names of what was dropped from it.

    Raises `error`, with the path, for a file that is too large, is no JSON, or holds what is not run.
    """
    try:
        with opened(path) as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise Unfit(f"it has over {MAX_FILE_BYTES:,} bytes, and no tokenizer is that large")
        return checked(data.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as found:
        said = printable(str(found)) if not isinstance(found, Unfit) else str(found)
        raise error(f"{path} is no tokenizer that can be read ({said}); copy it again from the source") from found


def checked(text: str) -> tuple[str, tuple[str, ...]]:
    """Returns a tokenizer.json's text without what is dropped, and the names of that; raises ValueError."""
    lists, values = text.count("[") + text.count("{"), text.count(",")
    if lists > MAX_LISTS or values > 5 * MAX_LISTS:
        raise Unfit(f"it has {lists:,} lists and objects of {values:,} values, at most {MAX_LISTS:,} are read")
    found = json.loads(text, object_pairs_hook=each_once, parse_constant=_no_constant)
    if not isinstance(found, dict):
        raise Unfit(f"it holds a {type(found).__name__}, expected a JSON object")
    check_added(_list(found, "added_tokens"))
    for key, check in PARTS.items():
        check(found.get(key))
    return _without(found, text, _check_model(found.get("model")))


def growth_of(tokenizer: Any) -> Growth:
    """Returns how long the library's tokenizer, whose file was checked, may make a prompt and an answer."""
    steps = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder)
    normalizer, splitter, decoder = (None if step is None else json.loads(step.__getstate__()) for step in steps)
    return Growth(check_normalizer(normalizer), check_splitter(splitter), check_decoder(decoder))


def check_added(tokens: Iterable[Any]) -> None:
    """Raises Unfit unless every added token is an object with a text of its own and an id in range."""
    for number, token in enumerate(tokens):
        if number >= MAX_ADDED:
            raise Unfit(f"it has over {MAX_ADDED:,} added tokens")
        if not isinstance(token, dict) or not _is_id(token.get("id")) or not _is_token(token.get("content")):
            raise Unfit(f"an added token is {short(token)}, expected a text of up to {MAX_TOKEN_BYTES} bytes and an id")


def check_vocabulary(vocab: Any) -> None:
    """Raises Unfit unless it is an object of token to id, as many as a table can have."""
    if not isinstance(vocab, dict) or len(vocab) > MAX_TOKENS:
        raise Unfit(f"its vocabulary is no JSON object of at most {MAX_TOKENS:,} tokens")
    for token, id_ in vocab.items():
        if not _is_id(id_) or len(token) > MAX_TOKEN_BYTES:
            raise Unfit(f"its token {short(token)} has id {short(id_)}, expected 0 to {MAX_ID - 1} and a short text")


def check_text(text: str) -> None:
    """Raises PromptError for a user's text that is empty, or as `check_length`."""
    check_length(text)
    if not text.strip():
        raise PromptError("the prompt is empty; type a question, for example 'Describe the image.'")


def check_length(text: str, most: int = MAX_TEXT_BYTES) -> None:
    """Raises PromptError for a text that is longer than any context, before anything is computed from it."""
    if len(text) > most or len(text.encode("utf-8", "replace")) > most:
        raise PromptError(
            f"the text has {len(text):,} characters, at most {most:,} bytes of UTF-8 are read; shorten it"
        )


def called(error: type[FastVLMError], what: str, function: Callable[..., Any], *given: Any) -> Any:
    """Returns what a function of the tokenizers library returns; `error` where the library fails, or panics.

    It raises plain Exception, and its panics are not even that.
    """
    try:
        return function(*given)
    except (FastVLMError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as found:
        said = one_line(str(found))
        raise error(f"the tokenizers library {what} ({said}); copy tokenizer.json again from the source") from found


def _check_model(model: Any) -> bool:
    """Raises Unfit for a model that is not run; returns whether it has a dropout."""
    if not isinstance(model, dict):
        raise Unfit(f"its model is {short(model)}, expected a JSON object")
    kind = model.get("type", "BPE" if "merges" in model else None)  # files of before 2020 do not name it
    if kind not in ("BPE", "WordLevel"):
        raise Unfit(f"its model is {short(kind)}, known are BPE and WordLevel")
    vocab: Any = model.get("vocab")
    check_vocabulary(vocab)
    unknown = model.get("unk_token")
    known = unknown in vocab if isinstance(unknown, str) else unknown is None and kind == "BPE"
    if not known:
        raise Unfit(f"its unk_token {short(unknown)} is not in its vocabulary")
    if kind == "WordLevel":
        return False
    merges = _list(model, "merges")
    if len(merges) > MAX_TOKENS:
        raise Unfit(f"it has {len(merges):,} merges, at most {MAX_TOKENS:,} are read")
    if model.get("continuing_subword_prefix"):  # WordPiece's; cutting it off ends the process where it cuts a letter
        raise Unfit(f"its continuing_subword_prefix is {short(model['continuing_subword_prefix'])}, expected none")
    suffix = model.get("end_of_word_suffix")
    if suffix is not None and (not isinstance(suffix, str) or len(suffix) > 16):
        raise Unfit(f"its end_of_word_suffix is {short(suffix)}, expected a text of at most 16 characters")
    return bool(model.get("dropout"))


def _without(found: dict[str, Any], text: str, dropout: bool) -> tuple[str, tuple[str, ...]]:
    """The text as it is where nothing is dropped, so that no byte of a build changes."""
    dropped = tuple(key for key in ("truncation", "padding") if found.get(key) is not None)
    if not dropped and not dropout:
        return text, ()
    model = found["model"] | ({"dropout": None} if dropout else {})
    clean = found | dict.fromkeys(dropped) | {"model": model}
    return json.dumps(clean, ensure_ascii=False) + "\n", (*dropped, *(("dropout",) if dropout else ()))


def _list(found: Mapping[str, Any], key: str) -> list[Any]:
    value = found.get(key) or []
    if not isinstance(value, list):
        raise Unfit(f"its {key} are {short(value)}, expected a list")
    return value


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_ID


def _is_token(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value.encode("utf-8", "replace")) <= MAX_TOKEN_BYTES


def _no_constant(name: str) -> float:
    raise Unfit(f"it holds {name}, which is no JSON")


PARTS: dict[str, Callable[[Any], float]] = {
    "normalizer": check_normalizer,
    "pre_tokenizer": check_splitter,
    "decoder": check_decoder,
    "post_processor": check_ends,
}
