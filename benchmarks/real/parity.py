"""Does our Llama compute what transformers computes, with the weights of SmolLM2? In float32, on real texts.

    python benchmarks/real/parity.py MODEL DATA --page docs/results/smollm2.md

Texts are English and Chinese, a part of each kind (`TEXTS`), cut to --tokens. Compared are the tokens, the logits and
log-probabilities of every token of the vocabulary after every token of a text, the log-probabilities of the text itself
as the stages compute them, and greedy continuations of prompts as `wukong sample` decodes them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.table import markdown_table
from smollm2 import part_parser, publish_section

import wukong
from wukong.data.comparisons import read_comparisons
from wukong.data.instructions import read_instructions
from wukong.model.logprobs import token_logprobs
from wukong.rollout import generate, inference_copy

WIKITEXT, DOLLY = "wikitext-2/valid.txt", "instructions/dolly-sample/dolly.json"
OASST, CHINESE = "preferences/oasst/en_100_tree.jsonl.gz", "preferences/llamafactory/dpo_zh_demo.json"
QUESTIONS = "prompts/vicuna_bench_question.jsonl"
TEXTS = {WIKITEXT: 60, DOLLY: 12, OASST: 64, CHINESE: 64}
GOAL = 1e-4


def texts_of(data: Path, name: str) -> Iterator[str]:
    """The texts of a source, in its order: paragraphs, answers, or replies."""
    if name == WIKITEXT:
        yield from (line for line in (data / name).read_text(encoding="utf-8").splitlines() if len(line) > 200)
    elif name == DOLLY:
        yield from (one.messages[-1].content for one in read_instructions([str(data / name)]))
    else:
        for one in read_comparisons([str(data / name)]):
            yield one.responses[0] if name == OASST else one.chosen


def prompts(data: Path, count: int) -> list[str]:
    """As many English questions as Chinese ones."""
    lines = (data / QUESTIONS).read_text(encoding="utf-8").splitlines()
    english = [json.loads(line)["turns"][0] for line in lines]
    chinese = [one.prompt[-1].content for one in read_comparisons([str(data / CHINESE)]) if len(one.prompt) == 1]
    return [*english[: count // 2], *chinese[: count - count // 2]]


def main() -> None:
    parser = part_parser(__doc__)
    parser.add_argument("--tokens", type=int, default=96, help="of each text")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=32)
    arguments = parser.parse_args()
    policy = wukong.load_policy(arguments.model, device="cpu", precision="float32")
    ours, tokenizer = policy.model, policy.tokenizer
    theirs = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    rows = []
    with torch.inference_mode():
        for name, count in TEXTS.items():
            texts = [text for text, _ in zip(texts_of(arguments.data, name), range(count), strict=False)]
            same = sum(tokenizer.encode(text) == their_tokenizer.encode(text) for text in texts)
            worst = dict.fromkeys(("logits", "logprobs", "text"), 0.0)
            tokens = 0
            for text in texts:
                ids = torch.tensor([tokenizer.encode(text)[: arguments.tokens]])
                states = ours(ids)[0]
                expected = theirs(ids).logits[0]
                logits = ours.logits(states)
                logprobs, own_logprobs = expected.log_softmax(-1), logits.log_softmax(-1)
                of_text, _ = token_logprobs(states[:-1], ours.output_weight, ids[0, 1:])
                difference = of_text - logprobs[:-1].gather(1, ids[0, 1:, None])[:, 0]
                for key, value in {
                    "logits": logits - expected, "logprobs": own_logprobs - logprobs, "text": difference
                }.items():  # fmt: skip
                    worst[key] = max(worst[key], float(value.abs().max()))
                tokens += ids.shape[1]
            rows.append([name, len(texts), f"{tokens:,}", same, *(f"{value:.1e}" for value in worst.values())])
            print(rows[-1], file=sys.stderr)
        asked = [[{"role": "user", "content": prompt}] for prompt in prompts(arguments.data, arguments.prompts)]
        ids = [tokenizer.prompt_ids(one) for one in asked]
        same_prompts = sum(
            own == their_tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=False)
            for own, one in zip(ids, asked, strict=True)
        )
        answers = generate(
            inference_copy(ours, policy.compute), ids, eos_id=tokenizer.eos_ids, temperature=0, top_k=0, top_p=1.0,
            max_new_tokens=arguments.new_tokens, seeds=[0] * len(ids),
        )  # fmt: skip
        equal = 0
        for prompt, answer in zip(ids, answers, strict=True):
            expected = theirs.generate(
                torch.tensor([prompt]), do_sample=False, max_new_tokens=arguments.new_tokens,
                eos_token_id=list(tokenizer.eos_ids), pad_token_id=tokenizer.eos_ids[0],
            )[0, len(prompt) :].tolist()  # fmt: skip
            equal += [token for token in expected if token not in tokenizer.eos_ids] == answer.ids
    columns = ["texts", "number", "tokens", "tokenised alike", "logits", "log-probs", "log-probs of the text"]
    verdicts = []
    for what, column in (("the texts", -1), ("the whole vocabulary", -2)):
        largest = max(float(row[column]) for row in rows)
        verdicts.append(f"of {what} {'reached' if largest <= GOAL else 'not reached'} ({largest:.1e})")
    paragraphs = [
        f"Largest absolute differences to transformers {transformers.__version__}, float32:",
        markdown_table(columns, rows),
        '"logits" and "log-probs" are of all tokens of the vocabulary at every position, down to the least likely '
        "ones; the last column is of the tokens of the texts, which is what a stage trains on. "
        f"Goal: log-probs within {GOAL:g}: {', '.join(verdicts)}.",
        f"Greedy continuations of {len(ids)} prompts, half English and half Chinese, up to {arguments.new_tokens} "
        f"tokens each: {equal} of {len(ids)} equal, token by token. "
        f"Chat prompts tokenised alike: {same_prompts} of {len(ids)}.",
    ]
    body = "\n\n".join(paragraphs)
    publish_section("Parity with transformers", body, arguments)


if __name__ == "__main__":
    main()
