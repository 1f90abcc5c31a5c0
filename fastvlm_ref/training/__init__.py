"""The recipe of the embedded checkpoint: drawn scenes, questions about them, one training loop with frozen stages.

scenes.py, drawing.py, questions.py          what is in a picture, the picture, what is asked about it
vocabulary.py, supervision.py                the tokenizer; what lies under each image token
stages.py, batches.py, packing.py, rows.py   the numbers; a step's data; many questions in a row; a user's data
initial.py, batch_norm.py, replicas.py       first values; norms while learning; two threads
loop.py, recipe.py, finetune.py              the loop, and what is run through it
saving.py, evaluate.py, examples.py          the folder, its accuracy, its pictures
"""
