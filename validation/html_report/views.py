"""What the page says above its plots: title, verdict, the few numbers that matter, provenance in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from validation.html_report.bars import waterfalls
from validation.html_report.words import as_float, bound, decibel, number, plain, seconds, size
from validation.machine import BUSY

HEADS = {
    "passed": "Passed: every limit holds",
    "failed": "Failed: at least one limit is missed",
    "compared": "No verdict: the reference is not what the build was made from",
}
MISSED = 6  # missed limits that the verdict names


def title(report: dict[str, Any]) -> str:
    """Returns what was compared: source, format if it is not Core ML's, compression, image sizes."""
    build = report["build"]
    sides = [f"{side} px" for side in build["image_sizes"]] or ["language model alone"]
    purpose = ["for Apple's sample app"] if build["purpose"] else []
    format_ = ["ONNX"] if is_onnx(report) else []
    return ", ".join([plain(build["source"]), *format_, build["compression"]["scheme"], *sides, *purpose])


def is_onnx(report: dict[str, Any]) -> bool:
    """Whether the report is of a build of ONNX files; older documents, which do not say, are of packages."""
    return bool(report["build"]["format"] == "onnx")


def ours(report: dict[str, Any]) -> str:
    """Returns what the build's side is called beside PyTorch's."""
    return "ONNX" if is_onnx(report) else "Core ML"


def verdict(report: dict[str, Any]) -> dict[str, Any]:
    """Returns the verdict in a line and in a sentence, and the limits that were missed."""
    missed = [row for row in report["limits"] if not row["passed"]]
    lines = [
        f"{plain(row['quantity'])}.{plain(row['metric'])} is {number(row['value'])}, {bound(row)}"
        for row in missed[:MISSED]
    ]
    lines += [f"and {len(missed) - MISSED} more"] if len(missed) > MISSED else []
    lines += [f"not measured, though it should have been: {name}" for name in report["lacking"]]
    return {"head": HEADS[report["verdict"]], "text": _said(report), "missed": lines}


def _said(report: dict[str, Any]) -> str:
    executed = {
        "mil": "by this project's own runtime (backend mil)", "coreml": "by Core ML (backend coreml)",
        "onnx": "by onnxruntime (backend onnx)",
    }.get(report["backend"], f"by backend {report['backend']}")  # fmt: skip
    steps = f", {report['steps']} steps each" if any(row["transcript"] for row in report["questions"]) else ""
    count = report["compared_in_full"]
    pictures = f"{count} picture{'' if count == 1 else 's'}{steps}"
    against = {
        "passed": "and they compute what PyTorch computes on the checkpoint they were made from",
        "failed": "and they do not compute what PyTorch computes on the checkpoint they come from: do not ship them",
        "compared": "beside another checkpoint than the one they were made from, which proves nothing about the build",
    }[report["verdict"]]
    what = "ONNX files" if is_onnx(report) else "packages"
    return f"The {what} were executed {executed}, {against}. Compared in full: {pictures}."


