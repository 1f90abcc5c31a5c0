"""One file per command. Only this folder, `cli.py` and `terminal.py` may print or use click and rich.

A command checks what was typed, calls one function of a room (imported inside the command, so that help stays fast),
shows the result, and names the command to type next.
"""
