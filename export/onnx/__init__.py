"""The same model as ONNX: graphs written op by op, weights streamed into one data file beside each.

graph.py       a graph in the making: ops, inputs, outputs, weights; data.py: the file of its weights
encoder.py     VisionEncoder.onnx at one or several image sizes: encoder_graph.py writes it module by module, forms.py
               its nonlinear ops, encoder_int8.py its form in eight bits, smoothing.py what those need of its channels
language.py    LanguageModel.onnx: decoder.py writes it layer by layer, attention.py its attention; folded.py says what
               numbers belong there, weights.py how a matrix lies and is multiplied by, schemes.py which forms there are
coreml_ep.py   the language model for onnxruntime's CoreML provider; coreml_layers.py writes it

Graphs are written, not traced: an op here is an op in the file, which is what lets onnxruntime's own kernels be named
(`com.microsoft`), 7B be exported in a few gigabytes, and a reader find each op's source.
"""
