"""Reading checkpoints: every layout that FastVLM exists in, into the one model.

hub.py                                    a Hub id -> a folder of the Hub's cache
header.py, tensors.py, folder.py          files -> named lazy tensors
layouts.py, lora.py, fuse.py, opening.py  names and values -> those of the model
text_config.py, sizes.py, statements.py   what the checkpoint says about itself
load.py, stream.py, source.py             the model, filled or streaming, and where it came from
"""

from fastvlm_ref.checkpoint.load import load_checkpoint
from fastvlm_ref.checkpoint.source import Source
from fastvlm_ref.checkpoint.stream import materialised

__all__ = ["Source", "load_checkpoint", "materialised"]
