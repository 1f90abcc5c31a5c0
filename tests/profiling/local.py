"""What `validation.children.Child` does, in this process: for tests that are not about processes."""

from __future__ import annotations

import importlib
import json
from typing import Any


class Local:
    """As `Child`: made of plain data, gives plain data, remembers its stage."""

    def __init__(self, serves: str, name: str, limits: Any = None, **given: Any) -> None:
        module, _, made = serves.partition(":")
        self.name, self.stage, self.closed = name, "start", False
        plain = json.loads(json.dumps(given))
        self._object = getattr(importlib.import_module(module), made)(self._tell, **plain)

    def _tell(self, stage: str) -> None:
        self.stage = stage

    def call(self, name: str, **given: Any) -> Any:
        """Calls a method, as if from another process."""
        plain = json.loads(json.dumps(given))
        return json.loads(json.dumps(getattr(self._object, name)(**plain)))

    def close(self) -> None:
        """Marks it as closed, and ends what would have ended with its process, such as an event loop."""
        self.closed = True
        if hasattr(self._object, "close"):
            self._object.close()
