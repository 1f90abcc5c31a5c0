"""One function of the language model as Core ML, whatever its size: converted small, made whole on the protobuf.

The graph is traced and converted with stand-ins (`export.standin`), the real numbers are put in, its layers repeated
(`export.repeat`), and every weight named after the graph's parameter whose numbers it holds (`export.parameters`). What
comes out is, op for op and weight for weight, what converting the whole graph gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from export.contract import FunctionSpec, language_functions
from export.convert import Converted, constant_name, converted, trace
from export.decoder import LanguageGraph
from export.parameters import decoder_weight
from export.plan import ExportPlan
from export.repeat import repeat_layers
from export.standin import StandIn, restore_sizes, stand_in, without_weights
from fastvlm_ref.model.decoder import Decoder


@contextmanager
def converted_language(decoder: Decoder, spec: FunctionSpec, plan: ExportPlan) -> Iterator[Converted]:
    """Converts `prefill` or `decode` of a decoder; the result lives as long as the block.

    The decoder's weights may lie in memory or stream; none is read before the weight file is written.
    """
    text, query, head = decoder.config, spec.inputs[0].shape[1], spec.name == "decode"
    small = stand_in(text, query, plan.context)
    with torch.device("meta"):
        graph = LanguageGraph(Decoder(small.text), query, small.context, head=head, rows=small.rows)
        whole = LanguageGraph(Decoder(text), query, 1, head=head)
    small_spec = _small_spec(spec, small, plan)
    traced = trace(without_weights(graph), tuple(tensor.shape for tensor in small_spec.inputs[:-1]), position=True)
    with converted(traced, small_spec) as function:
        program = function.proto.mlProgram.functions["main"]
        restore_sizes(program, function.proto.description, small.real)
        if small.marked is not None:
            for block in program.block_specializations.values():
                repeat_layers(block, text.layers, small.marked)
        weights = {constant_name(name): decoder_weight(decoder, name) for name, _ in whole.named_parameters()}
        yield replace(function, spec=spec, parameters=weights)


def _small_spec(spec: FunctionSpec, small: StandIn, plan: ExportPlan) -> FunctionSpec:
    """The function's contract with stand-in sizes."""
    functions = language_functions(small.text, replace(plan, context=small.context))
    found = next(function for function in functions if function.name == spec.name)
    assert found.state is not None
    return replace(found, state=replace(found.state, shape=(small.rows[-1], *found.state.shape[1:])))
