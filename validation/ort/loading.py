"""An ONNX file as an onnxruntime session, run where it was asked to run, and nowhere else.

A session is made once and serves any number of calls. It does not know what the graph is for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from onnxruntime import InferenceSession

from fastvlm.errors import ExecutionError, MissingDependency
from validation.ort.failures import FAILURES, reason
from validation.ort.opening import OnnxFile, check_unchanged
from validation.ort.probing import Prober
from validation.ort.providers import CPU, PROVIDERS, provider_names, provider_word
from validation.ort.settings import Settings, session_options
from validation.within_memory import expect_mapped, within_memory


@dataclass(frozen=True)
class Loaded:
    """A file and its session; `providers` are the words that were asked for, in order."""

    file: OnnxFile
    session: InferenceSession
    providers: tuple[str, ...]

    def placement(self) -> dict[str, int]:
        """Returns how many nodes each provider runs, by its word; counted after the graph was simplified.

        Raises MissingDependency for an onnxruntime that cannot tell, where there is anything to tell.
        """
        tell = getattr(self.session, "get_provider_graph_assignment_info", None)
        if tell is None:
            if self.providers == (CPU,):
                return {CPU: self.file.ops.total()}
            raise MissingDependency(
                "this onnxruntime cannot say which provider runs which node; `pip install -U onnxruntime`"
            )
        counts: Counter[str] = Counter()
        for part in tell():
            counts[provider_word(part.ep_name)] += len(part.get_nodes())
        return dict(counts)


def load(
    file: OnnxFile, providers: Sequence[str] = (CPU,), settings: Settings | None = None, prober: Prober | None = None
) -> Loaded:
    """Makes a session of a file that was read and checked, with providers in order of preference.

    The file is first loaded by `prober`, without one by a child for it alone. Raises as `load_here`, and ExecutionError
    where that load ends its process.
    """
    settings = settings or Settings()
    provider_names(providers)
    probes = prober or Prober()
    try:
        probes.check(file, settings)
    finally:
        if prober is None:
            probes.close()
    return load_here(file, providers, settings)


def load_here(file: OnnxFile, providers: Sequence[str], settings: Settings) -> Loaded:
    """`load`, without a look at what it does to another process first.

    Raises UsageError and MissingDependency as `provider_names`, PackageError where the files are no longer those that
    were checked, ExecutionError where onnxruntime does not take the
    file, or one of the providers takes none of its nodes. With the CPU not among them, every node must be theirs.
    """
    names = provider_names(providers)
    options = session_options(settings, file, alone=CPU not in providers)
    try:
        with within_memory():
            expect_mapped(file.weights)
            # By itself it would print an error, and go on with the CPU.
            session = InferenceSession(file.path, options, names, enable_fallback=0, read_config_from_model=0)
    except FAILURES as error:
        todo = "export it for this provider, or choose providers that take it"
        if list(providers) == [CPU]:
            todo = "it is damaged, or of a later onnxruntime; `fastvlm validate` compares its bytes, or export it again"
        said = f"onnxruntime does not take {file.path} for {', '.join(providers)} ({reason(error)})"
        raise ExecutionError(f"{said}; {todo}") from error
    check_unchanged(file)
    loaded = Loaded(file, session, tuple(providers))
    _check_taken(loaded, names)
    return loaded


def _check_taken(loaded: Loaded, names: Sequence[str]) -> None:
    """Raises ExecutionError where a provider that was asked for is not in the session, or has nothing to run."""
    present = loaded.session.get_providers()
    missing = [provider_word(name) for name in names if name not in present]
    if list(loaded.providers) != [CPU]:
        placement = loaded.placement()
        missing += [word for word in loaded.providers if word != CPU and not placement.get(word)]
    if missing:
        raise ExecutionError(
            f"{loaded.file.path}: {', '.join(missing)} takes none of its nodes, and was asked for; leave it out, or "
            f"export for it (known providers: {', '.join(PROVIDERS)})"
        )
