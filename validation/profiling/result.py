"""What a profile found, as frozen data and as JSON (docs/profiling.md): no path, user or host in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastvlm import __version__
from fastvlm.errors import FastVLMError, ProcessError
from fastvlm.hashes import sha256_file
from fastvlm.manifest import NAME as MANIFEST
from validation.coreml.placement import FunctionPlan
from validation.machine import Machine
from validation.profiling.contender import Contender
from validation.profiling.rounds import Key, Measured
from validation.profiling.spread import Spread, digits
from validation.profiling.workload import PHOTO, TOKENS

SCHEMA = "0.1"
STAGES = (  # in the order of an answer
    "load_encoder", "load_encoder_core_ml", "load_language", "load_language_core_ml", "preprocess", "encode", "prefill",
    "first_token", "to_first_token", "decode",
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One stage of one contender. first: seconds the first time; spread: of all runs after it, seconds, None if none.

    position: how many positions of the context are filled, of `decode` alone.
    """

    name: str
    position: int | None
    first: float | None
    spread: Spread | None

    @property
    def title(self) -> str:
        """How a table calls it."""
        words = self.name.replace("_", " ").replace("core ml", "(Core ML alone)")
        return words if self.position is None else f"{words} at {self.position}"

    def as_json(self) -> dict[str, Any]:
        """The same as plain data, in seconds."""
        return {
            "stage": self.name,
            "position": self.position,
            "first": None if self.first is None else digits(self.first),
            "runs": None if self.spread is None else self.spread.as_json(),
        }


@dataclass(frozen=True)
class Failure:
    """A contender, or its compute plan, that ended early: at which stage, and how in one word."""

    contender: str
    stage: str
    kind: str  # the signal or exit code of a process, else the error's name
    message: str  # for a person; may hold paths, so it is not in the JSON

    @classmethod
    def of(cls, contender: str, stage: str, error: FastVLMError) -> Failure:
        """Why a contender ended early."""
        kind = error.ended if isinstance(error, ProcessError) else type(error).__name__
        return cls(contender, stage, kind, str(error))

    @property
    def told(self) -> str:
        """In one sentence, with the contender's name: where several run, an error alone does not tell whose it is."""
        text = " ".join(self.message.split())
        return text if text.startswith(self.contender) else f"{self.contender}, at stage {self.stage}: {text}"

    def as_json(self) -> dict[str, str]:
        """The same as plain data."""
        return {"contender": self.contender, "stage": self.stage, "kind": self.kind}


@dataclass(frozen=True)
class Result:
    """What was measured of one contender. plan: of Core ML, by function; None where it was not asked or failed."""

    contender: Contender
    stages: tuple[Stage, ...]
    memory: dict[str, int]
    plan: tuple[FunctionPlan, ...] | None = None

    def stage(self, name: str, position: int | None = None) -> Stage | None:
        """The stage of that name, None where it was not measured."""
        return next((each for each in self.stages if (each.name, each.position) == (name, position)), None)

    @property
    def lacking(self) -> tuple[str, ...]:
        """Parts that the build does not have."""
        build = self.contender.build
        parts = (("encoder", build.encoder is not None), ("language", bool(build.language)))
        return tuple(name for name, there in parts if not there)

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        contender, build = self.contender, self.contender.build
        return {
            "name": contender.name,
            "build": {
                "manifest_sha256": sha256_file(build.folder / MANIFEST),
                "image_size": contender.work.side or None,
                "context": build.context,
                "query": build.query,
                "lacking": list(self.lacking),
            },
            "backend": contender.backend,
            "compute_units": contender.compute_units,
            "device": None if contender.device is None else {"kind": contender.device.kind, "os": contender.device.os},
            "prompt_positions": contender.work.prompt,
            "stages": [stage.as_json() for stage in self.stages],
            "memory_bytes": self.memory or None,
            "plan": None if self.plan is None else [function.as_json() for function in self.plan],
        }


@dataclass(frozen=True)
class Profile:
    """All contenders on one machine; those that failed have what was measured before."""

    machine: Machine
    runs: int
    load_average: float  # of the minute before: processes that wanted to run; beyond 0.8, times are too long
    results: tuple[Result, ...]
    failures: tuple[Failure, ...]

    @property
    def keys(self) -> list[Key]:
        """Stage and position of all that was measured of any contender, in the order of an answer."""
        return in_order({(stage.name, stage.position) for result in self.results for stage in result.stages})

    @property
    def ratios(self) -> list[dict[Key, float]]:
        """For each contender and stage, its median over the first contender's; nothing where one of them has none."""
        first = self.results[0]
        return [dict(_ratios(first, result)) for result in self.results]

    def as_json(self) -> dict[str, Any]:
        """The whole profile (docs/profiling.md)."""
        return {
            "schema": SCHEMA,
            "fastvlm": __version__,
            "machine": self.machine.as_json(),
            "load_average": round(self.load_average, 2),
            "runs": self.runs,
            "photo": list(PHOTO),
            "tokens_per_position": TOKENS,
            "contenders": [result.as_json() for result in self.results],
            "ratios": [
                {
                    "contender": result.contender.name,
                    "to": self.results[0].contender.name,
                    "stages": [
                        {"stage": stage, "position": position, "ratio": digits(ratio)}
                        for (stage, position), ratio in ratios.items()
                    ],
                }
                for result, ratios in list(zip(self.results, self.ratios, strict=True))[1:]
            ],
            "failures": [failure.as_json() for failure in self.failures],
        }


def _ratios(first: Result, other: Result) -> Iterator[tuple[Key, float]]:
    for stage in other.stages:
        beside = first.stage(stage.name, stage.position)
        if stage.spread and beside and beside.spread and beside.spread.median > 0:
            yield (stage.name, stage.position), stage.spread.median / beside.spread.median


def stages_of(measured: Measured) -> tuple[Stage, ...]:
    """The stages of one contender, in the order of an answer."""
    return tuple(
        Stage(*key, measured.first.get(key), _spread(measured.runs.get(key, ())))
        for key in in_order({*measured.first, *measured.runs})
    )


def in_order(keys: Iterable[Key]) -> list[Key]:
    """Returns stages, each with its position, in the order of an answer."""
    return sorted(keys, key=lambda key: (STAGES.index(key[0]), key[1] or 0))


def _spread(seconds: Sequence[float]) -> Spread | None:
    return Spread.of(seconds) if seconds else None
