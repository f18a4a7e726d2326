"""The two languages: which one is spoken, and that every text of the terminal and the reports is there in both."""

import ast
import re
import string
from pathlib import Path

import pytest
import yaml

from tests.language_of_sources import (
    calls_in,
    is_said,
    literals,
    printed_as_they_are,
    texts_of_python,
    texts_of_templates,
)
from wukong import chat, cli, cli_parser, language
from wukong.errors import RunError, Text, UsageError
from wukong.language import catalogue, chinese, choose, counted, current, joined, recognised, spoken, translate
from wukong.recipes import init
from wukong.recipes.shipped import SHIPPED
from wukong.registry import RUN, STAGES, TOOLS
from wukong.report.bilingual import closed_up, t
from wukong.report.names import STAGE_NAMES
from wukong.report.terms import from_glossaries, terms
from wukong.runner import RunOptions
from wukong.training.metric_definitions import METRICS
from wukong.wide_text import narrowed, widened, width

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "src" / "wukong"
REPORT_TEMPLATES = sorted((PACKAGE / "templates" / "report").rglob("*.jinja"))
NOT_WORDS = {"KL", "nats", "Wukong frontier", "TFLOP"}
"""The same in both languages."""
IN_TEMPLATES = {" open", "amber", "green", "red", "fails", "learned", "lost"}
"""Strings of the templates that are no texts: class names."""


@pytest.fixture(autouse=True)
def _language_as_before():
    yield
    choose(None)


# ----------------------------------------------------------------------------------------------------- which language


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW"}, "zh"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "en_GB", "LC_ALL": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "en_GB", "LC_MESSAGES": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "WUKONG_LANGUAGE": "en"}, "en"),
        ({"WUKONG_LANGUAGE": "zh"}, "zh"),
    ],
)
def test_the_environment_decides_the_language(monkeypatch, environment, expected):
    for name in ("LANG", "LC_ALL", "LC_MESSAGES", "WUKONG_LANGUAGE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert current() == expected


def test_the_option_outranks_the_environment_and_an_unknown_language_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("WUKONG_LANGUAGE", "zh")
    assert cli.main(["report", "--language", "en"]) == 2
    assert "--out and --run are required" in capsys.readouterr().err
    assert cli.main(["report"]) == 2
    assert "缺少 --out 和 --run；见 wukong report --help" in capsys.readouterr().err
    assert cli.main(["--language", "fr", "--help"]) == 2
    assert "--language fr：只能是 en, zh 之一" in capsys.readouterr().err
    monkeypatch.setenv("WUKONG_LANGUAGE", "klingon")
    assert cli.main(["--help"]) == 2
    assert "WUKONG_LANGUAGE=klingon: choose one of en, zh" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- what is filled in


def test_values_are_translated_with_the_whole_only_where_they_are_texts_of_ours():
    several = joined([counted(1, "{n:,} pair", "{n:,} pairs"), counted(2, "{n:,} pair", "{n:,} pairs"), "Report"])
    assert several == "1 pair, 2 pairs, Report"
    assert translate("zh", several) == "1 对，2 对，Report"
    assert joined([]) == ""
    assert translate("zh", RunError("{path}: {problem}", path="x", problem=Text("passed"))) == "x: 通过"


# ------------------------------------------------------------------------------------------------------- completeness


def report_texts() -> set[str]:
    said = texts_of_templates(REPORT_TEMPLATES) | texts_of_python(sorted((PACKAGE / "report").glob("*.py")))
    said |= {metric.unit for metric in METRICS.values()} | set(STAGE_NAMES.values())
    return {text for text in said if is_said(text)} - NOT_WORDS - IN_TEMPLATES


def terminal_texts() -> set[str]:
    elsewhere = ("web", "store", "report", "zh")
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if not set(path.parts) & set(elsewhere)]
    said = texts_of_python(files) | {command.help for command in chat.COMMANDS.values()}
    no_texts = {text for text in said if "\\" in text or text in ("preflight", "description")}  # patterns and keys
    return {text for text in said - no_texts if is_said(text)} - NOT_WORDS


def help_texts() -> set[str]:
    said = {*cli.OVERVIEW, cli.RUN_NOTE, cli.REFERENCE, cli_parser.LANGUAGE, *cli_parser.TYROS_WORDS}
    for name, stage in {"run": RUN, **STAGES, **TOOLS}.items():
        options = RunOptions if name == "run" else stage.load()[0]
        said |= {stage.summary, options.__doc__ or "", *(f.description or "" for f in options.model_fields.values())}
    said |= {content[key] for content in shipped() for key in ("description", "time", "needs")} | set(
        init.YOURS.values()
    )
    return {" ".join(text.split()) for text in said if text}


def shipped() -> list[dict[str, str]]:
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in SHIPPED.values()]


@pytest.mark.parametrize(("texts", "fewest"), [(report_texts, 300), (terminal_texts, 130), (help_texts, 290)])
def test_every_text_is_there_in_chinese(texts, fewest):
    found = texts()
    assert len(found) > fewest
    assert found - set(chinese()) == set(), "add them to src/wukong/language/zh/{report,console,options}.json"


