"""Prompt → ids before and after the image, ids → text; nothing that a user types becomes a control token."""

import re
from collections.abc import Iterable, Iterator

import tokenizers

from fastvlm.errors import BundleError
from fastvlm.tokenizer_json import MAX_RUN_BYTES, called, check_length, check_text, growth_of, read_tokenizer
from fastvlm.tokenizer_room import Room
from validation.bundle_host.bundle import Bundle


class Prompt:
    """The bundle's tokenizer with its template; `stops` are the ids that end an answer."""

    def __init__(self, bundle: Bundle) -> None:
        file = bundle.folder / (name := bundle.get("files.tokenizer", str))
        content, _ = read_tokenizer(file, BundleError, lambda _: bundle.open(name))
        self.tokenizer = called(BundleError, f"cannot read {file}", tokenizers.Tokenizer.from_str, content)
        self.growth = growth_of(self.tokenizer)
        self.turns = {key: bundle.get(f"prompt.{key}", str) for key in ("system", "system_turn", "before", "after")}
        turns = self.turns["before"] + self.turns["after"]
        one, turns = turns.count("{prompt}") == 1, turns + self.turns["system_turn"]
        if not one or len(turns) > 1 << 16 or turns.count("{system}") * len(self.turns["system"]) > MAX_RUN_BYTES:
            raise BundleError(f"metadata.json of {bundle.folder}: its turns are no template; make the bundle again")
        self.begin = [] if bundle.get("prompt", dict).get("bos_id") is None else [bundle.get("prompt.bos_id", int, 0)]
        self.stops = bundle.all("prompt.stop_ids", int, low=0)
        names = sorted(bundle.all("prompt.controls", str), key=len, reverse=True)
        ids = {token.content: id_ for id_, token in self.tokenizer.get_added_tokens_decoder().items()}
        if not {*names} <= {*ids}:
            raise BundleError(f"{file} lacks one of the template's tokens {names!r:.60}; make the bundle again")
        self.controls, self.added = {name: ids[name] for name in names}, {*ids.values()}

    def ids(self, text: str) -> tuple[list[int], list[int]]:
        """Returns (ids before the image, ids after it) of the user's text; PromptError where it is empty or long."""
        check_text(text)
        turns, values, room = self.turns, {"{system}": self.turns["system"], "{prompt}": text}, Room(self.growth)
        before = (turns["system_turn"] if turns["system"] else "") + turns["before"]
        return self.begin + list(self._turn(before, values, room)), list(self._turn(turns["after"], values, room))

    def _turn(self, turn: str, values: dict[str, str], room: Room) -> Iterator[int]:
        for run in re.split(f"({'|'.join(map(re.escape, self.controls))})", turn) if self.controls else [turn]:
            filled = re.sub(r"\{system\}|\{prompt\}", lambda found: values[found.group()], run)
            yield from [self.controls[run]] if run in self.controls else self._plain(filled, room)

    def _plain(self, text: str, room: Room) -> Iterator[int]:
        """Ids of text that is not looked through for control tokens; a lone surrogate becomes "?"."""
        check_length(text := text.encode("utf-8", "replace").decode("utf-8"), MAX_RUN_BYTES)
        for id_ in called(BundleError, "cannot encode this text", self._plain_ids, text, room):
            if id_ in self.added:
                raise BundleError(
                    f"plain text became the control token {self.tokenizer.id_to_token(id_):.60}; take ordinary words "
                    "out of added_tokens in the checkpoint's tokenizer.json, export and bundle it again"
                )
            yield id_

    def _plain_ids(self, text: str, room: Room) -> list[int]:
        text, splitter = room.normal(text, self.tokenizer.normalizer), self.tokenizer.pre_tokenizer
        words = splitter.pre_tokenize_str(text) if splitter else [(text, None)]
        return [token.id for word, _ in words for token in self.tokenizer.model.tokenize(word)]

    def text(self, ids: Iterable[int]) -> Iterator[str]:
        """Yields the text of ids piece by piece; a character waits for its last byte."""
        seen, whole, sent, room = list[int](), "", 0, Room(self.growth)
        for id_ in ids:
            seen.append(room.token(id_, self.tokenizer))
            whole = called(BundleError, "cannot decode its ids", self.tokenizer.decode, seen, True)
            if not whole.endswith("\ufffd") and not re.fullmatch("<0x..>", self.tokenizer.id_to_token(id_) or ""):
                yield whole[sent:]
                sent = len(whole)
        yield whole[sent:]
