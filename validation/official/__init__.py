"""A real checkpoint against the logits that were published for it: the reference tested by numbers of others.

`published` is the table of what was published and how; `logits` computes the same here; `check` compares the two.
"""
