"""Checkpoints of official size and layout whose weights are drawn, not trained: to measure and test with.

`sizes` the four sizes, `layout` names and shapes, `config_files` what config.json says, `weights` the rule of the
values, `outliers` the hard statistics of real weights, `vocabulary` the tokenizer, `shards` the safetensors files,
`folder` all of it together.
"""
