"""SmolLM2-135M-Instruct, real weights: what transformers computes with them, and a few steps of SFT with adapters."""

from pathlib import Path

import pytest
import torch

import wukong
from tests.smollm2 import smollm2_gguf
from wukong.gguf_import.command import ImportOptions
from wukong.gguf_import.command import run as import_gguf
from wukong.records import Conversation, Message, write_records
from wukong.stages.sft import SFTOptions
from wukong.stages.sft import run as sft

transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")

pytestmark = [pytest.mark.slow, pytest.mark.interop]

TEXTS = (
    "The Great Barrier Reef is the world's largest coral reef system. It stretches over 2,300 km.",
    "def area(radius):\n    return 3.14159 * radius ** 2\n",
    "长城是中国古代的军事防御工程，东起山海关，西至嘉峪关。",
    "It's 25 °C — “warm”, she said … isn't it?\n\n- Yes\n- No",
)
ASK = [{"role": "user", "content": "What is the capital of France?"}]
CAPITALS = {
    "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo", "Norway": "Oslo", "Peru": "Lima",
    "Cuba": "Havana", "Kenya": "Nairobi", "Greece": "Athens", "Poland": "Warsaw", "Austria": "Vienna", "Iran": "Tehran",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("smollm2") / "model"
    import_gguf(ImportOptions(file=smollm2_gguf(), out=directory))
    return directory


def test_the_logprobs_and_the_greedy_answer_are_those_of_transformers(model):
    ours = wukong.load_policy(model, device="cpu", precision="float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    with torch.inference_mode():
        for text in TEXTS:
            ids = torch.tensor([ours.tokenizer.encode(text)])
            assert ids[0].tolist() == their_tokenizer.encode(text)
            found = ours.model.logits(ours.model(ids)[0]).log_softmax(-1)
            # of the whole vocabulary: measured was 1.05e-4 at a value of -16.7 (docs/results/smollm2.md)
            torch.testing.assert_close(found, theirs(ids).logits[0].log_softmax(-1), rtol=1e-5, atol=1e-4)
        prompt = their_tokenizer.apply_chat_template(ASK, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        expected = theirs.generate(prompt, do_sample=False, max_new_tokens=16, pad_token_id=2)[0, prompt.shape[1] :]
    (answer,) = ours.generate([ASK], temperature=0, max_new_tokens=16)
    assert answer.text == their_tokenizer.decode(expected, skip_special_tokens=True)
    assert "Paris" in answer.text


def test_a_few_steps_of_sft_with_adapters_teach_a_manner(model, tmp_path):
    demonstrations = [
        Conversation(
            messages=[
                Message(role="user", content=f"What is the capital of {country}?"),
                Message(role="assistant", content=f"{city}! (So says the monkey king.)"),
            ]
        )
        for country, city in CAPITALS.items()
    ]
    write_records(tmp_path / "demonstrations.jsonl", demonstrations)
    options = {"lora_rank": 8, "lr": 2e-3, "epochs": 3, "batch_size": 4, "valid_fraction": 0, "precision": "float32"}
    data = {"data": [str(tmp_path / "demonstrations.jsonl")], "out": tmp_path / "sft", "tensorboard": False}
    sft(SFTOptions(model=str(model), device="cpu", **options, **data))
    tuned = wukong.load_policy(tmp_path / "sft", device="cpu", precision="float32")
    assert (tmp_path / "sft" / "adapter_model.safetensors").stat().st_size < 20e6
    (answer,) = tuned.generate([ASK], temperature=0, max_new_tokens=24)
    assert answer.text == "Paris! (So says the monkey king.)"
    assert answer.finish_reason == "stop"
