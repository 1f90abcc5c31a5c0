"""scripts/compile_models.sh; replaced by its own work."""

from __future__ import annotations

SCRIPT = b"#!/bin/sh\nset -eu\n"
