"""The range pass: what every tensor of a checkpoint reaches on pictures, hostile frames and prompts, what fp16 asks.

scan        the whole pass, or the cached result of one that was made before
frames      pictures and frames that the encoder sees        prompts    what the decoder sees
watch       the largest magnitude and the subnormals of a tensor, op by op
encoder     encoder and projector, as the graph that ships    decoder    the decoder, one layer in memory at a time
result      what was found, as JSON                           cache      where it is kept
exponents   the powers of two that an export needs, and what none of them cures
"""
