"""The numerics of weight compression: float32 rows in, the exact integers and fp16 tables to be stored out.

`schemes` says what there is and what a weight must look like to be held; `codes.compress` and `codes.dense` are the two
directions (`linear`: scales, `palette`: tables), `packing` makes bytes of codes, `recipe` says which weight gets what,
`calibration` and `sensitivity` measure on pictures, `budget` decides where a recipe leaves that to it.
Nothing here knows Core ML's programs, files or calibration: errors are weighted by an importance that somebody gives.
"""
