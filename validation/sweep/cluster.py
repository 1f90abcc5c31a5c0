"""Workers as tasks of a Ray cluster that is running: `--ray ADDRESS`, with `pip install 'fastvlm-coreml[ray]'`.

Ray starts a task again whose worker or machine died, three times in all as here. Every machine needs this package in
the same version and sees the sweep's folder and the checkpoints under the same names, as a shared disk gives it; a
machine that does not is told by its tasks.
It does not know what is done: `working` does.
"""

from __future__ import annotations

import importlib.util
import logging
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from fastvlm import __version__
from fastvlm.errors import FastVLMError, MissingDependency, ProcessError, UsageError
from validation.sweep.cases import Making
from validation.sweep.processes import ATTEMPTS, Done

PATIENCE = 5  # seconds until a cluster's port must have answered
INSTALL = "pip install 'fastvlm-coreml[ray]'"


def check_ray() -> None:
    """Raises MissingDependency where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise MissingDependency(f"--ray needs Ray, which is not installed; {INSTALL}, or leave --ray out")


class Cluster:
    """The workers of the Ray cluster at `address`, "auto" or "HOST:PORT"; their tasks end with the `with` block."""

    def __init__(self, address: str) -> None:
        check_ray()
        self._address = address

    def __enter__(self) -> Self:
        """Connects; UsageError where no cluster answers at the address."""
        import ray

        try:
            _knock(self._address)
            ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, OverflowError, RuntimeError, ImportError) as problem:
            reason = str(problem).split("\n")[0][:200]
            raise UsageError(
                f"no Ray cluster answers at --ray {self._address} ({reason}); `ray start --head` starts one, and says "
                "its address"
            ) from problem
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()

    def run(self, place: Path, sweep: str, makings: Sequence[Making], keep: bool) -> Iterator[Done]:
        """Yields each build when it is done with, in whatever order."""
        import ray

        task = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(_task)
        waiting = {task.remote(__version__, str(place), sweep, each.as_json(), keep): each for each in makings}
        while waiting:
            for reference in ray.wait(list(waiting), num_returns=1)[0]:
                yield waiting.pop(reference), _outcome(ray, reference)


def _knock(address: str) -> None:
    """Raises OSError where nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()


def _task(version: str, place: str, sweep: str, making: dict[str, Any], keep: bool) -> tuple[str, str] | None:
    """The task: None when rows are written, or an error's kind and text; a worker of another version refuses."""
    from validation.sweep.working import work

    if version != __version__:
        return "UsageError", f"a worker has fastvlm {__version__}, expected {version}; install that on every machine"
    try:
        work(place, sweep, making, keep)
    except FastVLMError as problem:
        return type(problem).__name__, str(problem)
    return None


def _outcome(ray: Any, reference: Any) -> FastVLMError | None:
    try:
        told = ray.get(reference)
    except ray.exceptions.RayError as problem:
        first = next((line for line in str(problem).split("\n") if line.strip()), type(problem).__name__)
        return ProcessError(f"a worker ended by itself {ATTEMPTS} times, or failed: {first[:300]}", "task", "unknown")
    return None if told is None else FastVLMError(told[1])
