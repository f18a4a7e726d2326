"""Label Studio as the place where people compare answers: tasks there, judgments back, by file or through its API."""
