"""How a weight is stored: as the manifest's scheme says, and as the checkpoint has it.

A weight that the manifest names no scheme for is fp16 and compared bit for bit (`validation.audit.weights`); one with a
scheme has codes and tables of the scheme's types and shapes, and is held against it (`validation.audit.codes`).
It does not know where in a program a weight stands.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np

from export.compression.schemes import SCHEMES, Scheme
from export.constexpr import CODES
from export.parameters import GraphWeight
from fastvlm.errors import BuildError
from validation.audit.codes import Fit, fit_of
from validation.audit.findings import CONSTANTS, Findings
from validation.audit.weights import HELD, compare_halves
from validation.mil.values import Constant
from validation.program.contents import Op, Value


def schemes_of(compression: Mapping[str, Any]) -> dict[str, Scheme]:
    """Returns the scheme of every compressed layer, as a manifest records them; BuildError for one that is none."""
    layers = compression.get("layers", {})
    unknown = [name for name in layers.values() if name not in SCHEMES] if isinstance(layers, dict) else [layers]
    if unknown:
        raise BuildError(
            f"compression.layers in the manifest holds {str(unknown[0])[:60]!r}, expected layers with one of "
            f"{', '.join(SCHEMES)}; export the build again"
        )
    return {layer: SCHEMES[name] for layer, name in layers.items()}


def compare(title: str, weight: GraphWeight, value: Value, schemes: Mapping[str, Scheme], findings: Findings) -> None:
    """Holds one stored weight, whose constant is `value`, against what `weight` declares."""
    scheme = schemes.get(weight.layer) if weight.name.endswith(".weight") else None
    maker = value.made_by
    findings.look(CONSTANTS)
    if scheme is None and value.constant is not None:
        compare_halves(title, weight, value.constant, findings)
    elif scheme is None or maker is None:
        stored = maker.type if maker is not None else str(value.type)
        findings.count(
            CONSTANTS, f"{title} is stored as {stored}, the manifest says {scheme.name if scheme else 'fp16'}"
        )
    elif problem := next(_differences(maker, scheme, weight), None):
        findings.count(CONSTANTS, f"{title} is no {scheme.name}: {problem}")
    else:
        _measure(title, weight, scheme, fit(weight, scheme, maker), findings)


def fit(weight: GraphWeight, scheme: Scheme, maker: Op) -> Fit:
    """Returns how the codes and tables that a constexpr op takes fit a weight; codes are read as they are needed."""
    codes = _constant(maker, CODES[scheme.op])
    tables = {name: _constant(maker, name).load() for name in scheme.table_shapes(weight.shape)}
    read = 0

    def part(first: int, count: int) -> np.ndarray:
        nonlocal read
        found = codes.part(first, count)
        if (read := read + count) >= HELD and codes.key is not None:
            found, read = found.copy(), 0
            codes.forget()
        return found

    found = fit_of(weight, scheme, part, tables)
    codes.forget()
    return found


def places(value: Value) -> Hashable:
    """Returns where the numbers of a constant lie: alike for constants of two functions that share them."""
    constants = [value.constant] if value.made_by is None else [each.constant for each in value.made_by.values]
    keys = tuple(constant.key if constant is not None else None for constant in constants)
    return id(value) if None in keys else keys


def _measure(title: str, weight: GraphWeight, scheme: Scheme, found: Fit, findings: Findings) -> None:
    place = [int(each) for each in np.unravel_index(found.at, weight.shape)]
    findings.measure("audit.code_excess", f"{title} {place}", found.excess)
    findings.measure(f"audit.{scheme.name}_misfit", title, found.misfit)
    findings.measure(f"audit.{scheme.name}_snr_db", title, found.snr_db)


def _differences(maker: Op, scheme: Scheme, weight: GraphWeight) -> Iterator[str]:
    """How a constexpr op is not that of a scheme."""
    if maker.type != scheme.op:
        yield f"it is made by {maker.type}, expected {scheme.op}"
        return
    tables = scheme.table_shapes(weight.shape)
    wanted = {CODES[scheme.op]: (scheme.dtype, weight.shape)}
    wanted |= {name: ("fp16" if name != "offset" else scheme.dtype, shape) for name, shape in tables.items()}
    if maker.inputs.keys() != wanted.keys():
        yield f"{maker.type} takes {', '.join(maker.inputs)}, expected {', '.join(wanted)}"
        return
    for name, (dtype, shape) in wanted.items():
        value = maker.need(name)
        if value.constant is None or value.dtype is None or (value.dtype.name, value.shape) != (dtype, shape):
            yield f"{name} is {value.type}, expected {dtype}{list(shape)}"


def _constant(maker: Op, name: str) -> Constant:
    constant = maker.need(name).constant
    assert constant is not None  # _differences
    return constant
