"""Comparisons in Label Studio: exports tasks and imports judgments, as files or through its API."""
