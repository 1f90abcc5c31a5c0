"""Prompt → ids before and after the image, ids → text; nothing that a user types becomes a control token."""

import re
from collections.abc import Iterable, Iterator

import tokenizers

from fastvlm.errors import BundleError, PromptError
from validation.bundle_host.bundle import Bundle


class Prompt:
    """The bundle's tokenizer with its template; `stops` are the ids that end an answer."""

    def __init__(self, bundle: Bundle) -> None:
        with bundle.open(file := bundle.get("files.tokenizer", str)) as opened:
            data = opened.read()
        try:
            self.tokenizer = tokenizers.Tokenizer.from_buffer(data)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises plain Exception, and its panics are not even that
            raise BundleError(f"{file} is no tokenizer that can be read ({error}); copy the bundle again") from error
        self.turns = {key: bundle.get(f"prompt.{key}", str) for key in ("system", "system_turn", "before", "after")}
        places = sum(text.count("{") for key, text in self.turns.items() if key != "system")
        if places > 8 or max(map(len, self.turns.values())) > 1 << 16:  # each would hold all of the user's text
            raise BundleError("the template has over 8 places to fill, or 65,536 characters; make the bundle again")
        self.begin = [] if bundle.get("prompt", dict).get("bos_id") is None else [bundle.get("prompt.bos_id", int, 0)]
        self.stops = bundle.all("prompt.stop_ids", int, low=0)
        names = sorted(bundle.all("prompt.controls", str), key=len, reverse=True)
        added = self.tokenizer.get_added_tokens_decoder()
        self.special = {id_ for id_ in added if added[id_].special}
        ids = {token.content: id_ for id_, token in added.items()}
        if not {*names} <= {*ids}:
            raise BundleError(f"{file} lacks one of the template's tokens {names}; make the bundle again")
        self.controls = {name: ids[name] for name in names}

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
        """Ids by normalizer, splitter and model, past what looks for control tokens; a lone surrogate becomes "?"."""
        normalizer, splitter = self.tokenizer.normalizer, self.tokenizer.pre_tokenizer
        text = text.encode("utf-8", "replace").decode("utf-8")
        text = normalizer.normalize_str(text) if normalizer else text
        for word, _ in splitter.pre_tokenize_str(text) if splitter else [(text, None)]:
            for token in self.tokenizer.model.tokenize(word):
                if token.id in self.special:
                    raise BundleError(f"plain text became the control token {token.value}; use another tokenizer")
                yield token.id

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
