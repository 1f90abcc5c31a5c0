"""What a checkpoint states besides its sizes: image side and rule, conversation template, stop ids, licence.

Each reader returns a value and, where the checkpoint is silent, the sentence that tells what was assumed; the
caller's own choice wins and is not an assumption. A statement that this project cannot honour is an error.
It does not know tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastvlm.errors import ConfigError
from fastvlm.quoting import short
from fastvlm_ref.checkpoint.folder import read_json, read_text
from fastvlm_ref.checkpoint.source import licence_files
from fastvlm_ref.checkpoint.text_config import LARGEST, LLAMA, OTHER_CONFIG, text_section
from fastvlm_ref.config import IMAGE_TOKEN, LARGEST_SIDE
from fastvlm_ref.prompt import find_template, template_option

RULES = ("pad", "crop")
STRIDE = 64
AMLR = "apple-amlr"
BICUBIC = 3  # Pillow's number
SYSTEM_TURN = re.compile(r"(['\"]?)<\|im_start\|>system(?:\\n|\n)")
MOST_ENDS = 64  # ids that end an answer; released models state one or two
ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}  # of a Jinja string; any other escaped character is itself


@dataclass
class Statements:
    """A checkpoint's side files, read once, and the sentences gathered while reading them."""

    folders: tuple[Path, ...]  # an adapter's own folder stands before its base's
    config: Mapping[str, Any]
    layout: str
    family: str
    assumed: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raises ConfigError for every statement about how image and text meet that the model here does not do."""
        supported: tuple[tuple[str, tuple[Any, ...]], ...] = (
            ("mm_projector_type", (None, "mlp2x_gelu")),
            ("projector_hidden_act", (None, "gelu")),
            ("mm_use_im_start_end", (None, False)),
            ("mm_patch_merge_type", (None, "flat")),
            ("vision_feature_layer", (None, -1)),
            ("vision_feature_select_strategy", (None, "full")),
        )
        problems = [
            f"{name} is {short(self.config[name])}, supported is {values[-1]!r}"
            for name, values in supported
            if self.config.get(name) not in values
        ]
        if problems:
            raise ConfigError(f"config.json cannot be used: {'; '.join(problems)}; {OTHER_CONFIG}")

    def _find(self, name: str) -> Path | None:
        return next((folder / name for folder in self.folders if (folder / name).is_file()), None)

    def _side(self, name: str) -> dict[str, Any]:
        path = self._find(name)
        return read_json(path) if path is not None else {}

    def preprocessor(self) -> dict[str, Any]:
        """Returns preprocessor_config.json, or the image part of processor_config.json, or {}."""
        found = self._side("preprocessor_config.json")
        if found:
            return found
        inner = self._side("processor_config.json").get("image_processor")
        return dict(inner) if isinstance(inner, dict) else {}

    def image_size(self) -> int:
        """Returns the image side N: the vision tower's name, else the preprocessor, else the config, else 1024."""
        tower = self.config.get("mm_vision_tower")
        if isinstance(tower, str) and (found := re.search(r"_(\d+)/?$", tower)):
            return _side(int(found[1][:9]), f"mm_vision_tower {tower[:60]!r}")  # int() refuses thousands of digits
        size = self.preprocessor()
        for name in ("crop_size", "size"):
            if (side := _square(size.get(name), f"preprocessor_config.json's {name}")) is not None:
                return side
        vision = self.config.get("vision_config")
        if isinstance(vision, Mapping):
            arguments = vision.get("model_args")
            for section in (vision, arguments if isinstance(arguments, Mapping) else {}):
                for name in ("image_size", "img_size"):
                    if (side := _square(section.get(name), f"config.json's {name}")) is not None:
                        return side
        self.assumed.append("the checkpoint states no image size: 1024 assumed")
        return 1024

    def image_rule(self, asked: str | None) -> str:
        """Returns `pad` or `crop`; `asked` wins. Raises ConfigError for a rule or values that cannot be honoured."""
        self._check_values()
        if asked is not None:
            if asked not in RULES:
                raise ConfigError(f"the image rule is {asked!r}, known are {', '.join(RULES)}")
            return asked
        stated = self.config.get("image_aspect_ratio")
        if stated == "pad":
            return "pad"
        if stated in ("square", "crop"):
            return "crop"  # LLaVA hands such images to its CLIP processor: shortest edge, centre crop
        if stated is not None:
            raise ConfigError(
                f"config.json has image_aspect_ratio {short(stated)}, supported are pad and square; "
                "choose with --image-rule pad or --image-rule crop"
            )
        if self.layout == "hf":
            return self._hugging_face_rule()
        self.assumed.append("the checkpoint states no image rule: pad assumed, as Apple's predict.py does")
        return "pad"

    def _hugging_face_rule(self) -> str:
        stated = self.preprocessor()
        if stated.get("do_pad") and not stated.get("do_center_crop"):
            return "pad"
        if stated.get("do_center_crop"):
            return "crop"
        self.assumed.append("the checkpoint states no image rule: crop assumed, as the Hugging Face port does")
        return "crop"

    def _check_values(self) -> None:
        """Raises ConfigError where the preprocessor's numbers are not those of the exported graph (1/255, no bias)."""
        stated = self.preprocessor()
        problems = []
        if stated.get("do_normalize", True):
            for name, value in (("image_mean", 0), ("image_std", 1)):
                found = stated.get(name)
                if found is not None and any(item != value for item in (found if isinstance(found, list) else [found])):
                    problems.append(f"{name} is {short(found)}, supported is {value} for every channel")
        factor = stated.get("rescale_factor", 1 / 255)
        if (
            stated.get("do_rescale", True) is False
            or not isinstance(factor, (int, float))
            or not abs(factor * 255 - 1) <= 1e-6
        ):
            problems.append(
                f"do_rescale/rescale_factor is {short(stated.get('do_rescale', True))}/{short(factor)}, "
                "supported is 1/255"
            )
        if problems:
            raise ConfigError(f"preprocessor_config.json cannot be honoured: {'; '.join(problems)}")
        if stated.get("resample", BICUBIC) != BICUBIC:
            self.assumed.append(
                f"preprocessor_config.json asks for resample {short(stated['resample'])}: bicubic (3) is used"
            )

    def chat_template(self) -> str:
        """Returns the text of the stored chat template, or an empty one."""
        path = self._find("chat_template.jinja")
        if path is not None:
            return read_text(path)
        for name in ("chat_template.json", "tokenizer_config.json"):
            found = self._side(name).get("chat_template")
            if isinstance(found, str):
                return found
        return ""

    def template(self, asked: str | None) -> str:
        """Returns what `PromptConfig.template` holds; `asked` (a name or a file) wins."""
        if asked is not None:
            return template_option(asked)
        text = self.chat_template()
        if "<|im_start|>" in text:
            return "qwen_2"
        if "USER:" in text and "ASSISTANT:" in text:
            return "vicuna_v1"
        name = "vicuna_v1" if self.family == LLAMA else "qwen_2"
        stated = "a chat template that is none of those known (give one by --template)" if text else "no chat template"
        self.assumed.append(f"the checkpoint states {stated}: {name} assumed for a {self.family} decoder")
        return name

    def system(self, asked: str | None, template: str) -> str | None:
        """Returns the system text, None for the template's own; `asked` wins."""
        if asked is not None:
            return asked
        stated = system_literal(self.chat_template()) if template == "qwen_2" else None
        if stated is not None:
            return stated
        self.assumed.append(
            f"the checkpoint states no fixed system text: that of {find_template(template).name} assumed; "
            "give another with --system"
        )
        return None

    def end_ids(self) -> list[int]:
        """Returns the ids that generation_config.json and config.json name as the end, in that order, once each.

        Raises ConfigError for what is no id, and for more than `MOST_ENDS` of them.
        """
        found: list[int] = []
        for section in (self._side("generation_config.json"), self.config, text_section(self.config)):
            value = section.get("eos_token_id")
            stated = value if isinstance(value, list) else [] if value is None else [value]
            if len(stated) > MOST_ENDS or not all(map(_is_id, stated)):
                raise ConfigError(
                    f"eos_token_id is {short(value)}, expected at most {MOST_ENDS} whole numbers from 0 to {LARGEST}"
                )
            found += stated
        return list(dict.fromkeys(found))

    def image_token_id(self) -> int:
        """Returns the id that marks the image in a prompt: −200 in LLaVA, 151646 in Hugging Face ports."""
        for name in ("image_token_index", "image_token_id"):
            value = self.config.get(name)
            if value is not None and value != IMAGE_TOKEN and not _is_id(value):
                raise ConfigError(
                    f"{name} is {short(value)}, expected {IMAGE_TOKEN} or a whole number from 0 to {LARGEST}"
                )
            if value is not None:
                return int(value)
        return IMAGE_TOKEN

    def licence(self) -> str:
        """Returns the licence's short name from README.md's front matter or a LICENSE file, or `unknown`.

        Apple's model licence covers whatever is made from the weights, so a base's outlives an adapter's own.
        """
        found = [name for folder in self.folders if (name := _folder_licence(folder))]
        if not found:
            self.assumed.append("the checkpoint states no licence: the build says unknown, the weights' own terms hold")
        return AMLR if AMLR in found else next(iter(found), "unknown")


