"""The test suite. Helpers are imported by their full names, such as `tests.stages.tiny_data`."""
