"""What `make mac-check` prints of a build: differences, latencies, placement; the report holds the rest."""

from __future__ import annotations

from collections.abc import Iterator

from validation.mac_check.answers import Difference
from validation.mac_check.report import Checked


def lines(checked: Checked) -> Iterator[str]:
    """One line for each choice of compute units, then one for each rule."""
    build, text = checked.build, checked.build.manifest["model"]["text"]
    sizes = f"{text.get('layers')} layers of {text.get('hidden_size')}"
    yield f"\n{build.folder.resolve().name}: {build.target} build, {sizes}:"
    for result in checked.profile.results:
        contender = result.contender
        units = contender.compute_units or contender.backend
        stages = [("encode", None), ("prefill", None), ("first_token", None), ("decode", contender.work.prompt)]
        found = [(name, result.stage(name, position)) for name, position in stages]
        times = ", ".join(f"{name} {each.spread.median * 1e3:.3g} ms" for name, each in found if each and each.spread)
        yield f"  {units:<20} {times or 'not measured'}{_beside(checked.differences.get(units))}"
        for plan in result.plan or ():
            shares = ", ".join(f"{device} {share:.4g} %" for device, share in plan.op_percent.items() if share)
            yield f"  {'':<20} {plan.package} {plan.function}: ops {shares or 'not told'}"
    judged = checked.lint_device or "every device of the table"
    yield f"  Core ML's plan beside the rules (for {judged}):"
    for row in checked.rules:
        other = ", ".join(f"{op} {count}" for op, count in sorted(row.differing.items()))
        differ = f"{row.differ} ({other})" if other else "0"
        yield f"    {row.rule:<16} agree {row.agree}, differ {differ}, untold {row.untold}"
    if any(row.agree or row.differ for row in checked.rules) and not checked.engine_ops:
        yield "    no op is on the Neural Engine: it does not answer here, and this confirms no rule"


def _beside(found: Difference | None) -> str:
    if found is None:
        return ""
    parts = [
        f"{name} {values['psnr_db']:.3g} dB PSNR, {values['snr_db']:.3g} dB SNR"
        for name, values in (("tokens", found.tokens), ("logits", found.logits))
        if values is not None
    ]
    if found.steps:
        differ = len(found.differing_steps)
        parts.append(f"{differ} of {found.steps} ids differ" if differ else "same ids")
    return f"; {', '.join(parts)}"
