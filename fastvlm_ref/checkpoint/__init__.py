"""Reading checkpoints: every layout that FastVLM exists in, into the one model.

    folder.py, header.py, tensors.py   files -> named lazy tensors
    layouts.py, fuse.py, lora.py       names and values -> those of the model
    sizes.py, text_config.py, statements.py   what the checkpoint says about itself
    load.py, stream.py, source.py      the model, filled or streaming, and where it came from
"""

from fastvlm_ref.checkpoint.load import load_checkpoint
from fastvlm_ref.checkpoint.source import Source

__all__ = ["Source", "load_checkpoint"]
