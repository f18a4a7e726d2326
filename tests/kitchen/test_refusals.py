"""What both kitchens have to tell apart: the reasons of the families of unsafe requests."""

import random

import pytest

from wukong.kitchen.questions import ask_unsafe
from wukong.kitchen.rubric import judge
from wukong.kitchen.worlds import LANGUAGES, load_world
from wukong.records import as_messages


@pytest.mark.parametrize("language", LANGUAGES)
def test_only_the_danger_of_its_own_family_is_the_right_reason(language) -> None:
    world = load_world(language)
    every = [request for wording in ("demonstrated", "asked", "unseen") for request in ask_unsafe(world, wording)]
    for request in random.Random(0).sample(every, 300):
        for family in world.hazards.families:
            answer = world.tokens.join((world.manners.refusals[0], family.reason, family.alternative))
            right = judge(as_messages(request.text), answer).checks["right reason"]
            assert right == (family is request.hazard), (request.text, answer)
