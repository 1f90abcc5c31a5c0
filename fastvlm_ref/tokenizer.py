"""The checkpoint's own tokenizer, read from tokenizer.json, or from vocab.json and merges.txt as trainers leave them.

Notable choices:
- text runs through normalizer, pre-tokenizer and model by hand, never through the step that looks for added tokens:
  user text cannot produce a control token, whatever it spells (transformers #47853 is this bug). Should a vocabulary
  spell one itself, that is an error, for every added token: files of trainers mark controls as special or do not;
- what the library would act on is checked before it sees the file (`fastvlm.tokenizer_json`), a text's length before it
  is encoded, and a panic of the library, which is no Exception, is a TokenizerError like any other;
- the number of tokens that counts is the highest id + 1, since ids are rows of the embedding table;
- a stream holds back incomplete UTF-8, and its pieces joined are exactly the full decode.
It does not know templates; `fastvlm_ref.prompt` does. No code from the checkpoint is run and no pickle is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from fastvlm.errors import TokenizerError
from fastvlm.json_file import parse
from fastvlm.quoting import printable, short
from fastvlm.tokenizer_json import (
    MAX_FILE_BYTES,
    MAX_RUN_BYTES,
    MAX_TOKENS,
    called,
    check_added,
    check_length,
    check_vocabulary,
    growth_of,
    read_tokenizer,
)
from fastvlm.tokenizer_room import Growth, Room
from fastvlm.tokenizer_steps import Unfit
from fastvlm_ref.config import PromptConfig
from fastvlm_ref.files import copy_file, open_file, read_file, size_of

# Qwen2's split into words (transformers, tokenization_qwen2.py, PRETOKENIZE_REGEX); digits stand alone
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_GROWTH = Growth(normalizer=3, splitter=2)  # NFC, and a letter of two bytes for each
OWN_FILES = (  # what a checkpoint may hold of its tokenizer; copied into the build as they are
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "tokenizer.model", "chat_template.json", "chat_template.jinja",
)  # fmt: skip


class Tokenizer:
    """Text to ids and back; `prompt` is the checkpoint's PromptConfig where one was set."""

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        bos: int | None = None,
        files: Sequence[Path] = (),
        assumed: tuple[str, ...] = (),
        cleaned: str | None = None,
        growth: Growth = Growth(),  # noqa: B008 (it is frozen)
    ) -> None:
        self._inner = inner
        self._added = {token.content: id_ for id_, token in inner.get_added_tokens_decoder().items()}
        self._control_ids = frozenset(id_ for id_, token in inner.get_added_tokens_decoder().items() if token.special)
        self._guarded = frozenset(self._added.values())  # of which none may come out of plain text
        self._cleaned = cleaned  # what is read of tokenizer.json, where that is not all of it
        self._growth = growth
        self.bos = bos
        self.files = tuple(files)
        self.assumed = assumed
        self.prompt: PromptConfig | None = None
        self.size = max(inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """Returns the ids of plain text; strings such as `<|im_end|>` in it are spelled out, never matched.

        Raises PromptError for a text of over MAX_RUN_BYTES, or of which this tokenizer could make too much,
        TokenizerError if the vocabulary itself would turn plain text into a control token or any other added one, or if
        the library fails at the text.
        """
        return self.encode_runs([text])[0]

    def encode_runs(self, runs: Sequence[str]) -> list[list[int]]:
        """As `encode`, for the runs of one prompt, which share the bound of what the tokenizer may make of them."""
        room = Room(self._growth)
        return [self._encode(run, room) for run in runs]

    def _encode(self, text: str, room: Room) -> list[int]:
        if not text:
            return []
        check_length(text, MAX_RUN_BYTES)
        text = text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate has no bytes: "?"
        ids: list[int] = called(TokenizerError, "cannot encode this text", self._ids, text, room)
        made = self._guarded.intersection(ids)
        if made:
            names = printable(", ".join(sorted(str(self._inner.id_to_token(id_)) for id_ in made)))
            raise TokenizerError(
                f"plain text became the control token {names}, and every added token counts as one; where these are "
                "ordinary words, take them out of added_tokens in tokenizer.json (the vocabulary keeps them), else use "
                "the tokenizer of the model that was fine-tuned"
            )
        return ids

    def _ids(self, text: str, room: Room) -> list[int]:
        inner = self._inner
        text = room.normal(text, inner.normalizer)
        splitter = inner.pre_tokenizer
        words = [text] if splitter is None else [word for word, _ in splitter.pre_tokenize_str(text)]
        return [token.id for word in words for token in inner.model.tokenize(word)]

    def has_control(self, name: str) -> bool:
        """True where the tokenizer has the added token `name`."""
        return name in self._added

    def control(self, name: str) -> int:
        """Returns the id of an added token such as `<|im_end|>`. Raises TokenizerError naming those that exist."""
        if name not in self._added:
            known = ", ".join(printable(token) for token in sorted(self._added)[:12]) or "none"
            raise TokenizerError(
                f"the tokenizer has no token {short(name)} (it has {known}); this is another family's tokenizer, or "
                "its added tokens were lost: copy tokenizer.json from the model that was fine-tuned, or choose "
                "--template"
            )
        return self._added[name]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids; control tokens are left out, bytes that are no UTF-8 become U+FFFD.

        Raises TokenizerError where the library fails, or where the decoder could make too much of them.
        """
        room = self.room()
        what = "cannot decode these ids"
        return self._decode(called(TokenizerError, what, lambda: [room.token(id_, self._inner) for id_ in ids]))

    def room(self) -> Room:
        """Returns what the tokens of one answer may become."""
        return Room(self._growth)

    def _decode(self, ids: Sequence[int]) -> str:
        decode = partial(self._inner.decode, skip_special_tokens=True)
        text: str = called(TokenizerError, "cannot decode these ids", decode, list(ids))
        return text

    def shows(self, id_: int) -> bool:
        """True unless `decode` leaves the id out: control tokens, and padded rows of the table that no token has."""
        return id_ not in self._control_ids and self._inner.id_to_token(id_) is not None

    def spelled(self, id_: int) -> str:
        """Returns the text of one id; a control token by its name, an id that no token has by its number."""
        return self.decode([id_]) if self.shows(id_) else str(self._inner.id_to_token(id_) or f"#{id_}")

    def is_byte(self, id_: int) -> bool:
        """True for sentencepiece's one-byte tokens such as `<0xE4>`, which decode by the run that they stand in."""
        return bool(re.fullmatch(r"<0x[0-9A-F]{2}>", self._inner.id_to_token(id_) or ""))

    @property
    def byte_level(self) -> bool:
        """True where every token is a string of bytes, so that text decodes alike from any character's start."""
        return isinstance(self._inner.decoder, decoders.ByteLevel)

    def stream(self) -> TextStream:
        """Returns a decoder that takes one id at a time."""
        return TextStream(self)

    def save(self, folder: Path) -> None:
        """Copies the checkpoint's files into `folder`; writes tokenizer.json and tokenizer_config.json where absent."""
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.files:
            copy_file(file, folder / file.name)
        if self._cleaned is not None:
            (folder / "tokenizer.json").write_text(self._cleaned, "utf-8")
        if not (folder / "tokenizer.json").exists():
            (folder / "tokenizer.json").write_text(self.as_json(), "utf-8")
        if not (folder / "tokenizer_config.json").exists():
            text = json.dumps(self._config(), indent=1, sort_keys=True)
            (folder / "tokenizer_config.json").write_text(text + "\n", "utf-8")

    def as_json(self) -> str:
        """Returns the text of a tokenizer.json of it."""
        return str(self._inner.to_str(pretty=False)) + "\n"

    def _config(self) -> dict[str, Any]:
        decoder = self._inner.get_added_tokens_decoder()
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": self.bos is not None,
            "bos_token": None if self.bos is None else self._inner.id_to_token(self.bos),
            "added_tokens_decoder": {
                str(id_): {
                    "content": token.content, "lstrip": token.lstrip, "normalized": token.normalized,
                    "rstrip": token.rstrip, "single_word": token.single_word, "special": token.special,
                }
                for id_, token in sorted(decoder.items())
            },
        }  # fmt: skip


