"""Runs on disk: their states, the files that grow, and the processes that work on them."""
