"""Nodes that lay pictures out."""

import torch

from rollout_trainer.nodes.pictures import RolloutCompareImages


def test_each_row_that_is_wired_is_one_row_of_the_comparison():
    rows = [torch.full((2, 128, 128, 3), 0.1 + 0.2 * i) for i in range(5)]
    heights, shades = [], []
    for third, fourth, fifth in [(None, None, None), (rows[2], None, None), tuple(rows[2:])]:
        output = RolloutCompareImages.execute(
            rows[0], rows[1], "a\nb", "", third=third, fourth=fourth, fifth=fifth
        )
        (grid,) = output.args
        heights.append(grid.shape[1])
        shades.append({round(float(v), 1) for v in grid[0, :, -40, 0].unique()} & {0.1, 0.3, 0.5, 0.7, 0.9})
    assert shades == [{0.1, 0.3}, {0.1, 0.3, 0.5}, {0.1, 0.3, 0.5, 0.7, 0.9}]
    assert heights[2] - heights[1] == 2 * (heights[1] - heights[0])
