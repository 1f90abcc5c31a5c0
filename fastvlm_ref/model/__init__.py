"""The PyTorch model, one part per file, each named as the checkpoint names it."""
