"""Functions of a package in Core ML, in a process of their own, with the surface of `validation.backends.Predictor`.

A package is a stranger's, and Core ML may end the process that loads or runs it (coremltools#2757, #2758). So it is
looked at first (`validation.mil.package.check_package`), and then opened in a child, one for all functions of a
package: a state that one made is the other's too, and never leaves that process. What goes in and out travels in files
(`parcels`): less than a millisecond for what a decoder takes. In a process that is a child already, such as one that
measures times, functions are loaded where they are.
"""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from validation.children import Child, Limits, Served, Tell, is_child
from validation.coreml.loaded import LoadedFunction
from validation.coreml.parcels import Row, make, take
from validation.mil.package import check_package

SERVES = "validation.coreml.predictor:Functions"
LIMITS = Limits(seconds=3600.0)  # of a load or a run: a large package is compiled for minutes when it is loaded first
GIVEN, GAVE = "given.bin", "gave.bin"


class Functions:
    """The functions of one package and the states that they made; lives in a child. folder: where parcels lie."""

    def __init__(self, tell: Tell, package: str, units: str, folder: str) -> None:
        self._package, self._units, self._folder, self._tell = Path(package), units, Path(folder), tell
        self._loaded: dict[str, LoadedFunction] = {}
        self._states: dict[int, Any] = {}
        self._made = 0

    def load(self, function: str) -> float | None:
        """Loads a function; returns what Core ML itself took, in seconds."""
        self._tell(f"loading {function}")
        self._loaded[function] = LoadedFunction(self._package, function, self._units)
        return self._loaded[function].load_seconds

    def make_state(self, function: str) -> int:
        """Makes a state, zeroed; returns its number."""
        self._tell(f"making a state for {function}")
        self._made += 1
        self._states[self._made] = self._loaded[function].make_state()
        return self._made

    def read_state(self, number: int, entry: str) -> list[Row]:
        """Puts a copy of what a state holds under that name into a parcel; returns its rows."""
        return make({entry: self._states[number].read_state(entry)}, self._folder / GAVE)

    def predict(self, function: str, rows: list[Row], state: int | None, dropped: list[int]) -> list[Row]:
        """Runs a function once on what lies in the parcel, after states that nobody has any more; returns rows."""
        for number in dropped:
            self._states.pop(number, None)
        self._tell(f"running {function}")
        given = take(rows, self._folder / GIVEN)
        outputs = self._loaded[function].predict(given, None if state is None else self._states[state])
        return make(outputs, self._folder / GAVE)


class _Home:
    """The process of a package's functions, and the folder of its parcels; both go with it."""

    def __init__(self, package: Path, units: str) -> None:
        folder = tempfile.TemporaryDirectory()
        self.folder = Path(folder.name)
        name = f"Core ML with {package.name}"
        try:
            given = {"package": str(package), "units": units, "folder": folder.name}
            self.served: Served = Child(SERVES, name, LIMITS, **given)
        except BaseException:
            folder.cleanup()
            raise
        self.dropped: list[int] = []  # numbers of states that are gone here: told with the next call, never within one
        weakref.finalize(self, _leave, self.served, folder)


def _leave(served: Served, folder: tempfile.TemporaryDirectory[str]) -> None:
    served.close()
    folder.cleanup()


class CoreMLState:
    """A state that lives in a package's process."""

    def __init__(self, home: _Home, number: int) -> None:
        self.home, self.number = home, number
        weakref.finalize(self, home.dropped.append, number).atexit = False

    def read_state(self, name: str) -> NDArray[Any]:
        """Returns a copy of what it holds under that name."""
        rows = self.home.served.call("read_state", number=self.number, entry=name)
        values: NDArray[Any] = take(rows, self.home.folder / GAVE)[name]
        return values


class CoreMLPredictor:
    """`function` of the .mlpackage, loaded for `units` of COMPUTE_UNITS, in the process of `beside` where it is given.

    Raises PackageError for a package that is not whole or that Core ML cannot load, ProcessError where Core ML ends its
    process. coremltools compiles a package each time that it opens it, which an app does when it is built.
    `load_seconds` is what Core ML itself took to load what was compiled, None where coremltools does not tell.
    """

    def __init__(self, package: Path, function: str, units: str, beside: CoreMLPredictor | None = None) -> None:
        self._function = function
        self._here: LoadedFunction | None = None
        self._home: _Home | None = None
        if is_child():
            self._here = LoadedFunction(package, function, units)
            self.load_seconds = self._here.load_seconds
            return
        check_package(package)
        self._home = beside._home if beside is not None and beside._home is not None else _Home(package, units)
        self.load_seconds = self._home.served.call("load", function=function)

    def predict(self, data: dict[str, Any], state: Any = None) -> dict[str, Any]:
        """Runs the function once; ExecutionError where Core ML refuses, ProcessError where it ends its process."""
        if self._here is not None:
            return self._here.predict(data, state)
        home = self._shared()
        rows = make(data, home.folder / GIVEN)
        dropped, number = list(home.dropped), None if state is None else state.number
        del home.dropped[: len(dropped)]
        given = {"function": self._function, "rows": rows, "state": number, "dropped": dropped}
        return take(home.served.call("predict", **given), home.folder / GAVE)

    def make_state(self) -> Any:
        """Returns a fresh, zeroed state; ExecutionError where Core ML makes none."""
        if self._here is not None:
            return self._here.make_state()
        home = self._shared()
        return CoreMLState(home, home.served.call("make_state", function=self._function))

    def _shared(self) -> _Home:
        assert self._home is not None
        return self._home
