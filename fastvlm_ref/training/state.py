"""A run's state on the disk: written whole or not at all, and given back only to the run that it belongs to.

Notable choices:
- the state says what it was made from (hashes of the checkpoint and of the rows, or the recipe) beside the stage's
  settings; where either differs it is refused, never continued: the weights would be those of another command;
- the file is on the disk before it takes its name, so a run that is killed while saving loses nothing.
It does not know models: it keeps dictionaries of tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import torch

from fastvlm.errors import CheckpointError, OutputError
from fastvlm.paths import open_followed
from fastvlm.publish import staged_file
from fastvlm.quoting import first_line
from fastvlm_ref.training.stages import Stage

KINDS = {"stage": dict, "made_from": dict, "step": int, "parts": dict, "heads": dict, "adam": dict}
WORDS = {"pictures": "batch", "replicas": "batch", "vision_rate": "rate", "image_size": "image size"}  # as options say


class StateFile:
    """`work/<stage>.pt` of one run; `made_from` names and identifies everything that the weights depend on."""

    def __init__(self, work: Path, stage: Stage, made_from: Mapping[str, str]) -> None:
        self.path = work / f"{stage.name}.pt"
        self.stage, self.made_from = stage, dict(made_from)

    def save(self, step: int, parts: dict[str, Any], heads: dict[str, Any], adam: dict[str, Any]) -> None:
        """Replaces the file; raises OutputError where it cannot be written."""
        state = {
            "stage": asdict(self.stage), "made_from": self.made_from,
            "step": step, "parts": parts, "heads": heads, "adam": adam,
        }  # fmt: skip
        try:
            with staged_file(self.path) as stage, stage.open("xb") as file:
                torch.save(state, file)
        except (OSError, OutputError, RuntimeError) as error:  # torch's writer tells a full disk as RuntimeError
            raise OutputError(
                f"{self.path} cannot be written ({first_line(error)}); free some space or choose another --work folder"
            ) from error

    def leftover(self) -> str | None:
        """Says what an older version left that was killed while it saved; others may call a file so, thus it stays."""
        left = self.path.with_suffix(".new")
        if not left.is_file():
            return None
        return f"{left} looks like what an older fastvlm left when it was killed; nothing reads it, remove it by hand"

    def read(self) -> dict[str, Any] | None:
        """Returns the state, None where there is none; raises CheckpointError for damage and for another run's."""
        if not self.path.exists():
            return None
        with self.intact():
            with self._opened() as file:
                state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            self._check_kinds(state)
            changed = self._changed(state)
        if changed:
            raise CheckpointError(
                f"{self.path} belongs to a run of {self.stage.name} with other settings or data ({', '.join(changed)});"
                " to go on type that run's command, else choose another --work folder or remove this file"
            )
        with self.intact():
            if set(state["parts"]) != set(self.stage.trains) or not 0 <= state["step"] <= self.stage.last_step:
                raise ValueError(f"it holds step {state['step']} of {sorted(state['parts'])}")
        return state

    def _opened(self) -> BinaryIO:
        try:
            return open_followed(self.path)
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be read ({error.strerror}); remove it, or choose another --work folder"
            ) from error

    @contextmanager
    def intact(self) -> Iterator[None]:
        """Turns whatever a damaged or foreign file makes torch raise into one CheckpointError."""
        try:
            yield
        except (OSError, MemoryError, CheckpointError):
            raise
        except Exception as error:
            raise CheckpointError(
                f"{self.path} is damaged or no state of such a run ({first_line(error)}); remove it to start anew, or "
                "choose another --work folder"
            ) from error

    def remove(self) -> None:
        """Removes the file: its run is over."""
        self.path.unlink(missing_ok=True)

    def _check_kinds(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise TypeError(f"it holds a {type(state).__name__}")
        wrong = [name for name, kind in KINDS.items() if not isinstance(state.get(name), kind)]
        if wrong:
            raise ValueError(f"it has no {', '.join(wrong)}")

    def _changed(self, state: dict[str, Any]) -> list[str]:
        """What differs from this run, in the words of the options."""
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in state["stage"].items()}
        found, expected = {**settings, **state["made_from"]}, {**asdict(self.stage), **self.made_from}
        names = [key for key in {**expected, **found} if found.get(key) != expected.get(key)]
        return sorted({WORDS.get(name, str(name)) for name in names})
