"""A comparison in the memory of one layer: for models whose weights take more than half of what the machine has.

Order of things: the reference first, all samples at once, a layer of the checkpoint in memory at a time
(`transcripts`); then the build, all samples at once, a piece of a package open at a time (`packages`, `pieces`). The
numbers are those of a comparison in memory, bit for bit. Only the order of the work is another: weights are read once
for all samples, and the package starts when the reference has chosen all its tokens.
"""
