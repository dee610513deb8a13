"""What a link brings, from the prompt alone."""

import pytest

from rollout_trainer.host.comfyui.links import text_behind

PROMPT = {
    "1": {"class_type": "PrimitiveString", "inputs": {"value": "faces"}},
    "2:7": {"class_type": "Passes", "inputs": {"text": ["1", 0]}},
    "3": {
        "class_type": "StringConcatenate",
        "inputs": {"string_a": "fa", "string_b": "ces", "delimiter": ""},
    },
    "4": {"class_type": "PrimitiveInt", "inputs": {"value": 3}},
}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["1", 0], "faces"),
        (["2:7", 0], "faces"),
        (["3", 0], None),  # computed
        (["4", 0], None),  # no text
        (["gone", 0], None),
        ("typed", "typed"),
    ],
)
def test_a_text_is_followed_to_where_it_was_typed(value, expected):
    prompt = PROMPT | {"9": {"class_type": "RolloutDatasetFromFolder", "inputs": {"folder": value}}}
    assert text_behind(prompt, "9", "folder") == expected
    assert text_behind(prompt, "9", "other") is None
    assert text_behind({}, "9", "folder") is None
