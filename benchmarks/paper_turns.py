"""Routes timed in turn, round by round, each for about the same amount of work.

Notable choices: a short route runs several times in its turn, or what the machine does besides would decide; every
round begins with another route. `cpu` is the process's own time: on a machine that others use it says more than what
passed, but only with one thread, for of several it counts those that wait for each other as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

CLOCKS: dict[str, Callable[[], float]] = {"elapsed": time.perf_counter, "cpu": time.process_time}
TURN = 300e9  # FLOPs that a turn comes to at least


@dataclass(frozen=True)
class Route:
    """What is timed: a call, and how many FLOPs one takes."""

    run: Callable[[], object]
    flops: int

    @property
    def times(self) -> int:
        """Calls in one turn."""
        return max(1, round(TURN / self.flops))


def in_turns(routes: dict[str, Route], rounds: int, clock: str) -> dict[str, list[float]]:
    """Seconds of one call of each route, one number a round; one call of each before that is not counted."""
    read, names = CLOCKS[clock], list(routes)
    for route in routes.values():
        route.run()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            route, start = routes[name], read()
            for _ in range(route.times):
                route.run()
            seconds[name].append((read() - start) / route.times)
    return seconds


def ratio(one: list[float], other: list[float]) -> float:
    """The median of the rounds' ratios."""
    return median(a / b for a, b in zip(one, other, strict=True))
