"""Photo and prompt → text by a bundle alone, in numpy: what a runtime on a device does (docs/host-contract.md)."""
