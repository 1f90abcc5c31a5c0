"""coremltools without its noise: progress bars, the banner about untested torch versions, tracer warnings.

What is silenced is named one by one; a warning that is not on the list still comes through.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

LOGGER = "coremltools"


def import_coremltools() -> Any:
    """Returns coremltools; its import logs which torch it was tested with, and that it found no Core ML off a Mac."""
    logger = logging.getLogger(LOGGER)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import coremltools

        return coremltools
    finally:
        logger.setLevel(before)


@contextmanager
def quietly() -> Iterator[None]:
    """Silences one conversion: coremltools' bars and its messages below ERROR, and what tracing always warns of."""
    import tqdm  # type: ignore[import-untyped, unused-ignore]
    from torch.jit import TracerWarning  # type: ignore[attr-defined]

    logger = logging.getLogger(LOGGER)
    before, level = tqdm.tqdm.__init__, logger.level
    logger.setLevel(logging.ERROR)
    tqdm.tqdm.__init__ = partialmethod(before, disable=True)  # its environment switch is read at import, too late
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TracerWarning)  # shapes become constants: that is the intention
            _ignore(DeprecationWarning, "torch.jit")  # torch 2.13 on trace; coremltools 9 reads nothing newer as well
            _ignore(DeprecationWarning, "coremltools")
            _ignore(FutureWarning, "coremltools")
            _ignore(ResourceWarning, "Implicitly cleaning up")  # coremltools leaves its folder to the collector
            yield
    finally:
        tqdm.tqdm.__init__ = before
        logger.setLevel(level)


def _ignore(category: type[Warning], start: str) -> None:
    """Ignores a category where the text names `start`, or where the module that warns lies in it."""
    options: dict[str, Any] = {"category": category}
    warnings.filterwarnings("ignore", message=rf".*{start}.*", **options)
    warnings.filterwarnings("ignore", module=rf"{start}.*", **options)
