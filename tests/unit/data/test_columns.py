"""Many texts in little memory."""

import pytest

from rollout_trainer.training.data.columns import Keys, Numbered, Texts

NAMES = ["b.png", "a.png", "b.png", "c \udce4.txt", ""]
DIGESTS = [f"{i:032x}" for i in (7, 3, 1 << 127, 0)]


@pytest.mark.parametrize(("kind", "texts"), [(Texts, NAMES[1:]), (Keys, DIGESTS)])
def test_a_text_has_the_number_of_its_place(kind, texts):
    numbered = Numbered(kind(texts))
    assert [numbered.of(text) for text in texts] == list(range(len(texts)))
    assert numbered._table is None  # asked in order, it needs none
    assert [numbered.of(text) for text in reversed(texts)] == list(reversed(range(len(texts))))
    assert [numbered.of(text) for text in texts] == list(range(len(texts)))


def test_one_that_is_not_there_has_none_until_it_is_put_there():
    numbered = Numbered(Keys(DIGESTS[:2]))
    new = [DIGESTS[3], DIGESTS[2]]
    assert [numbered.of(key) for key in new] == [None, None]
    assert numbered.of(DIGESTS[0]) == 0
    assert [numbered.put(key) for key in [*new, DIGESTS[1], new[0]]] == [2, 3, 1, 2]
    assert list(numbered.texts) == [*DIGESTS[:2], *new]
    assert [numbered.of(key) for key in new] == [2, 3]


def test_of_texts_that_are_alike_any_number_is_found():
    numbered = Numbered(Texts(NAMES))
    assert [numbered.of(name) for name in NAMES] == [0, 1, 2, 3, 4]
    assert numbered.of("b.png") in (0, 2)


def test_keys_are_what_their_content_says():
    assert list(Keys.of(Keys(DIGESTS).content)) == DIGESTS