def tiles(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the numbers that a reader wants first; those that miss their limit are marked."""
    return [{"label": label, "value": value, "bad": bad} for label, value, bad in _tiles(report)]


def _tiles(report: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    limits = {f"{row['quantity']}.{row['metric']}": row for row in report["limits"]}
    score = report["score"]
    if score:
        yield "answers are the same as PyTorch's", f"{score['agree']} of {score['count']}", False
    transcripts = [row["transcript"] for row in report["questions"] if row["transcript"]]
    if transcripts:
        steps = [step for transcript in transcripts for step in transcript["steps"]]
        apart = [step for step in steps if step["pytorch"]["id"] != step["coreml"]["id"]]
        divergences = sum(not step["tie"] for step in apart)
        ties = len(apart) - divergences
        yield (
            f"of {len(steps)} tokens differ{f', besides {ties} {_ties(ties)}' if ties else ''}",
            str(divergences),
            divergences > 0,
        )
    for key, label, shown in (
        ("encoder.psnr_db", "PSNR of the image tokens", decibel),
        ("answer.kl", "nats, KL of the logits from pixels", number),
        ("language.kl", "nats, KL of the logits", number),
    ):
        if key in limits and not (key == "language.kl" and "answer.kl" in limits):
            row = limits[key]
            yield f"{label}, {bound(row)}", shown(row["value"]), not row["passed"]
    if report["ranges"]:
        ranges = report["ranges"]
        for row in ranges["largest"][:1]:
            beyond = not as_float(row["peak"]) <= as_float(ranges["limit"])
            yield f"largest activation, fp16 ends at {number(ranges['ceiling'])}", number(row["peak"]), beyond
    yield "the whole build", size(report["sizes"]["total_bytes"]), False
    if report["times"] and report["times"]["measured_by"] == "profile":
        for fall in [each for each in waterfalls(report["times"]) if each["until"]][:1]:
            while_busy = ", on a busy machine" if busy(report["times"]) else ""
            yield f"{fall['until']}, {plain(fall['name'])}{while_busy}", seconds(fall["total"]), False


def busy(times: dict[str, Any] | None) -> bool:
    """Whether others kept the machine busy while it measured."""
    return times is not None and times["load_average"] is not None and as_float(times["load_average"]) > BUSY


def _ties(count: int) -> str:
    return "tie" if count == 1 else "ties"


def answers(report: dict[str, Any]) -> dict[str, str]:
    """Returns what came of the questions: a heading, and a sentence or two."""
    score = report["score"]
    if not score and any(row["transcript"] for row in report["questions"]):
        text = "The language model alone, led through PyTorch's answers on PyTorch's image tokens."
        return {"head": "Questions", "text": text}
    if not score:
        return {"head": "Pictures", "text": "The encoder alone; it answers nothing by itself."}
    text = f"The files of the build, executed, and PyTorch agree on {score['agree']} of {score['count']}."
    if score["answered"]:
        text += f" Of {score['answered']} with a known answer the build has {score['build_right']} right, "
        text += f"PyTorch {score['reference_right']}."
    if score["count"] > score["in_full"]:
        text += f" The first {score['in_full']} are compared step by step, of the others the answers alone."
    return {"head": "Answers", "text": text}


def differing(transcript: dict[str, Any] | None) -> dict[str, Any]:
    """Counts the steps of a transcript at which the tokens differ: in all, by kind, and behind the answer's end."""
    steps = transcript["steps"] if transcript else []
    apart = [(place, step) for place, step in enumerate(steps) if step["pytorch"]["id"] != step["coreml"]["id"]]
    end = transcript["answer_steps"] if transcript else 0
    ties = sum(step["tie"] for _, step in apart)
    behind = [step for place, step in apart if place > end]
    return {
        "count": len(apart), "ties": ties, "divergences": len(apart) - ties, "behind": len(behind),
        "end": any(place == end for place, _ in apart), "divergences_behind": any(not step["tie"] for step in behind),
    }  # fmt: skip


def facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns what a build is and where it came from, as names and values."""
    return [(name, value) for name, value in _facts(report["build"]) if value] + [
        ("Report made by", f"fastvlm {report['tool']['version']}, schema {report['schema']}")
    ]


def _facts(build: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    yield "Source", build["source"]
    yield "Revision", build["revision"]
    yield "Layout", build["layout"]
    yield "Said at the export", "; ".join(f"{row['option']}: {row['value']}" for row in build["options"])
    yield "Licence", build["licence_text"]
    yield "Made for", {"ane": "the Neural Engine", "gpu": "the GPU", "cpu": "onnxruntime"}.get(build["target"] or "")
    yield "Purpose", build["purpose"]
    yield "Compression", _compression(build["compression"])
    yield (
        "Pictures",
        f"{', '.join(f'{side} × {side}' for side in build['image_sizes'])}, rule {build['image_rule']}"
        if build["image_sizes"]
        else None,
    )
    yield "Conversation", build["template"]
    yield (
        "Context",
        f"{build['context']} positions{_chunks(build['query_length'])}" if build["context"] else None,
    )
    yield "Scaled for fp16", "yes, by exact powers of two" if build["protected"] else "no"
    yield "Saturated weights", f"of {build['saturated']} tensors" if build["saturated"] else None
    yield "Made by", f"fastvlm {build['made_by']}, manifest {build['manifest_schema']}"


def _chunks(rows: int | None) -> str:
    return f", prefill in chunks of {rows}" if rows else ""


def _compression(record: dict[str, Any]) -> str:
    counts = [f"{row['part']} {row['count']} layers in {row['scheme']}" for row in record["layers"]]
    return "; ".join([record["scheme"], *counts, f"embeddings in {record['embeddings']}"])
