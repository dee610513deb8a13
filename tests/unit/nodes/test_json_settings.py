"""Settings from JSON that somebody wrote: one printable line for whatever is wrong with it."""

import pytest

from rollout_trainer.nodes.settings import RolloutSettingsFromJSON

DEEP = '{"a":' * 2000 + "1" + "}" * 2000


@pytest.mark.parametrize(
    "text",
    [
        "{" * 3000,
        DEEP,
        "[1]",
        '"x"',
        "a" * 5000,
        "nul\0",
        '{"scheduled_sampling_probability": 1e999}',
        '{"scheduled_sampling_probability": ' + "9" * 400 + "}",
        '{"scheduled_sampling_max_step_offset": ' + "9" * 400 + "}",
        '{"scheduled_sampling_max_step_offset": ' + "9" * 5000 + "}",
        '{"scheduled_sampling_order": [1]}',
        '{"scheduled_sampling_sampler": "' + "x" * 5000 + '"}',
        '{"scheduled_sampling_x\\n\\u001b[2J": 1}',
        '{"scheduled_sampling_reflexflow": {"a": "' + "x" * 500 + '"}}',
    ],
    ids=range(14),
)
def test_a_fault_is_one_printable_line(text):
    with pytest.raises(ValueError, match="must") as told:
        RolloutSettingsFromJSON.execute(text)
    assert str(told.value).isprintable()
    assert len(str(told.value)) <= 300


def test_a_file_that_is_no_text_is_named_without_its_folder(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(ValueError, match=r"config must be a file of text in UTF-8, but config\.json is not"):
        RolloutSettingsFromJSON.execute(str(tmp_path / "config.json"))
