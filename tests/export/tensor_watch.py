"""What every op inside every module of a graph returns, by the names that a scan uses: "network.8.2 gelu"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):
    """Gives `keep` the name and the value of each float tensor that an op returns while it is entered."""

    def __init__(self, graph: nn.Module, keep: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self.keep = keep
        self.calls: list[tuple[str, Counter[str]]] = [("", Counter())]
        self.hooks = []
        for name, module in graph.named_modules():
            self.hooks.append(module.register_forward_pre_hook(self.begin(name)))
            self.hooks.append(module.register_forward_hook(lambda *_: self.end()))

    def begin(self, name: str) -> Callable[..., None]:
        return lambda *_: self.calls.append((name, Counter()))

    def end(self) -> None:
        self.calls.pop()

    def __exit__(self, *error: Any) -> None:
        for hook in self.hooks:
            hook.remove()
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point():
            module, seen = self.calls[-1]
            op = {"bmm": "matmul"}.get(func.overloadpacket.__name__, func.overloadpacket.__name__)
            seen[op] += 1
            self.keep(f"{module} {op}" + (f".{seen[op]}" if seen[op] > 1 else ""), out)
        return out


def peaks_of(graph: nn.Module, *inputs: Tensor) -> dict[str, float]:
    """The largest magnitude of every tensor of a graph over some inputs."""
    found: dict[str, float] = {}

    def keep(name: str, value: Tensor) -> None:
        found[name] = max(found.get(name, 0.0), float(value.abs().max()))

    for each in inputs:
        with Watch(graph, keep), torch.no_grad():
            graph(each)
    return found
