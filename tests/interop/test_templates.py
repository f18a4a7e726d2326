"""The chat templates of Qwen2.5, Qwen3 and Llama 3 as released, which TRL carries along, against `transformers`."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.environments import environment
from tests.test_tokenizer_families import ANSWER, PROMPTS, VARIABLES, automatic, llama3, qwen, qwen3
from wukong.tokenizer import Tokenizer

pytestmark = pytest.mark.interop
HERE = Path(__file__).parent
RELEASED = {"qwen2_5": qwen, "qwen3": qwen3, "llama3_2": llama3}


@pytest.fixture(scope="module")
def templates() -> Path:
    requirements = [line for line in (HERE / "requirements.txt").read_text().splitlines() if line[:1] != "#"]
    python = environment("trl", requirements, shared=True) / "python"
    ask = "import importlib.util as u; print(u.find_spec('trl').submodule_search_locations[0])"
    found = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    return Path(found) / "chat_templates"


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_a_released_template_gives_the_tokens_of_transformers(templates, tmp_path, name, prompt):
    RELEASED[name](tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    source = (templates / f"{name}.jinja").read_text(encoding="utf-8")
    (tmp_path / "chat_template.jinja").write_text(source, encoding="utf-8")
    ours, theirs = Tokenizer.load(tmp_path), automatic(tmp_path)
    ids = theirs.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False, **VARIABLES)
    assert ours.prompt_ids(prompt) == ids
    whole = theirs.apply_chat_template([*prompt, ANSWER], return_dict=False, **VARIABLES)
    found, _ = ours.conversation_ids([*prompt, ANSWER])
    assert found == whole[: len(found)] == ids + ours.response_ids(ANSWER["content"])
