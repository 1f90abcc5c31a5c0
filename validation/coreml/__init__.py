"""Core ML through coremltools, on a Mac: the only place that touches coremltools' classes for running packages.

`here` says whether this machine has Core ML, `predictor` runs functions in a child process (`loaded` in this one),
`plan` tells where Core ML would run each op, `remote` measures on a device that is connected. The rest of the project
sees plain data and the interface of `validation.backends`. Nothing here has run on a Mac yet: tests run it against a
stand-in of coremltools' classes whose `predict` is the MIL runtime (tests/profiling/coreml_standin.py).
"""
