"""Writes the worked numbers of docs/host-contract.md: `python docs/generate_host_contract.py`.

They are what the numpy host (validation/bundle_host) computes for the self-test of a bundle of the embedded checkpoint.
What stands between `<!-- NAME -->` and `<!-- /NAME -->` is generated, the rest is written by hand; a test compares the
two, numbers with a point within a few hundredths.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from textwrap import wrap
from typing import Any

from pages import filled, table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "host-contract.md"
WIDTH = 136  # columns of the page's text


def render(page: str, bundle: Path) -> str:
    """The page with its numbers made anew from a bundle of the embedded checkpoint."""
    worked = Worked(bundle)
    return filled(page, ((name, lines(worked)) for name, lines in BLOCKS.items()))


class Worked:
    """The host with the bundle's own example, and what it computes for it, each once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[tuple[str, int, int]] = []  # function, position, real rows

    @cached_property
    def host(self) -> Any:
        """The host, whose calls are kept."""
        from validation.bundle_host.host import Host

        host = Host(self.folder)
        call = host.call

        def kept(name: str, position: int, rows: Any) -> Any:
            self.calls.append((name, position, len(rows)))
            return call(name, position, rows)

        host.call = kept  # type: ignore[method-assign]
        return host

    @cached_property
    def example(self) -> dict[str, Any]:
        """selftest.json."""
        content: dict[str, Any] = json.loads((self.folder / "selftest" / "selftest.json").read_bytes())
        return content

    @cached_property
    def photo(self) -> Any:
        """RGB (height, width, 3) of the photo."""
        from validation.bundle_host.picture import open_photo

        return open_photo(self.folder / "selftest" / "photo.png")

    @cached_property
    def pixels(self) -> Any:
        """RGB (N, N, 3) of the photo."""
        from validation.bundle_host.picture import square

        return square(self.photo, self.host.size, self.host.get("vision.image_strategy", str))

    @cached_property
    def ids(self) -> tuple[list[int], list[int]]:
        """The prompt's ids, before the image and after it."""
        found: tuple[list[int], list[int]] = self.host.prompt.ids(self.example["prompt"])
        return found

    @cached_property
    def picture(self) -> Any:
        """RGB (N, N, 3) of the picture that is asked about."""
        from validation.bundle_host.picture import open_photo

        return open_photo(self.folder / "selftest" / "picture.png")

    @cached_property
    def tokens(self) -> Any:
        """Its image tokens (T, H)."""
        return self.host.features(self.picture)

    @cached_property
    def steps(self) -> list[Any]:
        """The logits (V,) of every greedy step."""
        return list(self.host.steps(self.picture, self.ids, len(self.example["greedy_ids"])))

    @property
    def positions(self) -> int:
        """S."""
        return len(self.ids[0]) + len(self.tokens) + len(self.ids[1])


def letters(worked: Worked) -> Iterator[str]:
    """What the letters are in the example."""
    host = worked.host
    text = (
        f"In the example N is {host.size}, T {len(worked.tokens)}, V {host.vocabulary}, H {worked.tokens.shape[1]}, "
        f"D {host.width}, C {host.context}, Q {host.query} and S {worked.positions}; `language.rope_theta` is "
        f"{host.theta:,.0f}, `language.mask_value` {host.masked:,.0f}, `vision.image_strategy` "
        f"`{host.get('vision.image_strategy', str)}`."
    )
    yield from ("", *wrap(text, WIDTH))


def functions(worked: Worked) -> Iterator[str]:
    """Every function with what it takes and gives, and the state."""
    host = worked.host
    rows = [(host.get("assets.vision", str), host.get("vision.functions", dict))]
    rows += [(host.get(f"{stage}.asset", str), host.get(f"{stage}.functions", dict)) for stage in host.stages]
    state = host.get("language.chain.0.state", dict)
    yield ""
    yield from table(
        ("asset", "function", "takes", "gives"),
        (
            (f"`{asset}`", f"`{name}`", _features(each["inputs"]), _features(each["outputs"]))
            for asset, held in rows
            for name, each in held.items()
        ),
    )
    yield ""
    yield f"State of `{rows[1][0]}`: {_features([state])}."


def _features(features: Iterable[dict[str, Any]]) -> str:
    return "; ".join(f"`{each['name']}` {each['dtype']} {each['shape']}" for each in features)


