"""Every option of an onnxruntime session in one place, each with the reason for its value.

Measured on two cores that others used as well, medians of runs in turn, a decoder of 0.5B's sizes in float32 and int4
and its encoder at 1024. An option that is not named here is left at onnxruntime's default.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxruntime import ExecutionMode, GraphOptimizationLevel, RunOptions, SessionOptions

from validation.ort.cores import usable_cores
from validation.ort.opening import OnnxFile

FATAL = 4  # of onnxruntime's log: an error is raised here, and printed by whoever catches it
# Ops that take weights as codes: their kernels compute on a packed form, and without it unpack them in every call.
PACKED = frozenset(
    (
        "DynamicQuantizeMatMul",
        "MatMulBnb4",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QGemm",
        "QLinearMatMul",
    )
)
SHRINK = ("memory.enable_memory_arena_shrinkage", "cpu:0")


@dataclass(frozen=True)
class Settings:
    """What a user may choose of a session.

    threads: None is one for each usable physical core. spin: whether threads wait for the next op by turning in a
    circle, not asleep: where others compute too, a token then takes 1.4 times as long, and the shortest times were no
    shorter. pack: whether float32 matrices are brought into the order of their kernels once. Then a few rows at a time
    take 0.8 times as long, one row the same; loading takes 2 s for each GB (else 0.1 s), and 1.7 times the memory.
    """

    threads: int | None = None
    spin: bool = False
    pack: bool = False


def session_options(settings: Settings, file: OnnxFile, alone: bool) -> SessionOptions:
    """Returns the options of a session for `file`; `alone`: only the providers that were asked for may run a node."""
    options = SessionOptions()
    options.log_severity_level = FATAL
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ExecutionMode.ORT_SEQUENTIAL  # ops of these graphs follow on one another
    options.intra_op_num_threads = settings.threads or usable_cores()
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = True  # the same buffers come again with every token
    entries = {
        "session.intra_op.allow_spinning": str(int(settings.spin)),
        "session.force_spinning_stop": "1",  # between two calls the cores are the host's, and other libraries'
        # Without packing, matrices are used where they lie, in pages of the file that processes share.
        "session.disable_prepacking": str(int(not settings.pack and not PACKED & file.ops.keys())),
        "session.record_ep_graph_assignment_info": "1",  # for `Loaded.placement`
        # A node that a provider does not take would else run on the CPU, and nobody would know.
        "session.disable_cpu_ep_fallback": str(int(alone)),
    }
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


def run_options(shrink: bool = False) -> RunOptions:
    """Returns the options of one call; `shrink` gives the arena's memory back after it.

    The encoder at 1024 in int8 then needs 660 MB at most and not 980: its first call's buffers else stay beside those
    that are planned for the next.
    """
    options = RunOptions()
    options.log_severity_level = FATAL
    if shrink:
        options.add_run_config_entry(*SHRINK)
    return options
