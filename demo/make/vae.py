"""Write a linear patch code as the weights of an AutoencoderTiny: exact to encode, nearly so to decode.

ComfyUI loads such an autoencoder (TAESD) with its stock VAELoader, and a linear code needs no training.
Only a stack of 3x3 convolutions stands in the way. Encoding is easy: a strided convolution tells the
four pixels of a 2x2 cell apart by its taps. Decoding is not: after a nearest-neighbour upsample the four
look alike. So the decoder first finds out where it is:

1. Zero padding is the only thing that marks a place. Shifting a constant plane inwards again and again
   leaves a ramp, 1, 2, 3, ... from each edge (nine shifts).
2. After an upsample the difference of a ramp to its neighbour is 1 on every second column (row): that tells
   the left (upper) half of a cell from the right (lower). The next upsamples repeat it with the halves.
3. Each quadrant of a cell has its own linear map. All four are computed; the three that belong elsewhere
   are pushed below zero and the ReLU removes them.

An 8x8 patch so becomes four 4x4 patches, coded by 32 numbers each, then 2x2, then pixels. The ramps of two
opposite edges meet in pictures of up to 152 px a side; in the middle of larger ones quadrants are mixed up.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from .latents import CHANNELS, PATCH, PatchCode

Conv = Any  # nn.Conv2d, 3x3
Block = Any  # diffusers' residual block
Layers = Any  # nn.Sequential of both
LATENT_SCALE = 0.15
"""The file's latents are this times the model's: AutoencoderTiny clamps them softly (3 tanh(z / 3))."""
CODES = 32
"""Numbers kept of each 4x4 quarter."""
PIXEL_OFFSET = 0.5
"""Added to 2x2 patches and pixels, about [0, 1], so that no ReLU clips them before the end."""
PIXEL_GATE = 4.0
"""Pushes any pixel value + PIXEL_OFFSET below zero."""
CENTRE = (1, 1)
LEFT, RIGHT, UP, DOWN = (1, 0), (1, 2), (0, 1), (2, 1)
QUADRANTS = ((0, 0), (0, 1), (1, 0), (1, 1))  # (row half, column half)

# How the decoder uses its 64 channels.
RAMPS = range(0, 4)  # ramps from the left, right, upper, lower edge; after an upsample, their differences
HALVES = range(4, 8)  # 1 in the left, right, upper, lower half of a cell, else 0
LATENTS = range(8, 24)
CODED = range(24, 56)  # the codes of 4x4 quarters
CELLS = range(8, 20)  # 2x2 cells, 3 x 2 x 2 values: the latents have served
PIXELS = range(24, 27)


def build_vae(code: PatchCode, latents: Tensor) -> AutoencoderTiny:
    """The autoencoder of a patch code. `latents` [N, 16, h, w] tell which values it has to pass on."""
    vae = AutoencoderTiny(latent_channels=CHANNELS, scaling_factor=1 / LATENT_SCALE, shift_factor=0.0)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
        write_encoder(vae.encoder.layers, code)
        write_decoder(vae.decoder.layers, code, latents.permute(0, 2, 3, 1).reshape(-1, CHANNELS))
    return vae.eval()


def put(conv: Conv, out: int, into: int, value: float | Tensor, tap: tuple[int, int] = CENTRE) -> None:
    """Set one weight: what channel `out` takes of channel `into` at a place of the 3x3 window."""
    conv.weight[out, into, tap[0], tap[1]] = value


def convolutions(block: Block) -> tuple[Conv, Conv, Conv]:
    """The three convolutions of a residual block, which has a ReLU after each and after the sum."""
    return block.conv[0], block.conv[2], block.conv[4]


# ---- encoder


def write_encoder(layers: Layers, code: PatchCode) -> None:
    """Space to depth twice (layers 2 and 6), then the third time and the linear map at once (10, 14).

    The encoder sees pixels in [0, 1], so W (2 p - 1 - mu) is wanted. A ReLU cannot pass negative numbers:
    layer 10 makes W and -W, layer 14 takes the difference.
    """
    for colour in range(3):
        put(layers[0], colour, colour, 1.0)
    for layer, channels in ((2, 3), (6, 12)):
        for channel in range(channels):
            for i, (y, x) in enumerate(QUADRANTS):
                put(layers[layer], 4 * channel + i, channel, 1.0, (1 + y, 1 + x))
    weight = 2 * LATENT_SCALE * code.W.view(CHANNELS, 3, PATCH, PATCH)
    for colour, y, x in torch.cartesian_prod(*map(torch.arange, (3, PATCH, PATCH))).tolist():
        channel = 16 * colour + 4 * (2 * (y & 1) + (x & 1)) + 2 * (y >> 1 & 1) + (x >> 1 & 1)
        tap = 1 + (y >> 2), 1 + (x >> 2)
        layers[10].weight[:CHANNELS, channel, tap[0], tap[1]] = weight[:, colour, y, x]
        layers[10].weight[CHANNELS : 2 * CHANNELS, channel, tap[0], tap[1]] = -weight[:, colour, y, x]
    for z in range(CHANNELS):
        put(layers[14], z, z, 1.0)
        put(layers[14], z, CHANNELS + z, -1.0)
    layers[14].bias.copy_(-LATENT_SCALE * code.W @ (1 + code.mu))


# ---- decoder


@dataclass(frozen=True)
class QuarterCode:
    """The linear code in the decoder's middle: what a 4x4 quarter of a patch becomes, and back.

    maps: [4, CODES, 16] and shifts [4, CODES]: latent -> code of each quarter
    pixels: [48, CODES] and mean [48]: code -> 4x4 pixels in [0, 1], flattened from (3, 4, 4)
    offset, gate: [CODES], added to a code to make it positive; subtracted to make it negative
    """

    maps: Tensor
    shifts: Tensor
    pixels: Tensor
    mean: Tensor
    offset: Tensor
    gate: Tensor


def quarter_code(code: PatchCode, z: Tensor) -> QuarterCode:
    """Principal components of the 4x4 quarters that latents z [M, 16] decode to."""
    decode = quarters(code.D / 2)  # [4, 48, 16]
    shift = quarters((code.mu[:, None] + 1) / 2)[..., 0]  # [4, 48]
    decoded = (torch.einsum("qpz,mz->qmp", decode, z) + shift[:, None]).flatten(0, 1)  # [4 M, 48]
    mean = decoded.mean(0)
    variance, vectors = torch.linalg.eigh(torch.cov(decoded.T))
    scale = variance.flip(0)[:CODES].clamp(min=1e-6) ** 0.25  # evens out the codes' sizes
    components = vectors.flip(1)[:, :CODES]
    to_code = (components / scale).T
    codes = (decoded - mean) @ to_code.T
    offset = -codes.amin(0) * 1.15 + 0.2  # some room for latents beyond those seen
    gate = (codes.amax(0) * 1.3 + offset) * 1.3 + 1
    return QuarterCode(to_code @ decode, (shift - mean) @ to_code.T, components * scale, mean, offset, gate)


def quarters(rows: Tensor) -> Tensor:
    """Rows of a patch [3 x 2n x 2n, K] -> those of its quadrants [4, 3 x n x n, K]."""
    half = math.isqrt(len(rows) // 3) // 2
    split = rows.view(3, 2, half, 2, half, -1)  # colour, row half, y, column half, x, K
    return torch.stack([split[:, row, :, column].flatten(0, 2) for row, column in QUADRANTS])


def write_decoder(layers: Layers, code: PatchCode, z: Tensor) -> None:
    """All layers, for model latents distributed like z [M, 16]."""
    quarter = quarter_code(code, z)
    offset = -z.amin(0) * 1.15 + 0.3
    for i, channel in enumerate(LATENTS):
        put(layers[0], channel, i, 1 / LATENT_SCALE)
        layers[0].bias[channel] = offset[i]
    write_ramps(layers)
    write_quarters(layers, quarter, offset)
    write_cells(layers, quarter)
    write_pixels(layers)


def write_ramps(layers: Layers) -> None:
    """Layers 0 to 4: ramps, min(distance to the edge, 9) + 1."""
    for ramp in RAMPS:
        layers[0].bias[ramp] = 1.0
    for block in (layers[2], layers[3], layers[4]):
        first, second, third = convolutions(block)
        for i, (ramp, tap) in enumerate(zip(RAMPS, (LEFT, RIGHT, UP, DOWN), strict=True)):
            put(first, i, ramp, 1.0, tap)
            put(second, i, i, 1.0, tap)
            put(third, ramp, i, 1.0, tap)
            first.bias[i] = second.bias[i] = third.bias[ramp] = 1.0
            put(first, 4 + i, ramp, 1.0)  # the old ramp, to be taken off what the skip adds
            put(second, 4 + i, 4 + i, 1.0)
            put(third, ramp, 4 + i, -1.0)


def write_quarters(layers: Layers, quarter: QuarterCode, latent_offset: Tensor) -> None:
    """Layers 6 to 9, at one pixel for each quarter of a patch: halves from ramps, then codes."""
    carry(layers[6], LATENTS)
    for ramp, tap, sign in zip(RAMPS, (LEFT, LEFT, UP, UP), (1.0, -1.0, 1.0, -1.0), strict=True):
        put(layers[6], ramp, ramp, sign)
        put(layers[6], ramp, ramp, -sign, tap)
    first, second, third = convolutions(layers[7])
    for ramp in RAMPS:
        put(first, ramp, ramp, 1.0)
    for axis in (0, 1):  # in small pictures both edges' ramps rise at one place: min(a + b, 1) is wanted
        for row in (axis, axis + 2):
            put(second, row, RAMPS[2 * axis], 1.0)
            put(second, row, RAMPS[2 * axis + 1], 1.0)
        second.bias[axis + 2] = -1.0
        write_halves(third, axis, {axis: 1.0, axis + 2: -1.0})
    shifts = quarter.shifts - quarter.maps @ latent_offset + quarter.offset
    for block, part in ((layers[8], slice(0, 16)), (layers[9], slice(16, CODES))):
        select(block, quarter.maps[:, part], shifts[:, part], quarter.gate[part], LATENTS, CODED[part])


def write_cells(layers: Layers, quarter: QuarterCode) -> None:
    """Layers 11 to 13, at one pixel for each 2x2 cell: its 3 x 2 x 2 values + PIXEL_OFFSET."""
    carry(layers[11], CODED)
    write_differences(layers[11])
    first, second, third = convolutions(layers[12])
    for axis in (0, 1):
        write_magnitude(first, second, axis)
        write_halves(third, axis, {axis: 1.0})
    maps = quarters(quarter.pixels)  # [4, 12, CODES]
    shifts = quarters(quarter.mean[:, None])[..., 0] - maps @ quarter.offset
    gate = torch.full((len(CELLS),), PIXEL_GATE)
    select(layers[13], maps, shifts + PIXEL_OFFSET, gate, CODED, CELLS)


def write_pixels(layers: Layers) -> None:
    """Layers 16 to 18, at full size: each pixel picks its value of the cell."""
    carry(layers[16], CELLS)
    write_differences(layers[16])
    first, second, third = convolutions(layers[17])
    for axis in (0, 1):
        write_magnitude(first, second, axis)
    for i, cell in enumerate(CELLS):
        put(first, 4 + i, cell, 1.0)
    for quadrant, (row, column) in enumerate(QUADRANTS):
        for colour in range(3):
            out = 4 + 3 * quadrant + colour
            put(second, out, 4 + 4 * colour + quadrant, 1.0)
            for axis, second_half in ((0, column), (1, row)):  # close the gate in the other half
                second.bias[out] -= 0.0 if second_half else PIXEL_GATE
                for magnitude in (2 * axis, 2 * axis + 1):
                    put(second, out, magnitude, -PIXEL_GATE if second_half else PIXEL_GATE)
            put(third, PIXELS[colour], out, 1.0)
    for colour in range(3):
        put(layers[18], colour, PIXELS[colour], 1.0)
        layers[18].bias[colour] = -PIXEL_OFFSET


def carry(conv: Conv, channels: Iterable[int]) -> None:
    """Pass channels on as they are."""
    for channel in channels:
        put(conv, channel, channel, 1.0)


def write_differences(conv: Conv) -> None:
    """+1 and -1 where left (upper) halves begin and end, 0 elsewhere, in two of the ramps' channels."""
    for axis, tap in ((0, LEFT), (1, UP)):
        put(conv, RAMPS[axis], HALVES[2 * axis], 1.0)
        put(conv, RAMPS[axis], HALVES[2 * axis], -1.0, tap)


