"""The iOS bundle: this room is empty so far.

It will turn a validated build folder into what an app ships, and check such a bundle. Nothing of that exists yet, and
no command pretends that it does; a build folder (see `export`) is what there is to take to Xcode today.
"""
