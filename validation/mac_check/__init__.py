"""`make mac-check`: what Core ML on this Mac makes of a build, held beside what this project says of it without a Mac.

    answers      image tokens, logits and greedy ids, for each choice of compute units, beside the MIL runtime's
    beside_lint  where Core ML's plan puts each op, beside what the rules of `fastvlm lint` predict
    checking     both of them and latencies, for the embedded checkpoint and for a build that the user names
    report       device-report.json, from which docs/device-truth.md is made; nothing in it names its owner

`python -m validation.mac_check [BUILD] [-o FILE]` runs it.
"""