def write_magnitude(first: Conv, second: Conv, axis: int) -> None:
    """|difference|, 1 in the left (upper) halves of the new, smaller cells: row `axis` of `second`."""
    for i, sign in enumerate((1.0, -1.0)):
        put(first, 2 * axis + i, RAMPS[axis], sign)
        put(second, axis, 2 * axis + i, 1.0)


def write_halves(third: Conv, axis: int, inputs: Mapping[int, float]) -> None:
    """The halves' channels of an axis from one that is 1 in the left (upper) half: itself, and 1 - itself.

    A block adds to what its channels hold, which here must be nothing.
    """
    here, there = HALVES[2 * axis], HALVES[2 * axis + 1]
    for row, weight in inputs.items():
        put(third, here, row, weight)
        put(third, there, row, -weight)
    third.bias[there] = 1.0


def select(
    block: Block,
    maps: Tensor,
    shifts: Tensor,
    gate: Tensor,
    inputs: Sequence[int],
    outputs: Sequence[int],
) -> None:
    """In every quadrant of a cell, outputs = its own map of the inputs + its shift, which must be > 0.

    maps: [4, O, I]; shifts: [4, O]; gate: [O], more than any map + shift
    """
    first, second, third = convolutions(block)
    for quadrant, (row, column) in enumerate(QUADRANTS):
        elsewhere = HALVES[1 - column], HALVES[3 - row]
        for i, output in enumerate(outputs):
            hidden = len(outputs) * quadrant + i
            first.weight[hidden, inputs[0] : inputs[-1] + 1, 1, 1] = maps[quadrant, i]
            first.bias[hidden] = shifts[quadrant, i]
            for half in elsewhere:
                put(first, hidden, half, -gate[i])
            put(second, i, hidden, 1.0)
            put(third, output, i, 1.0)
