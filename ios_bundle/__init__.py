"""The iOS bundle: a validated build becomes a folder that an app or a server ships, sealed and self-testing.

    from ios_bundle import bundle, verify

The formats are docs/ios-bundle.md; what a runtime does with them is docs/host-contract.md. This room sees the hall
alone: no torch, no coremltools, no tokenizer library; `export` and `validate` put into the build what needs those.
"""

from __future__ import annotations

from ios_bundle.bundling import bundle
from ios_bundle.verification import Verification, verify

__all__ = ["Verification", "bundle", "verify"]
