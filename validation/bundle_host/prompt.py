"""Prompt → ids before and after the image, and ids → text, by tokenizer.json and the template of metadata.json.

A template is cut at its control tokens before user text enters, and each run of text is encoded by itself, past the
step that looks for control tokens: nothing that a user types becomes one.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import tokenizers

from fastvlm.errors import BundleError, PromptError
from validation.bundle_host.bundle import Bundle


class Prompt:
    """The bundle's tokenizer with its template; `stops` are the ids that end an answer."""

    def __init__(self, bundle: Bundle) -> None:
        file = bundle.path(bundle.get("files.tokenizer", str))
        try:
            self.tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises plain Exception, and its panics are not even that
            raise BundleError(f"{file} is no tokenizer that can be read ({error}); copy the bundle again") from error
        self.turns = {key: bundle.get(f"prompt.{key}", str) for key in ("system", "system_turn", "before", "after")}
        bos, self.stops = bundle.get("prompt.bos_id", object), bundle.all("prompt.stop_ids", object)
        self.begin = [] if bos is None else [bos]
        names = sorted(bundle.all("prompt.controls", str), key=len, reverse=True)
        self.controls: dict[str, Any] = {name: self.tokenizer.token_to_id(name) for name in names}
        if None in self.controls.values():
            raise BundleError(f"{file} lacks one of the template's tokens {names}; make the bundle again")

    def ids(self, text: str) -> tuple[list[int], list[int]]:
        """Returns (ids before the image, ids after it) of the user's text; PromptError where it is empty."""
        if not text.strip():
            raise PromptError("the prompt is empty; type a question, for example 'Describe the image.'")
        turns, values = self.turns, {"{system}": self.turns["system"], "{prompt}": text}
        before = (turns["system_turn"] if turns["system"] else "") + turns["before"]
        return self.begin + list(self._turn(before, values)), list(self._turn(turns["after"], values))

    def _turn(self, turn: str, values: dict[str, str]) -> Iterator[int]:
        for run in re.split(f"({'|'.join(map(re.escape, self.controls))})", turn) if self.controls else [turn]:
            filled = re.sub(r"\{system\}|\{prompt\}", lambda found: values[found.group()], run)
            yield from [self.controls[run]] if run in self.controls else self._plain(filled)

    def _plain(self, text: str) -> Iterator[int]:
        """Ids by the tokenizer's normalizer, splitter and model alone; a lone surrogate, which has no bytes, is "?"."""
        normalizer, splitter = self.tokenizer.normalizer, self.tokenizer.pre_tokenizer
        text = text.encode("utf-8", "replace").decode("utf-8")
        text = normalizer.normalize_str(text) if normalizer else text
        for word, _ in splitter.pre_tokenize_str(text) if splitter else [(text, None)]:
            yield from (token.id for token in self.tokenizer.model.tokenize(word))

    def text(self, ids: Iterable[int]) -> Iterator[str]:
        """Yields the text of ids piece by piece; a character waits for its last byte."""
        seen: list[int] = []
        whole, sent = "", 0
        for id_ in ids:
            seen.append(id_)
            whole = self.tokenizer.decode(seen, skip_special_tokens=True)
            if not whole.endswith("\ufffd") and not re.fullmatch("<0x..>", self.tokenizer.id_to_token(id_) or ""):
                yield whole[sent:]
                sent = len(whole)
        yield whole[sent:]