def system_literal(template: str) -> str | None:
    """Returns the default system text of a Jinja chat template, None where there is none that is one literal.

    Inside a quoted Jinja literal backslashes escape, outside of `{{ }}` they do not; text that is put together from
    variables is no literal.
    """
    for quote, text in _system_texts(template):
        if quote and re.fullmatch(rf"(?:[^{quote}\\]|\\.)*", text, re.DOTALL):
            return re.sub(r"\\(.)", lambda escape: ESCAPES.get(escape[1], escape[1]), text, flags=re.DOTALL)
        if not quote and not set(text) & set("{}"):
            return text
    return None


def _system_texts(template: str) -> Iterator[tuple[str, str]]:
    """Gives (quote before it, text) of every system turn; one pass, however many begin and never end."""
    end = 0
    while begun := SYSTEM_TURN.search(template, end):
        last = template.find("<|im_end|>", begun.end() + 1)
        if last < 0:
            return
        yield begun[1], template[begun.end() : last]
        end = last + len("<|im_end|>")


def _folder_licence(folder: Path) -> str | None:
    readme = folder / "README.md"
    if readme.is_file() and (name := _front_matter_licence(read_text(readme))):
        return name
    # A NOTICE speaks of other people's licences as well.
    texts = (read_text(path) for path in licence_files(folder) if not path.name.upper().startswith("NOTICE"))
    return next((name for text in texts if (name := _licence_of(text))), None)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _side(value: int, where: str) -> int:
    if value < STRIDE or value % STRIDE or value > LARGEST_SIDE:
        raise ConfigError(
            f"{where} states an image side of {short(value)}, expected a multiple of {STRIDE} up to {LARGEST_SIDE}"
        )
    return value


def _square(value: Any, where: str) -> int | None:
    """Returns the one side that a preprocessor's size states (a number, {height, width} or {shortest_edge})."""
    if isinstance(value, Mapping):
        sides = {value[name] for name in ("height", "width", "shortest_edge") if isinstance(value.get(name), int)}
        if len(sides) > 1:
            raise ConfigError(f"{where} is {short(dict(value))}, expected a square")
        value = sides.pop() if sides else None
    if value is None or isinstance(value, bool) or not isinstance(value, int):
        return None
    return _side(value, where)


def _front_matter_licence(text: str) -> str | None:
    front = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    if not front:
        return None
    stated = dict(re.findall(r"^(license|license_name)\s*:\s*[\"']?([\w.\-+]+)", front[1], re.MULTILINE))
    return stated.get("license_name") or (stated.get("license") if stated.get("license") != "other" else None)


def _licence_of(text: str) -> str | None:
    head = text[:4000]
    if "Apple Machine Learning Research Model" in text:
        return AMLR
    if "Apache License" in head and "Version 2.0" in head:
        return "apache-2.0"
    if "Permission is hereby granted, free of charge" in head:
        return "mit"
    return None
