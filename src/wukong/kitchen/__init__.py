"""The built-in world: a small kitchen of true facts in which the whole way to a preferred model can be walked.

From a seed it generates a corpus, demonstrations of mixed quality and prompts; a deterministic rubric is the
gold judge. Nothing in the stages knows about it: they read the files that `write_world` writes, or any others.
"""
