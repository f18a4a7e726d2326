"""A world's files are checked as a whole when they are read."""

import shutil
from pathlib import Path

import pytest

import wukong.kitchen.worlds
from wukong.errors import DataError, UsageError
from wukong.kitchen.corpus import KINDS
from wukong.kitchen.worlds import LANGUAGES, load_world, read_world

FILES = Path(wukong.kitchen.worlds.__file__).parent


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_a_world_with_the_same_parts(language) -> None:
    world, english = load_world(language), load_world("en")
    assert load_world(language) is world
    assert set(world.corpus.mixture) <= set(KINDS)
    assert sum(world.corpus.mixture.values()) == pytest.approx(100, abs=2)
    assert len(world.hazards.families) == len(english.hazards.families) == 10
    names = set(world.hazards.dangers)
    assert all(names.issuperset(family.dangers) for family in world.hazards.families)
    assert {path.name for path in (FILES / language).iterdir()} == {path.name for path in (FILES / "en").iterdir()}


def test_an_unknown_language_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no kitchen in 'tlh'"):
        load_world("tlh")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("dishes.yaml", "servings: 4", "servings: 0", r"dishes.yaml: field '0.servings': .*greater than 0"),
        ("dishes.yaml", "500 g flour", "flour", r"dishes.yaml: 'flour' is not a quantity and a name"),
        ("dishes.yaml", "minutes: 90", "minuets: 90", r"dishes.yaml: field '0.minutes': Field required"),
        (
            "manners.yaml",
            r"regrets: \b(sorry",
            r"regrets: \b((sorry",
            r"manners.yaml: field 'regrets': .*not a regular",
        ),
        ("knowledge.yaml", "Cook chicken to 74 C", "Cook chicken", r"'Cook chicken' does not end in a temperature"),
        ("layout.yaml", "separator: ', '", "separator: 5", r"layout.yaml: field 'separator': .*valid string"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path, file, old, new, message) -> None:
    copy = shutil.copytree(FILES / "en", tmp_path / "en")
    text = (copy / file).read_text(encoding="utf-8")
    assert old in text
    (copy / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_world(copy, "en")
