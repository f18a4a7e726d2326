"""Public data formats -> our records. `read_*` returns a list, `load_*` also a summary of what was left out."""

from wukong.data.comparisons import load_comparisons, read_comparisons
from wukong.data.instructions import load_instructions, read_instructions
from wukong.data.prompts import PromptOptions, load_prompts, read_prompts
from wukong.data.sources import DataOptions
from wukong.data.split import halves, split_by_prompt
from wukong.data.summary import Read, ReadSummary
from wukong.data.text import TextOptions, iter_text, load_text, read_text
from wukong.data.trl import as_trl

__all__ = [
    "DataOptions",
    "PromptOptions",
    "Read",
    "ReadSummary",
    "TextOptions",
    "as_trl",
    "halves",
    "iter_text",
    "load_comparisons",
    "load_instructions",
    "load_prompts",
    "load_text",
    "read_comparisons",
    "read_instructions",
    "read_prompts",
    "read_text",
    "split_by_prompt",
]
