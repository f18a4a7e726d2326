"""Chat templates of others: what `transformers` makes of them, which are taken, and what becomes of hostile ones."""

import os
import threading

import pytest

from wukong.chat_template import ChatTemplate
from wukong.errors import UsageError

ROLES = {"eos_token": "<end>", "bos_token": "<begin>"}
ASK = [{"role": "user", "content": "Q <b>é"}]
TALK = [*ASK, {"role": "assistant", "content": "A"}]
ENDED = "{{ messages[1:] | map(attribute='content') | join }}{% if messages[1:] %}<end>{% endif %}"


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, ROLES, ["<begin>", "<end>"])


@pytest.mark.parametrize(
    "body",
    [
        "{{ bos_token }}{{ messages[0]['content'] }}\n",
        "{%- for m in messages[:1] %}\n    {%- if m.role %}\n[{{ m.content | trim }}]\n    {% endif %}\n{% endfor %}",
        "{{ messages[:1] | tojson }} {{ messages[:1] | tojson(indent=2) }} {{ 'é<' | tojson(ensure_ascii=True) }}",
        "{% set ns = namespace(n=0) %}{% for m in messages[:1] %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{% for i in range(9) %}{% if i > 5 %}{% break %}{% elif i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
        "{% generation %}{{ messages[0].content }}{% endgeneration %}",
        "{{ unknown_token }}{{ strftime_now('%Y') | length }}{{ add_generation_prompt is defined }}{{ tools is none }}",
        "{% macro say(x) %}{{ x }}!{% endmacro %}{{ say(messages[0].content) }}",
    ],
)
@pytest.mark.parametrize("more", [False, True])
def test_a_template_gives_the_text_that_transformers_gives(body, more):
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    source = body + ENDED
    expected, _ = utilities.render_jinja_template(
        [TALK], chat_template=source, tools=None, documents=None, add_generation_prompt=more, **ROLES
    )
    assert template(source).render(TALK, more) == expected[0]


HOSTILE = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops over text": "{% for a in 'x' * 99999999 %}{% for b in 'x' * 99999 %}{% endfor %}{% endfor %}",
    "a long text": "{{ 'x' * 10**9 }}",
    "an endless text": "{{ 'x' * 10**13 }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "doubling": "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "macros that call themselves": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "macros of depth": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a wide field": "{{ '%2000000000d' | format(1) }}",
    "a wide method": "{{ 'x'.ljust(10 ** 10) }}",
    "a wide filter": "{{ 'x' | center(10 ** 10) }}",
    "a format": "{{ '{:2000000000}'.format(1) }}",
    "much output": "{% for i in range(99999) %}{{ 'abcdefghijkl' * 100 }}{% endfor %}",
    "a long error": "{{ raise_exception('no\n' * 10 ** 6) }}",
    "a filter that writes": "{{ lipsum(n=100000) }}",
    "a deep source": "{{" + "(" * 20000 + ")" * 20000 + "}}",
    "many blocks": "{% if true %}" * 400 + "{% endif %}" * 400,
    "a recursive loop": "{% for c in range(3) recursive %}{{ loop(range(3)) }}{% endfor %}",
    "a file": "{% include '/etc/passwd' %}",
    "Python's insides": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "division by zero": "{{ 1 / 0 }}",
    "other types": "{{ strftime_now(messages) }}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_is_refused_in_one_line(source):
    with pytest.raises(UsageError, match=r"^chat template given as text: ") as error:
        template(source + ENDED)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_a_template_that_loops_later_is_stopped_and_the_next_one_runs():
    endless = "{% for a in messages[0].content %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}"
    endless += "{% endfor %}{% endfor %}" + ENDED
    with pytest.raises(UsageError, match="takes more than 1 seconds"):
        template("{% if messages[0].content != 'Q' %}" + endless + "{% endif %}" + ENDED).render(TALK, False)
    assert template(ENDED).render(TALK, False) == "A<end>"


def test_several_threads_and_a_forked_process_may_render_at_once():
    one, texts = template("{{ messages[0].content }}" + ENDED), {}

    def render(n: int) -> None:
        texts[n] = [one.render([{"role": "user", "content": f"{n} {k}"}], True) for k in range(20)]

    threads = [threading.Thread(target=render, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {n: [f"{n} {k}" for k in range(20)] for n in range(8)}
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
    else:
        failed = True
        try:
            failed = one.render(TALK, False) != "Q <b>éA<end>"
        finally:
            os._exit(failed)
    assert one.render(TALK, False) == "Q <b>éA<end>"


def test_the_shipped_templates_need_no_other_process(monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("a process was started"))
    for name in ("alpaca", "plain"):
        assert ChatTemplate(name, ROLES, ["<end>"]).render(TALK, False).endswith("A<end>")


def test_the_end_token_is_what_the_template_writes_behind_an_answer():
    chatml = (
        "{% for m in messages %}{{ '<begin>' + m.role + '\n' + m.content + '<end>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<begin>assistant\n' }}{% endif %}"
    )
    one = template(chatml)
    assert (one.end, one.answer_follows_text) == ("<end>", True)
    assert list(one.turns([*TALK, *ASK], waiting=True)) == [
        ("<begin>user\nQ <b>é<end>\n<begin>assistant\n", False),
        ("A<end>", True),
        ("\n<begin>user\nQ <b>é<end>\n<begin>assistant\n", False),
    ]
    assert list(one.turns(TALK, waiting=False))[-1] == ("A<end>", True)
