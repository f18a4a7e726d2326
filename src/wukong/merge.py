"""`wukong merge`: an adapter (LoRA) and its base model -> one plain model directory.

In:  an adapter in PEFT's format, of `wukong` or of another tool, of a language model or a reward model.
Out: a model directory that `transformers` opens without PEFT, with the adapter's tokenizer.

    wukong merge runs/mine/policy --out runs/mine/policy-merged

Every command that reads a model also reads an adapter, so merging is only needed for other tools, or to pass a model on
without its base model.
"""

from __future__ import annotations

from pathlib import Path

from wukong.console import say
from wukong.errors import UsageError
from wukong.files import atomic_directory
from wukong.model.adapters import is_adapter, open_adapter
from wukong.model.hub import load_policy, load_reward, recommended_sampling, save_policy, save_reward
from wukong.options import Options


class MergeOptions(Options):
    """Merge an adapter into its base model."""

    adapter: Path
    """The adapter's directory."""
    out: Path
    """The new model's directory."""


def run(options: MergeOptions) -> None:
    """Raises UsageError for a directory that holds no adapter, or an output that exists."""
    source, out = options.adapter, options.out
    if not is_adapter(source):
        raise UsageError(f"{source}: holds no adapter (adapter_config.json is missing), so there is nothing to merge")
    if out.exists():
        raise UsageError(f"{out}: exists already; choose another --out")
    if open_adapter(source).is_reward:
        reward_model, tokenizer = load_reward(source)
        with atomic_directory(out) as staged:
            save_reward(staged, reward_model, tokenizer)
    else:
        model, tokenizer = load_policy(source)
        with atomic_directory(out) as staged:
            save_policy(staged, model, tokenizer, sampling=recommended_sampling(source))
    say("merge: {out} is {adapter} with its base model {base}", out=out, adapter=source, base=open_adapter(source).base)