@pytest.mark.parametrize("name", [path.stem for path in sorted((language.HERE / "zh").glob("*.json"))])
def test_a_translation_keeps_the_places_and_the_terms(name):
    for english, found in catalogue(name).items():
        for what in (r"\{.*?\}", r"\(#[\w-]+\)", r"`[^`]*`" if name == "report" else r"\{\}"):
            assert sorted(re.findall(what, english)) == sorted(re.findall(what, found)), english
    assert [text for text, found in catalogue(name).items() if text == found] == []


def test_no_translation_is_of_a_text_that_is_gone():
    strings = {
        node.value
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    there = strings | texts_of_templates(REPORT_TEMPLATES) | help_texts() | report_texts()
    reasons = yaml.safe_load((PACKAGE / "kitchen/worlds/en/rubric.yaml").read_text(encoding="utf-8"))["reasons"]
    there |= set(reasons.values())
    for name in ("report", "console", "options"):
        gone = set(catalogue(name)) - there
        units = {
            text
            for text in gone
            if text in {f"{unit}s" for unit in ("step", "response", "document", "verdict", "tensor")}
        }
        kinds = {text for text in gone if text.startswith("kitchen/")}  # of prompts: the kitchen puts these together
        assert gone - units - kinds == set(), name


def test_nothing_is_printed_past_the_catalogue():
    """A literal in `print` or in a table's heads is one language only: `spoken` or `Text` looks it up."""
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if "migrations" not in path.parts]
    found = [one for path in files for one in printed_as_they_are(path)]
    assert [one for one in found if one.partition(": ")[2] not in SAME] == []


SAME = {"wukong 7", "token"}
"""What is printed in both languages alike."""


def test_every_place_of_a_line_is_filled_in():
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or not node.args:
                continue
            said, named = node.args[0], [keyword.arg for keyword in node.keywords]
            if node.func.id not in ("say", "Text", "spoken", "UsageError", "RunError") or not named or None in named:
                continue
            if isinstance(said, ast.Constant):
                places = {field for _, field, _, _ in string.Formatter().parse(said.value) if field}
                assert places == set(named), f"{path}:{node.lineno}"


def test_no_text_is_translated_in_two_ways():
    files = [path.stem for path in (language.HERE / "zh").glob("*.json")]
    seen: dict[str, str] = {}
    for name in files:
        for english, found in catalogue(name).items():
            assert seen.setdefault(english, found) == found, english


# ---------------------------------------------------------------------------------------------------------- the terms


def test_the_definitions_of_terms_are_those_of_the_glossary():
    assert terms() == from_glossaries(REPOSITORY / "docs"), "make docs"
    assert terms()["sft"]["en"].startswith("Supervised fine-tuning: training on demonstrations")
    assert not any(re.search(r"[\[\]`]|\]\(", text) for entry in terms().values() for text in entry.values())


def test_every_term_that_a_page_explains_is_in_the_glossary():
    texts = [path.read_text(encoding="utf-8") for path in (*REPORT_TEMPLATES, *(PACKAGE / "report").glob("*.py"))]
    used = {entry for text in texts for entry in re.findall(r"\]\(#([\w-]+)\)", text)} - {"entry"}
    assert len(used) > 12
    assert used <= set(terms())


def test_two_chinese_sentences_of_a_page_have_no_blank_between_them():
    sentence = t("This page needs no network.")
    page = closed_up(f"<p>{sentence} {sentence}</p>")
    chinese_only = re.sub(r'<span lang="en">.*?</span>', "", page)
    english_only = re.sub(r'<span lang="zh">.*?</span>', "", page)
    assert re.sub("<.*?>", "", chinese_only) == 2 * translate("zh", "This page needs no network.")
    assert re.sub("<.*?>", "", english_only) == "This page needs no network. This page needs no network."


# ----------------------------------------------------------------------------------------------------------- the help


def test_the_help_is_chinese_in_a_straight_frame(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "90")
    for command in (["label"], ["run", "test"], ["chat"], ["compare"]):
        with pytest.raises(SystemExit):
            cli.main([*command, "--help", "--language", "zh"])
        printed = capsys.readouterr().out
        assert "显示本帮助并退出" in printed
        framed = [line for line in printed.splitlines() if line.startswith(("│", "╭", "╰"))]
        assert {width(line) for line in framed} <= {90}
        for word in ("options", "usage", "show this help", "default:", "required", "positional"):
            assert word not in printed, word


def test_wide_text_has_as_many_characters_as_columns():
    text = "模型的回答，token 数（见上）。"
    assert len(widened(text)) == width(text) == 30
    assert narrowed(widened(text)) == text
    assert widened("plain") == "plain"
    assert narrowed("plain") == "plain"
    parts = widened("回答，好").split(" ")
    assert not any(part.startswith("，") for part in parts), "no line begins with a comma"


