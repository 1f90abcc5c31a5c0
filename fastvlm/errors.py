"""Every error that a user or a file can cause, in one tree.

Each message says what was found, what was expected and what to do next. The command line prints it as one
`Error:` line and exits with `exit_code`; nothing else in the project decides exit codes.

    FastVLMError                  exit 2
    ├── UsageError                an option, or a combination of options, that cannot work
    ├── MissingDependency         something optional that this machine lacks (names what to install)
    ├── OutputError               the place to write to: exists, is a file, cannot be written, no space
    ├── CheckpointError           the folder is no checkpoint, or its files are damaged
    │   ├── ConfigError           config.json: unknown model_type, missing or impossible fields
    │   ├── TensorError           missing, extra or misshapen tensors (all of them listed)
    │   ├── MissingBase           a LoRA adapter alone; carries the options that the same command lacks
    │   ├── HubError              a Hub id that cannot be fetched: unknown, no permission, no connection
    │   └── TokenizerError        no tokenizer, or one that does not fit the vocabulary
    ├── ImageError                not an image, truncated, too large, or a format whose plugin is missing
    ├── PromptError               empty, or too long for the context (names the three numbers)
    ├── BuildError                a build folder that is incomplete, changed, or of a newer schema
    ├── BundleError               a folder that is no iOS bundle, or one of a newer schema
    ├── ReportError               a file that is no report of a validation, or damaged, or of a newer schema
    ├── ProcessError              a process that did a part of the work ended by itself (exit 1; names the stage)
    ├── Stopped                   a call that somebody asked to stop (exit 1)
    └── PackageError              an .mlpackage or an ONNX file that cannot be opened
        ├── UnsupportedOp         an op that the MIL runtime does not know (op, function, position)
        └── ExecutionError        an op, input or state that is wrong at run time
"""

from __future__ import annotations


class FastVLMError(Exception):
    """Base of every error that a user or a file can cause."""

    exit_code = 2


class UsageError(FastVLMError):
    """An option, or a combination of options, that cannot work."""


class MissingDependency(FastVLMError):
    """Something optional that this machine lacks."""


class OutputError(FastVLMError):
    """The place to write to exists, is of the wrong kind, or cannot be written."""


class CheckpointError(FastVLMError):
    """The folder is no checkpoint, or its files are damaged."""


class ConfigError(CheckpointError):
    """config.json names an unknown model or lacks a field."""


class TensorError(CheckpointError):
    """Tensors are missing, extra or misshapen; the message lists all of them."""


class MissingBase(CheckpointError):
    """A LoRA adapter without the checkpoint it was trained on; `options` are what a command lacks to read it."""

    def __init__(self, message: str, options: tuple[str, ...]) -> None:
        super().__init__(message)
        self.options = options


class HubError(CheckpointError):
    """A Hub id cannot be fetched: no such repository or revision, no permission, no connection."""


class TokenizerError(CheckpointError):
    """The tokenizer is missing or does not fit the vocabulary."""


class ImageError(FastVLMError):
    """The file is not an image that can be read whole."""


class PromptError(FastVLMError):
    """The prompt is empty or does not fit into the context."""


class BuildError(FastVLMError):
    """A build folder is incomplete, was changed, or has a newer schema."""


class BundleError(FastVLMError):
    """A folder is no iOS bundle, or has a newer schema."""


class ReportError(FastVLMError):
    """A file is no report of a validation, is damaged, or has a newer schema."""


class ProcessError(FastVLMError):
    """A process that did a part of the work ended by itself; `stage` is what it was at, `ended` how it ended."""

    exit_code = 1

    def __init__(self, message: str, stage: str, ended: str) -> None:
        super().__init__(message)
        self.stage, self.ended = stage, ended


class Stopped(FastVLMError):
    """A call ended before it was done, because somebody asked for that."""

    exit_code = 1


class PackageError(FastVLMError):
    """An .mlpackage or an ONNX file cannot be opened."""


class UnsupportedOp(PackageError):
    """The program holds an op that the MIL runtime does not know."""


class ExecutionError(PackageError):
    """An op, an input or a state is wrong at run time."""