def photo(worked: Worked) -> Iterator[str]:
    """The photo as it is decoded."""
    pixels = worked.photo
    yield from block(
        f"selftest/photo.png      {pixels.shape[1]} × {pixels.shape[0]}, RGB, upright",
        f"first and last pixel    {pixels[0, 0].tolist()} {pixels[-1, -1].tolist()}",
        f"sha256 of its bytes     {digest(pixels)}",
    )


def resize(worked: Worked) -> Iterator[str]:
    """Weights and pixels of the resized photo."""
    side, size = max(worked.photo.shape[:2]), worked.host.size
    offsets = [(side - length) // 2 for length in worked.photo.shape[1::-1]]
    lines = [f"square side             {side}; the picture begins at column {offsets[0]}, row {offsets[1]}"]
    for place in (0, size // 2):
        low, codes = weights(place, side, size)
        lines.append(
            f"codes of new place {place:<4} {', '.join(map(str, codes))} for places {low} … {low + len(codes) - 1}"
        )
    middle = worked.pixels[size // 2]
    yield from block(
        *lines,
        f"row {size // 2}, first pixels   {' '.join(str(pixel.tolist()) for pixel in middle[:4])}",
        f"its middle pixel        {middle[size // 2].tolist()}",
        f"sha256 of N·N·3 bytes   {digest(worked.pixels)}",
    )


def weights(place: int, source: int, size: int) -> tuple[int, list[int]]:
    """The first place and the whole numbers of step 3, as the page's text says it."""
    scale = source / size
    wide = max(scale, 1.0)
    centre = (place + 0.5) * scale
    low, high = max(0, int(centre - 2 * wide + 0.5)), min(source, int(centre + 2 * wide + 0.5))
    found, total = [], 0.0
    for at in range(low, high):
        x = abs((at - centre + 0.5) * (1 / wide))
        near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
        found.append(near if x < 1 else far if x < 2 else 0.0)
        total += found[-1]
    return low, [int(weight / total * 2**22 + (0.5 if weight >= 0 else -0.5)) for weight in found]


def tokens(worked: Worked) -> Iterator[str]:
    """The image tokens of the picture."""
    found = worked.tokens
    yield from block(
        f"sha256 of its bytes     {digest(worked.picture)}",
        f"image tokens            [1, {found.shape[0]}, {found.shape[1]}]",
        f"token 0 begins          {values(found[0, :6])}",
        f"token {len(found) - 1} begins         {values(found[-1, :6])}",
    )


def ids(worked: Worked) -> Iterator[str]:
    """The template, its controls, and the ids of the prompt."""
    from fastvlm.tokenizer_room import Room

    prompt = worked.host.prompt
    record = worked.host.get("prompt", dict)
    shown = {name: json.dumps(record[name]) for name in ("system_turn", "before", "after", "system")}
    yield from block(
        *(f"{name:<23} {text}" for name, text in shown.items()),
        f"controls                {', '.join(f'{name} is {id_}' for name, id_ in prompt.controls.items())}",
        f"bos_id, stop_ids        {json.dumps(record['bos_id'])}, {sorted(prompt.stops)}",
        f"the user's text         {worked.example['prompt']}",
        f"ids before the image    {worked.ids[0]}",
        f"ids after it            {worked.ids[1]}",
        f"typed by a user         <|im_end|> gives {list(prompt._plain('<|im_end|>', Room(prompt.growth)))}",
    )


def rows(worked: Worked) -> Iterator[str]:
    """The rows of embeddings, and how many positions there are."""
    before, after = worked.ids
    found = worked.host.embed([*before, *after])
    yield from block(
        f"S                       {len(before)} + {len(worked.tokens)} + {len(after)} = {worked.positions}",
        f"row of id {before[0]:<13} {values(found[0, :6])}",
        f"row of id {after[-1]:<13} {values(found[-1, :6])}",
        f"sha256 of the rows      {digest(found)}, those of the ids alone, [{len(found)}, {found.shape[1]}]",
    )


def calls(worked: Worked) -> Iterator[str]:
    """Which calls fill which positions."""
    count = len(worked.steps)
    yield ""
    yield from table(
        ("call", "begins at", "real rows", "padding"),
        (
            (f"`{name}`", str(position), str(real), str((worked.host.query if name == "prefill" else 1) - real))
            for name, position, real in worked.calls[: len(worked.calls) - count + 2]
        ),
    )
    yield ""
    yield (
        f"`decode` at {worked.positions - 1} gives the logits of the answer's first id; {count - 1} more calls follow, "
        "one for each further id."
    )


def inputs(worked: Worked) -> Iterator[str]:
    """Angles and masks of some calls."""
    import numpy as np

    host, last = worked.host, worked.positions - 1
    cos, sin = (each[0, 0, 0] for each in host.rope(last, 1))
    angle = np.float32(last) * np.float32(host.theta) ** -(np.arange(0, host.width, 2, dtype=np.float32) / host.width)
    half = host.width // 2
    lines = [
        f"p {last}, j {j:<14} angle {angle[j % half]:.4g}, ropeCos {cos[j]:.4g}, ropeSin {sin[j]:.4g}"
        for j in (0, 1, half - 1, half)
    ]
    real = min(host.query, last)
    mask = host.mask(0, real, host.query)[0, 0]
    for row in sorted({0, 1, real - 1, host.query - 1}):
        zeros, rest = int((mask[row] == 0).sum()), mask[row, -1]
        lines.append(f"prefill at 0, row {row:<5} zeros at columns 0 … {zeros - 1}, all else {rest:.0f}")
    seen = int((host.mask(last, 1, 1) == 0).sum())
    yield from block(*lines, f"decode at {last:<13} zeros at columns 0 … {seen - 1}")


def chain(worked: Worked) -> Iterator[str]:
    """The packages called, and the best logits of the first step."""
    best = worked.steps[0].argsort()[::-1][:8]
    yield from block(
        f"assets called           {', '.join(worked.host.all('language.chain', str, '.asset'))}",
        f"first step, eight best  {', '.join(f'{i}: {worked.steps[0][i]:.3g}' for i in best)}",
    )


def answer(worked: Worked) -> Iterator[str]:
    """Ids, pieces and text of the answer."""
    said = [int(logits.argmax()) for logits in worked.steps]
    stops = worked.host.prompt.stops
    kept = [id_ for id_ in said if id_ not in stops]
    pieces = list(worked.host.prompt.text(kept))
    yield from block(
        f"ids                     {said}",
        f"pieces                  {json.dumps([piece for piece in pieces if piece])}",
        f"text                    {''.join(pieces)}",
        f"ends                    with {said[-1]}, a stop id"
        if said[-1] in stops
        else "ends                    at its length",
    )


def selftest(worked: Worked) -> Iterator[str]:
    """What the self-test compares with what."""
    held = worked.example["tolerances"]
    least, most = held["features_psnr_db"], held["logit_error_over_spread"]
    yield ""
    yield from table(
        ("step", "compare", "with", "allowed"),
        (
            ("2, 3", "SHA-256 of the bytes made of `photo.file`, for each size", "`photo.pixels_sha256`", "equal"),
            ("4", "SHA-256 of the bytes of `picture`", "`pixels_sha256`", "equal"),
            ("4", "its image tokens: PSNR, 20·log10(max abs ref / RMSE)", "`features.file`", f"≥ {least:g} dB here"),
            ("5", "ids of `prompt` and of all prompts.json", "`ids_before_image`, `ids_after_image`", "equal"),
            ("6", "SHA-256 of the rows of both rows of ids, joined, fp16", "`rows_sha256`", "equal"),
            ("7 to 9", "logits of each step", "`top_logits`, `spreads`", f"error ≤ {most:g} here"),
            ("10", "the likeliest id of each step", "`greedy_ids`", "equal, but for ties"),
        ),
    )  # fmt: skip


BLOCKS: dict[str, Callable[[Worked], Iterator[str]]] = {
    each.__name__: each
    for each in (letters, functions, photo, resize, tokens, ids, rows, calls, inputs, chain, answer, selftest)
}


def block(*lines: str) -> Iterator[str]:
    """Lines as they are, in a fenced block."""
    yield from ("```text", *lines, "```")


def values(numbers: Iterable[Any]) -> str:
    """Numbers to three significant digits, each with a point: a test compares them within a tolerance."""
    return ", ".join(_pointed(f"{float(number):.3g}") for number in numbers)


def _pointed(text: str) -> str:
    return text if "." in text or "e" in text else f"{text}.0"


def digest(array: Any) -> str:
    """The SHA-256 of an array's bytes."""
    return sha256(array.tobytes()).hexdigest()


def make_bundle(folder: Path) -> Path:
    """Makes the bundle of the embedded checkpoint that the page speaks of."""
    from export import export
    from ios_bundle import bundle
    from validation import validate

    build = export("tiny", folder / "build")
    assert validate(build).passed
    return bundle(build, folder / "tiny-256")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as place:
        PAGE.write_text(render(PAGE.read_text("utf-8"), make_bundle(Path(place))), "utf-8")
