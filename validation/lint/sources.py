"""The sources of the rules: public pages, issues and files, each named once. Facts are taken, never text.

Of Apple's own authoring rules (apple/coreai-models) `common_issues.md` was read itself, `neural_engine_rules.md` only
as others quote it; `COREAI_QUOTED` says so. Both are written for Core AI, whose converter is not Core ML's.
"""

from __future__ import annotations

from validation.lint.rule import Source

_GUIDE = "https://ane-guide.readthedocs.io/en/latest"
_CT = "https://github.com/apple/coremltools/issues"
_CT_CODE = "https://github.com/apple/coremltools/blob/main/coremltools"
_JR = "https://github.com/john-rocky/CoreML-LLM/blob/main/docs"
_HOLLANCE = "https://github.com/hollance/neural-engine/issues"

APPLE_TRANSFORMERS = Source(
    "Apple, Deploying Transformers on the Apple Neural Engine",
    "https://machinelearning.apple.com/research/neural-engine-transformers",
)
COREAI_QUOTED = Source(
    "Apple, coreai-models neural_engine_rules.md, as quoted",
    "https://github.com/john-rocky/coreai-model-zoo/blob/main/knowledge/compute-units-and-authoring.md",
)
COREAI_ISSUES = Source(
    "Apple, coreai-models common_issues.md",
    "https://github.com/apple/coreai-models/blob/main/skills/skills/model-authoring/references/common_issues.md",
)
COREAI_IOS = Source(
    "Apple, coreai-models primitives/ios and models/ios/qwen2.py",
    "https://github.com/apple/coreai-models/tree/main/python/src/coreai_models",
)
GUIDE_OPS = Source("ane-guide, appendix A", f"{_GUIDE}/appendices/a-op-device-matrix.html")
GUIDE_SURFACE = Source("ane-guide, chapter 4", f"{_GUIDE}/part-1-machine/04-capability-surface.html")
GUIDE_RULES = Source("ane-guide, chapter 17", f"{_GUIDE}/part-5-practice/17-model-design-rules.html")
GUIDE_PITFALLS = Source("ane-guide, chapter 19", f"{_GUIDE}/part-5-practice/19-pitfalls-and-limits.html")
GUIDE_FAMILY = Source("ane-guide, chapter 12", f"{_GUIDE}/part-3-performance/12-cross-chip.html")
GUIDE_WEIGHTS = Source("ane-guide, chapter 7", f"{_GUIDE}/part-2-reaching/07-weights-and-compression.html")
ANEFORGE = Source("ANEForge, capabilities.md", "https://github.com/sbryngelson/ANEForge/blob/main/docs/capabilities.md")
ORION = Source("Orion, arXiv 2603.06728", "https://arxiv.org/abs/2603.06728")
RUSTANE = Source("ncdrone/rustane#13 (M3 Ultra)", "https://github.com/ncdrone/rustane/issues/13")
POOL = Source("hollance/neural-engine#2", f"{_HOLLANCE}/2")
PROFILE = Source("Anemll, anemll-profile", "https://github.com/Anemll/anemll-profile")
JR_GUIDE = Source("CoreML-LLM, ANE_EMPIRICAL_GUIDE.md", f"{_JR}/ANE_EMPIRICAL_GUIDE.md")
JR_OPS = Source("CoreML-LLM, MIL_OP_CATALOG.md", f"{_JR}/MIL_OP_CATALOG.md")
JR_LESSONS = Source("CoreML-LLM, QWEN35_LESSONS.md", f"{_JR}/QWEN35_LESSONS.md")
TOPK = Source("apple/coreai-torch#66", "https://github.com/apple/coreai-torch/issues/66")
CT_RANK = Source("coremltools, program.py", f"{_CT_CODE}/converters/mil/mil/program.py")
CT_GATHER = Source("coremltools#1103", f"{_CT}/1103")
CT_FLEXIBLE = Source("coremltools#2370", f"{_CT}/2370")
CT_ENUMERATED = Source("coremltools#1909", f"{_CT}/1909")
CT_TWO_STATES = Source("coremltools#2553", f"{_CT}/2553")
CT_STRIDE = Source("coremltools#2450", f"{_CT}/2450")
CT_BLOCKS = Source("coremltools#2510", f"{_CT}/2510")
CT_STATE = Source("coremltools#2631", f"{_CT}/2631")
CT_PALETTE_SCALE = Source("coremltools#2688", f"{_CT}/2688")
CT_PALETTE_STATE = Source("coremltools#2716", f"{_CT}/2716")
COREAI_BLOCKS = Source("apple/coreai-models#279", "https://github.com/apple/coreai-models/issues/279")
SIZE = Source("Apple, ml-stable-diffusion, README (--chunk-unet)", "https://github.com/apple/ml-stable-diffusion")
MOBIUS = Source("FluidInference/mobius#77 (M5 Pro)", "https://github.com/FluidInference/mobius/pull/77")
CONTRACT = Source("this project, docs/architecture.md", "docs/architecture.md")