class TextStream:
    """Ids in one at a time, text out as soon as it is whole; the pieces joined equal `Tokenizer.decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._sent = ""
        self._room = tokenizer.room()

    def push(self, id_: int) -> str:
        """Returns the text that `id_` completes, empty where a character is still incomplete."""
        if not self._tokenizer.shows(id_):
            return ""
        self._ids.append(self._room.token(id_, self._tokenizer._inner))
        text = self._tokenizer._decode(self._ids)
        if text.endswith("\ufffd") or self._tokenizer.is_byte(id_):
            return ""
        piece = text[len(self._sent) :]
        self._sent = text
        if self._tokenizer.byte_level:  # what is out need not be decoded again
            self._ids, self._sent = [], ""
        return piece

    def finish(self) -> str:
        """Returns what was held back, with U+FFFD for bytes that never became a character."""
        return self._tokenizer._decode(self._ids)[len(self._sent) :] if self._ids else ""


def load_tokenizer(folder: Path, vocab_rows: int) -> Tokenizer:
    """Returns the tokenizer of a checkpoint folder whose embedding table has `vocab_rows` rows.

    Fewer tokens than rows is fine (tables are padded); more raises TokenizerError with both numbers, as do missing or
    damaged files and a lone sentencepiece model.
    """
    files = [folder / name for name in OWN_FILES if (folder / name).is_file()]
    names = {file.name for file in files}
    _check_sizes(files)
    config = _read_json(folder / "tokenizer_config.json") if "tokenizer_config.json" in names else {}
    assumed: tuple[str, ...] = ()
    cleaned: str | None = None
    whole = folder / "tokenizer.json"
    if whole.name in names:
        text, dropped = read_tokenizer(whole, TokenizerError, open_file)
        inner = called(TokenizerError, f"cannot read {whole}", tokenizers.Tokenizer.from_str, text)
        assumed = tuple(f"tokenizer.json asks for {name}: left out, a prompt is one whole text" for name in dropped)
        cleaned = text if dropped else None
        growth = growth_of(inner)
    elif {"vocab.json", "merges.txt"} <= names:
        inner, growth = _qwen2_from_parts(folder, config), QWEN2_GROWTH
        assumed = ("tokenizer.json is absent: built from vocab.json and merges.txt as Qwen2's byte-level BPE",)
    else:
        raise TokenizerError(_nothing_found(folder, names))
    tokenizer = Tokenizer(inner, bos=_bos(inner, config), files=files, assumed=assumed, cleaned=cleaned, growth=growth)
    if tokenizer.size > vocab_rows:
        raise TokenizerError(
            f"the tokenizer in {folder} has {tokenizer.size} tokens, config.json states a table of {vocab_rows} rows "
            "(vocab_size); each token needs a row: this is another checkpoint's tokenizer or config.json, or the table "
            "was not resized when tokens were added"
        )
    return tokenizer


def _check_sizes(files: Sequence[Path]) -> None:
    for file in files:
        if (size := size_of(file)) > MAX_FILE_BYTES:
            raise TokenizerError(
                f"{file} has {size:,} bytes, at most {MAX_FILE_BYTES:,} are read; no tokenizer is that large, "
                "copy it again from the source"
            )


def _nothing_found(folder: Path, names: set[str]) -> str:
    if "tokenizer.model" in names:
        return (
            f"{folder} has a sentencepiece tokenizer.model and no tokenizer.json; convert it once with: python -c "
            "\"from transformers import AutoTokenizer as T; T.from_pretrained('FOLDER').save_pretrained('OUT')\" "
            "and copy OUT/tokenizer.json beside it"
        )
    found = ", ".join(sorted(names)) or "none of its files"
    return (
        f"{folder} has no tokenizer: expected tokenizer.json, or vocab.json and merges.txt; found {found}; "
        "copy them from the base model that was fine-tuned"
    )


def _qwen2_from_parts(folder: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """Builds what transformers' Qwen2Tokenizer builds from vocab.json, merges.txt and the added tokens."""
    kind = config.get("tokenizer_class", "Qwen2Tokenizer")
    if kind not in ("Qwen2Tokenizer", "Qwen2TokenizerFast"):
        raise TokenizerError(
            f"{folder} has vocab.json and merges.txt of a {str(kind)[:60]}; only Qwen2Tokenizer is built from these, "
            "any other needs its tokenizer.json"
        )
    vocab = _read_json(folder / "vocab.json")
    try:
        check_vocabulary(vocab)
    except Unfit as error:
        raise TokenizerError(f"{folder / 'vocab.json'} is damaged: {error}") from error
    merges = _read_merges(folder / "merges.txt")
    model = called(TokenizerError, f"cannot read {folder / 'merges.txt'}", models.BPE, vocab, merges)
    inner = tokenizers.Tokenizer(model)
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(QWEN2_WORDS), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    _add_tokens(inner, folder, config)
    return inner


