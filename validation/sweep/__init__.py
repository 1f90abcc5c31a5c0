"""A sweep: validation over checkpoints × image sizes × schemes × pictures, with one table and one plot of what it gave.

    sweep("sweep.yaml", "OUT")                          # -> Swept: rows, the table's and the plot's files

spec.py         what a spec file says, every mistake in it told at once
cases.py        builds to make and cases to measure on them
identity.py     a case's id, made of all that its result depends on
working.py      what a worker does: export one build, validate it on each set of pictures, write a row for each
rows.py         the rows on the disk, a file each: written whole, under the case's id, so that none counts twice
builds.py       the builds on the disk: how they go, and what killed workers have left
served.py       the object that a worker's process serves
processes.py    workers as processes of this machine; cluster.py: as tasks of a Ray cluster
front.py        which rows no other beats; table.py, plot.py: what is made of all rows
sweeping.py     all of it in order

A row is on the disk before the next case begins, and a case whose row is there is never measured again. So whatever is
killed, worker or sweep, the same command goes on with what is missing.
"""

from __future__ import annotations

from typing import Any

_HOMES = {"sweep": "validation.sweep.sweeping", "Swept": "validation.sweep.sweeping"}


def __getattr__(name: str) -> Any:
    """Loads public names when they are used."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'validation.sweep' has no attribute {name!r}")
