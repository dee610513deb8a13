"""Plots and sheets: that what is drawn is there. How they look was judged by eye."""

import sys

import numpy as np
import pytest

from rollout_trainer.training.pictures.plots import (
    drift_plot,
    exposure_plot,
    filmstrip,
    image_grid,
    loss_plot,
    smoothed,
)

NAN = float("nan")


def inked(picture, colour):
    """Number of pixels of about this colour."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(picture.astype(int) - rgb).max(-1) < 24).sum())


def test_the_loss_plot_draws_every_column():
    rng = np.random.default_rng(0)
    noise = np.exp(rng.normal(0, 0.2, 100))
    adr = np.where(np.arange(100) < 40, NAN, 0.02 * noise)
    history = {"total": 0.5 * noise, "base": 0.4 * noise, "fc": 0.3 * noise, "adr": adr, "lr": noise}
    picture = loss_plot(history)
    assert picture.shape == (500, 900, 3)
    assert picture.dtype == np.uint8
    for colour in ("#1f2328", "#0969da", "#1a7f37", "#cf222e"):
        assert inked(picture, colour) > 300


def exposure(steps, bands=(1.0, 0.9, 0.5, NAN)):
    """The columns of `ExposureBias.summary`."""
    sigmas = np.linspace(1, 0, steps + 1).tolist()
    curve = [1.0 - 0.1 * i for i in range(steps + 1)]
    return {
        "sigma": sigmas,
        "energy": curve,
        "energy_floor": [0.0] * (steps + 1),
        "power": curve,
        "prediction": curve[:-1],
        "frequency": [0.125, 0.375, 0.625, 0.875],
        "spectrum": [list(bands)] * (steps + 1),
    }


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_the_exposure_plot_draws_every_model(steps):
    one = exposure_plot({"model": exposure(steps)})
    two = exposure_plot({"model": exposure(steps), "other": exposure(steps, (1.0, 1.1, 3.0, 4.0))})
    assert one.shape == two.shape == (680, 1100, 3)
    blue, red = "#0969da", "#cf222e"
    assert (inked(one, blue) > 300, inked(one, red)) == (True, 0)
    assert inked(two, red) > 300
    lower = two[340:]
    assert inked(lower, red) > 100  # the spectra


@pytest.mark.parametrize(
    "history",
    [
        {"total": [0.3], "base": [0.3], "fc": [NAN], "adr": [NAN]},
        {"total": [NAN, NAN]},
        {"total": [0.0, 0.0, 0.0]},
        {"total": [1.0, float("inf"), 2.0]},
        {"total": []},
        {},
    ],
    ids=["one point", "all nan", "zeros", "inf", "empty column", "empty"],
)
def test_the_loss_plot_survives_poor_histories(history):
    picture = loss_plot(history, size=(400, 300))
    assert picture.shape == (300, 400, 3)
    assert (picture < 128).any()


def test_one_step_is_a_visible_point():
    without = loss_plot({"total": [NAN, NAN]})
    with_point = loss_plot({"total": [0.3, NAN]})
    assert inked(with_point[60:440, 100:880], "#1f2328") + 20 < (with_point[60:440, 100:880] != 255).sum()
    assert (with_point != without).any()


def test_base_alone_is_not_drawn_twice():
    values = [0.5, 0.4, 0.3]
    assert np.array_equal(loss_plot({"total": values, "base": values}), loss_plot({"total": values}))


def test_smoothing_has_no_bias_at_the_start():
    np.testing.assert_allclose(smoothed(np.full(5, 3.0), 10), 3.0)
    np.testing.assert_allclose(smoothed(np.array([1.0, 3.0]), 2), [1.0, (3 + 0.5) / 1.5])
    assert smoothed(np.array([1.0, 3.0]), 0).tolist() == [1.0, 3.0]


def test_sparse_columns_are_drawn_where_they_have_values():
    sparse = [NAN] * 100
    sparse[20::20] = [0.5, 0.4, 0.3, 0.2]
    assert inked(loss_plot({"validation": sparse}), "#8250df") > 300


def test_strips_of_samples_with_other_numbers_have_one_size():
    small = filmstrip(*[frames(3, 0.5)] * 3, [0.9, 0.8, 0.7], [0, 0.01, 0.02], [0, 0.01, 0.02])
    large = filmstrip(*[frames(3, 0.5)] * 3, [0.9, 0.8, 0.7], [0, 1.0, 12.0], [0, 1.0, 12.0])
    assert small.shape == large.shape


def test_the_drift_plot_draws_drift_and_floor():
    picture = drift_plot([0.9, 0.8, 0.7], [0.0, 0.1, 0.3], [0.0, 0.08, 0.2])
    assert picture.shape == (420, 700, 3)
    assert inked(picture, "#cf222e") > 100


def frames(n, value, size=32):
    return np.full((n, size, size, 3), value, np.float32)


def test_a_filmstrip_shows_source_and_target_and_at_most_nine_columns():
    for n in (2, 3, 9, 30):
        numbers = np.linspace(0, 1, n)
        own = frames(n, 0.5)
        own[0], own[-1] = (1, 0, 0), (0, 0, 1)
        picture = filmstrip(own, frames(n, 0.5), frames(n, 0.5), numbers, numbers, numbers)
        pixels = 96 * 96  # small pictures are enlarged
        assert inked(picture, "#ff0000") == pixels
        assert inked(picture, "#0000ff") == pixels
        assert inked(picture, "#808080") >= (3 * min(n, 9) - 2) * pixels


def test_a_grid_keeps_its_pictures_pixel_for_pixel():
    rng = np.random.default_rng(0)
    tall = rng.integers(0, 255, (2, 128, 128, 3)).astype(np.uint8)
    picture = image_grid(
        [tall / np.float32(255), tall[:1] / np.float32(255)], ["base", "LoRA"], ["a cat", "a dog"]
    )
    for row, pictures in enumerate((tall, tall[:1])):
        for column, wanted in enumerate(pictures):
            bottom, left = (
                picture.shape[0] - (2 - row) * (128 + 4),
                picture.shape[1] - (2 - column) * (128 + 4),
            )
            assert np.array_equal(picture[bottom : bottom + 128, left : left + 128], wanted)


def test_long_captions_are_cut_and_empty_ones_are_fine():
    grid = image_grid([frames(2, 0.5, 128)], ["row"], ["word " * 200, ""])
    assert grid.shape[0] < 300


def test_rows_and_labels_must_fit():
    for rows, labels in (([], []), ([frames(1, 0)], []), ([frames(1, 0), frames(1, 0, 16)], ["a", "b"])):
        with pytest.raises(ValueError, match="rows must be pictures of one size with a label each"):
            image_grid(rows, labels)


def test_nothing_of_matplotlib_is_left_behind():
    loss_plot({"total": [1.0]})
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
