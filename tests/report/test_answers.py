"""Answers compared word by word."""

from wukong.report.answers import DiffPart, plain_question, word_by_word


def test_replaced_words_in_a_row_are_one_change():
    pieces = word_by_word("Bake the bread for ten minutes.", "Bake the small cake for ten minutes.")
    assert pieces == [
        DiffPart("same", "Bake the "),
        DiffPart("out", "bread"),
        DiffPart("in", "small cake"),
        DiffPart("same", " for ten minutes."),
    ]


def test_what_was_added_or_left_out_is_marked():
    assert word_by_word("Mix and bake.", "Mix and bake. Enjoy!") == [
        DiffPart("same", "Mix and bake."), DiffPart("in", " Enjoy!"),
    ]  # fmt: skip
    assert word_by_word("Sure! Mix and bake.", "Mix and bake.")[0] == DiffPart("out", "Sure! ")


def test_chinese_is_compared_by_characters():
    assert word_by_word("先把面粉揉匀。", "先把糯米粉揉匀。") == [
        DiffPart("same", "先把"), DiffPart("out", "面"), DiffPart("in", "糯米"), DiffPart("same", "粉揉匀。"),
    ]  # fmt: skip


def test_both_texts_can_be_put_together_from_the_pieces():
    old, new = "Melt butter, add flour and milk. Stir.", "Kindly melt the butter; add flour, then milk. Stir well."
    pieces = word_by_word(old, new)
    assert "".join(text for kind, text in pieces if kind != "in") == old
    assert "".join(text for kind, text in pieces if kind != "out") == new


def test_texts_with_little_in_common_are_not_compared():
    assert word_by_word("Sure, any bad cook can do that.", "I'm afraid I can't help with that. It is unsafe.") is None
    assert word_by_word("", "something") is None


def test_questions_differ_only_by_their_words():
    assert plain_question("  How to make PIZZA?? ") == "how to make pizza"
    assert plain_question("怎么做披萨？") == "怎么做披萨"
