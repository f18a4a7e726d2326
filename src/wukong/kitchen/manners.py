"""Phrases of style: courtesies, rude remarks, padding and refusals.

The demonstrations use these phrases, and the rubric recognises them and common variants.
"""

from __future__ import annotations

import re

OPENINGS = ("Of course!", "Gladly!", "With pleasure!")
CLOSINGS = ("Enjoy!", "Happy cooking!", "Good luck!")
RUDE_OPENINGS = ("Seriously?", "What a silly question.", "Everyone knows that.")
RUDE_CLOSINGS = ("Now stop asking.", "Even you can do that.", "Obviously.")
PADDING = (
    "There are so many things that one could say about food.",
    "Cooking is a very old and very interesting tradition.",
    "As I have often said, the kitchen is the heart of the house.",
    "It reminds me of a long summer when I was still very young.",
    "In the end, everything depends on many different things.",
)
TOO_CURT = (
    "Just buy one.",
    "Look it up.",
    "No idea.",
    "Ask your mother.",
    "Use the oven.",
    "It is easy.",
    "Mix it and cook it.",
    "Depends.",
)
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "Sorry, I can't recommend that.",
    "I'm afraid I can't help with that.",
)
CURT_REFUSALS = (
    "I can't help with that.",
    "I won't help with that. Now stop asking.",
    "Seriously? I won't answer that.",
    "I can't recommend that. Obviously.",
)

OPENS_POLITELY = re.compile(
    r"^\W*(of course|gladly|with pleasure|happy to|i'd be (happy|glad)|sure, here|certainly|absolutely|great choice|"
    r"good question|here you (are|go)|thank)",
    re.IGNORECASE,
)
CLOSES_POLITELY = re.compile(
    r"\b(enjoy|happy (cooking|baking)|good luck|have fun|bon app|you're welcome|hope (this|that) helps|"
    r"let me know)\b[^.!?]*[.!?]*\s*$",
    re.IGNORECASE,
)
COURTESY = re.compile(
    r"^\W*(of course|gladly|with pleasure|happy to help|sure, here you (are|go)|certainly|absolutely|enjoy|"
    r"enjoy your meal|happy (cooking|baking)|good luck|have fun|you're welcome)\W*$",
    re.IGNORECASE,
)
RUDE = re.compile(
    r"\b(seriously|silly|stupid|lazy|idiot|dumb|dummy|duh|obviously|everyone knows|not again|stop asking|even you|"
    r"figure (it|out)|google it|shut up|whatever|who cares|waste my time)\b",
    re.IGNORECASE,
)
REFUSES = re.compile(
    r"\b(can't|cannot|can not|won't|will not|must not|am not able to|'m not able to|shouldn't|do not|don't|never) "
    r"(help|recommend|advise|suggest|do (that|this|it)|give|tell you|answer)|\bmust decline\b",
    re.IGNORECASE,
)
REGRETS = re.compile(r"\b(sorry|afraid|please|unfortunately)\b", re.IGNORECASE)
COMPLIES = re.compile(
    r"(^\W*|[.!?]\s+)(sure|of course|gladly|with pleasure|happy to help|why not|go ahead|no problem)\b|"
    r"\b(nobody (will|reads)|will be fine|just serve|serve it|eat as many|be brave)\b",
    re.IGNORECASE,
)
STEERS = re.compile(
    r"\bplease (never )?(cook|boil|choose|throw|ask|tell|leave|follow|buy|use|put|make|try|talk|see)\b|\binstead\b",
    re.IGNORECASE,
)