def test_the_overview_and_the_errors_are_chinese(capsys):
    assert cli.main(["--help", "--language", "zh"]) == 0
    printed = capsys.readouterr().out
    assert "从原始文本到人们喜欢的语言模型。" in printed
    assert "各个阶段，按流程顺序：" in printed
    assert cli.main(["label", "--error-rate", "x", "--language=zh"]) == 2
    assert "wukong：错误：--error-rate：应为数字，而不是 'x'；见 wukong label --help" in capsys.readouterr().err


def test_a_commands_language_ends_with_it(capsys):
    for arguments, code in ((["--help", "--language", "zh"], 0), (["label", "--error-rate", "x", "--language=zh"], 2)):
        assert cli.main(arguments) == code
        assert current() == "en"


def test_a_line_is_spoken_in_the_chosen_language():
    choose("zh")
    assert spoken("talk to the model: wukong chat {model}", model="x") == "与模型对话：wukong chat x"
    with pytest.raises(UsageError, match="choose one of en, zh"):
        choose("fr")


# -------------------------------------------------------------------------------------------------------- the reasons


def test_the_rubrics_reasons_are_those_of_the_chinese_kitchen():
    english, chinese_ones = (
        yaml.safe_load((PACKAGE / f"kitchen/worlds/{name}/rubric.yaml").read_text(encoding="utf-8"))["reasons"]
        for name in ("en", "zh")
    )
    said = catalogue("reasons")
    assert {name: said[template] for name, template in english.items()} == chinese_ones


def test_a_stored_reason_is_said_in_chinese_with_its_values():
    for stored, expected in (
        ("missing: flour, 2 eggs", "缺少：flour, 2 eggs"),
        ("invented: oil, rice, salt, tea and 3 more", "凭空多出：oil, rice, salt, tea，另有 3 样"),
        ("not told rightly: Fry and stir once more", "说得不对：Fry and stir once more"),
        ("longer than the context of 64 tokens", "超出 64 个 token 的上下文"),
        ("somebody's own reason", "somebody's own reason"),
    ):
        reason = recognised(stored)
        assert reason == stored
        assert translate("zh", reason) == expected


# --------------------------------------------------------------------------------------------------------- the errors

ERRORS = {"UsageError", "RunError", "DataError", "ServerError", "_PassingError", "InvitationError"}
"""What commands end with. A ValueError of the numerics is for programs, and so are the errors of the API (`serve`)."""


def error_skeletons() -> set[str]:
    """The text of every error, with 7 for each value."""
    found: set[str] = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, call, named in calls_in(path):
            hints = [keyword.value for keyword in call.keywords if keyword.arg == "hint"]
            if name in ERRORS or name in ("error", "wrong"):
                found.update(text for one in (*call.args[:1], *hints) for text in literals(one, named))
            if name == "ValueError" and is_of_options(path) and "serve" not in path.parts:
                found.update(text for one in call.args for text in literals(one, named))
    return {re.sub(r"\{.*?\}", "7", text) for text in found}


def is_of_options(path: Path) -> bool:
    """Whether the file has options, whose ValueErrors the command line shows."""
    source = path.read_text(encoding="utf-8")
    return "_validator" in source and "Options" in source


PUT_TOGETHER = {
    "unknown command 77", "not valid JSON: 7", "--based-on 7: no such recipe7", "7: no such file, and no such recipe7",
    "--7 7: the recipe 7 has no such step7", "7 problem7 found; see above what to do",
    "7: no document for the 7 shards7", "convert the file to UTF-87",
    "7known: 7; --columns NAME=COLUMN renames a field", "7 needs 7", "the environment variable 7 is not set (7)",
}  # fmt: skip
"""Their last part is a hint or an ending, which a 7 is not."""


def test_every_error_is_there_in_chinese():
    wordless = re.compile(r"[^a-z]*|is 7|7: 7 is 7|message: 7|(text|step|message) 7: 7")
    texts = {text for text in error_skeletons() if not wordless.fullmatch(text)} - PUT_TOGETHER
    assert len(texts) > 400
    templates = {re.sub(r"\{.*?\}", "7", template) for template in chinese()}
    found = {text: recognised(text, "errors") for text in texts - templates}
    assert sorted(text for text, said in found.items() if not said.values and text not in chinese()) == []


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["runn"], "没有命令 runn；是不是 run？"),
        (["run", "kitchenn"], "kitchenn：没有这个文件，也没有这个配方；是不是 kitchen？"),
        (["run", "test", "--until", "sftt"], "--until sftt：配方 test 没有这个步骤；是不是 sft？"),
        (["run", "test", "--sft.lr", "-1"], "sft.lr：应大于 0，而不是 -1.0"),
        (["kitchen", "--out", "x", "--megabytes", "0"], "--megabytes：应大于 0，而不是 0.0"),
        (["sft", "--model", "gone", "--data", "no.jsonl", "--out", "x"], "没有这个"),
    ],
)
def test_wrong_input_is_explained_in_chinese(command, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command, "--language", "zh"]) == 2
    assert said in capsys.readouterr().err