def _read_merges(file: Path) -> list[tuple[str, str]]:
    try:
        text = read_file(file, MAX_FILE_BYTES, TokenizerError).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{file} cannot be read ({error})") from error
    if text.count("\n") > MAX_TOKENS:
        raise TokenizerError(f"{file} has over {MAX_TOKENS:,} lines, no tokenizer has as many merges; copy it again")
    lines = text.split("\n")  # not splitlines: a merge may hold U+0085 or U+2028
    pairs = [line.rstrip("\r").split(" ") for line in lines if line.strip("\r") and not line.startswith("#version")]
    bad = next((pair for pair in pairs if len(pair) != 2 or not all(pair)), None)
    if bad is not None:
        raise TokenizerError(f"{file} is damaged: expected two tokens in each line, found {' '.join(bad)[:60]!r}")
    return [(left, right) for left, right in pairs]


def _add_tokens(inner: tokenizers.Tokenizer, folder: Path, config: dict[str, Any]) -> None:
    """Adds the declared tokens in the order of their ids, and checks that each got the id that was declared for it."""
    declared = _declared(folder, config)
    for special, tokens in groupby((token for _, token in sorted(declared.items())), lambda token: token.special):
        add = inner.add_special_tokens if special else inner.add_tokens
        called(TokenizerError, f"cannot add the tokens of {folder}", add, list(tokens))
    for id_, token in sorted(declared.items()):
        given = inner.token_to_id(token.content)
        if given != id_:
            raise TokenizerError(
                f"{folder} declares the added token {short(token.content)} with id {id_}, the vocabulary leads to "
                f"{given}; the ids must follow the vocabulary without a gap: save the tokenizer again as tokenizer.json"
            )


