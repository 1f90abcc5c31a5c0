"""The ONNX files of a build, executed by onnxruntime.

opening.py     is this file what it says it is? read before onnxruntime sees it; external.py: the weights beside it,
               inside.py: past those that are in it
providers.py   what onnxruntime may run on here, by name; cores.py: how many threads that means
settings.py    every option of a session, each with its reason
loading.py     an opened file as a session, and which node runs where; failures.py: what onnxruntime raises
calls.py       one call at a time, on a thread of its own, so that it can be stopped
language.py    the language model's buffers, made once and bound once
engine.py      all of it behind `fastvlm_ref.engine.Engine`
"""
