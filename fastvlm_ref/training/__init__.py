"""The recipe of the embedded checkpoint: drawn scenes, questions about them, and one training loop with frozen stages."""
