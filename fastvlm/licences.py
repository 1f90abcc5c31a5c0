"""What is said of a checkpoint's licence wherever something made from it is passed on.

A licence is known by the short name that the checkpoint states, or it is "unknown", which is said and never guessed.
Apple's model licence (ml-fastvlm, LICENSE_MODEL) covers what is made from the weights too, and asks for its own
sentence, word for word, for a copy of the agreement and for a clear mark as a derivative.
"""

from __future__ import annotations

FOLDER = "licence"  # of a build: the checkpoint's own texts
APPLE = "apple-amlr"
UNKNOWN = "unknown"
APPLE_SENTENCE = (
    "Apple Machine Learning Research Model is licensed under the "
    "Apple Machine Learning Research Model License Agreement."
)


def licence_text(licence: str) -> str:
    """Returns the licence as something made from the checkpoint states it."""
    return f"{licence}. {APPLE_SENTENCE}" if licence == APPLE else licence
