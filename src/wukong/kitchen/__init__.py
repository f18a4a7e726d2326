"""The built-in world: a small kitchen of true facts on which the whole pipeline can be run.

From a seed it generates a corpus, demonstrations of mixed quality and prompts; a deterministic rubric is the gold
judge. The stages do not depend on it: they read the files written by `write_world`, or any others.
"""