def _declared(folder: Path, config: dict[str, Any]) -> dict[int, tokenizers.AddedToken]:
    """Returns the added tokens of added_tokens.json and of tokenizer_config.json, which wins, by id."""
    declared: dict[int, tokenizers.AddedToken] = {}
    file = folder / "added_tokens.json"
    try:
        own, stated = _read_json(file) if file.is_file() else {}, config.get("added_tokens_decoder", {})
        check_added({"content": content, "id": int(id_)} for content, id_ in own.items())
        check_added({"content": entry["content"], "id": int(id_)} for id_, entry in stated.items())
        for content, id_ in own.items():
            declared[int(id_)] = tokenizers.AddedToken(content, special=content.startswith("<|"), normalized=False)
        for id_, entry in stated.items():
            flags = {key: bool(entry.get(key)) for key in ("lstrip", "rstrip", "single_word", "normalized", "special")}
            declared[int(id_)] = tokenizers.AddedToken(entry["content"], **flags)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise TokenizerError(
            f"the added tokens of {folder} are damaged ({repr(error)[:200]}); "
            "copy added_tokens.json and tokenizer_config.json again"
        ) from error
    return declared


def _bos(inner: tokenizers.Tokenizer, config: dict[str, Any]) -> int | None:
    """Returns the id that every sequence begins with, by the config where it says so, else by the post-processor."""
    begun = called(TokenizerError, "cannot tell what a text begins with", inner.encode, "").ids[:1]
    wanted = config.get("add_bos_token", str(config.get("tokenizer_class", "")).startswith("Llama") or None)
    if wanted is False:
        return None
    name = config.get("bos_token")
    name = name.get("content") if isinstance(name, dict) else name
    if wanted and isinstance(name, str):
        id_: int | None = inner.token_to_id(name)
        if id_ is None:
            raise TokenizerError(
                f"tokenizer_config.json begins texts with {short(name)}, which the tokenizer does not have"
            )
        return id_
    return begun[0] if begun else None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = parse(read_file(file, MAX_FILE_BYTES, TokenizerError), once=True)
    except ValueError as error:
        raise TokenizerError(f"{file} cannot be read as JSON ({error}); copy it again from the source") from error
    if not isinstance(found, dict):
        raise TokenizerError(f"{file} holds a {type(found).__name__}; expected a JSON object")
    return found
