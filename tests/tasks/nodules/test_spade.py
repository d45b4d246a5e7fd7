"""SPADE's networks: shapes, sizes as published, and each part against the slow way."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from chess_cxr.records import UsageError
from chess_cxr.tasks.nodules.discriminator import MultiScaleDiscriminator
from chess_cxr.tasks.nodules.spade import (
    PAPER_WIDTH,
    SIZES,
    TINY_WIDTH,
    Spade,
    SpadeGenerator,
    StyledGenerator,
    list_block_widths,
    normalise_groups,
    resize_condition,
)


def build_tiny(size: int = 64, **options: bool) -> StyledGenerator:
    torch.manual_seed(0)
    return StyledGenerator(size, TINY_WIDTH, 8, **options)


def draw_layout(batch: int, size: int, corner: int = 20, side: int = 12) -> Tensor:
    mask = torch.zeros(batch, 1, size, size)
    mask[:, :, corner : corner + side, corner : corner + side] = 1
    return torch.cat([1 - mask, mask], 1)


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_films_of_every_size_come_out_between_black_and_white(size: int) -> None:
    network = build_tiny(size, ground=True)
    layout, film = draw_layout(2, size), torch.rand(2, 1, size, size)
    made, mean, log_variance = network(film, layout, film)
    assert made.shape == film.shape and made.dtype == torch.float32
    assert mean.shape == log_variance.shape == (2, 8)
    assert 0 <= made.min() < made.max() <= 1
    found = MultiScaleDiscriminator(2, TINY_WIDTH)(made, layout)
    assert [len(layers) for layers in found] == [5, 5]
    assert [layer.shape[1] for layer in found[0]] == [4, 8, 16, 32, 1]
    for scale, layers in enumerate(found):
        assert layers[0].shape[2:] == (size >> (scale + 1),) * 2
        assert layers[-1].shape[2] == (size >> (scale + 3)) - 2  # two unpadded pixels less for each kernel of four


@pytest.mark.parametrize(("size", "width"), [(32, 4), (96, 4), (1024, 4), (64, 0)])
def test_another_size_is_refused_in_one_line(size: int, width: int) -> None:
    with pytest.raises(UsageError, match="64, 128, 256, 512 px with a width of 1 or more$"):
        SpadeGenerator(size, width)


# Parameter counts by hand -----------------------------------------------------------------------------------------


def count_spade(channels: int, classes: int, hidden: int) -> int:
    return (9 * classes + 1) * hidden + 2 * (9 * hidden + 1) * channels


def count_blocks(widths: list[int], classes: int, hidden: int) -> int:
    total = 0
    for before, after in zip(widths[:1] + widths[:-1], widths, strict=True):
        between = min(before, after)
        total += count_spade(before, classes, hidden) + count_spade(between, classes, hidden)
        total += (9 * before + 1) * between + (9 * between + 1) * after
        if before != after:
            total += count_spade(before, classes, hidden) + before * after
    return total


@pytest.mark.parametrize(
    ("size", "width", "classes", "ground"), [(64, 4, 2, False), (128, 6, 3, True), (512, 5, 2, False)]
)
def test_the_generator_has_as_many_parameters_as_a_count_by_hand(
    size: int, width: int, classes: int, ground: bool
) -> None:
    network = SpadeGenerator(size, width, 32, classes, ground)
    blocks = count_blocks(list_block_widths(size, width), classes + ground, 2 * width)
    start, end = (32 + 1) * 16 * list_block_widths(size, width)[0], 9 * width + 1
    assert count_parameters(network) == start + blocks + end


@pytest.mark.parametrize(("labels", "counted", "published"), [(36, 93_048_003, "93.0"), (19, 92_538_819, "92.5")])
def test_the_network_of_the_paper_has_the_published_number_of_parameters(
    labels: int, counted: int, published: str
) -> None:
    """93.0 M for Cityscapes (35 labels and an edge map), as the README of mit-han-lab/gan-compression states.

    92.5 M for 19 labels, as the authors' code prints it.  Their network has no style encoder there and begins with a
    convolution on the layout, which is counted by hand here.
    """
    with torch.device("meta"):
        network = SpadeGenerator(256, PAPER_WIDTH, 256, classes=labels, channels=3)
    assert list_block_widths(256, PAPER_WIDTH) == [1024, 1024, 1024, 512, 256, 128, 64]
    begins_with_layout = (9 * labels + 1) * 1024
    total = count_parameters(network) - count_parameters(network.start) + begins_with_layout
    assert total == counted and f"{total / 1e6:.1f}" == published
    assert count_parameters(network.start) == (256 + 1) * 16 * 1024


def test_the_discriminator_of_the_paper_has_the_published_number_of_parameters() -> None:
    """5.6 M for 19 labels, as the authors' code prints it."""
    with torch.device("meta"):
        network = MultiScaleDiscriminator(19, 64, channels=3)
    assert count_parameters(network) == 5_568_386


# Layers against the slow way ---------------------------------------------------------------------------------------


def convolve_slowly(value: Tensor, layer: nn.Conv2d) -> Tensor:
    """One image [C, H, W], pixel by pixel, zeros around it."""
    channels, height, width = value.shape
    padded = torch.zeros(channels, height + 2, width + 2, dtype=value.dtype)
    padded[:, 1:-1, 1:-1] = value
    out = torch.empty(len(layer.weight), height, width, dtype=value.dtype)
    for o in range(len(layer.weight)):
        for y in range(height):
            for x in range(width):
                out[o, y, x] = (padded[:, y : y + 3, x : x + 3] * layer.weight[o]).sum() + layer.bias[o]
    return out


def test_spade_equals_its_equation_written_out() -> None:
    torch.manual_seed(0)
    layer = Spade(channels=32, conditions=2, hidden=3).double()
    feature, condition = torch.randn(2, 32, 4, 5).double(), torch.randint(0, 2, (2, 2, 4, 5)).double()
    with torch.no_grad():
        ours = layer(feature, condition)
        for film in range(2):
            hidden = convolve_slowly(condition[film], layer.read).clamp(min=0)
            modulation = convolve_slowly(hidden, layer.modulate)
            gamma, beta = modulation[:32], modulation[32:]
            for channel in range(32):
                group = feature[film, :16] if channel < 16 else feature[film, 16:]
                spread = math.sqrt(float(group.var(unbiased=False)) + 1e-5)
                normed = (feature[film, channel] - group.mean()) / spread
                expected = normed * (1 + gamma[channel]) + beta[channel]
                torch.testing.assert_close(ours[film, channel], expected)


def test_a_film_is_normalised_as_if_it_were_alone_and_keeps_what_tells_its_channels_apart() -> None:
    feature = torch.randn(3, 16, 6, 6) + torch.arange(16.0).reshape(1, 16, 1, 1)
    normed = normalise_groups(feature)
    torch.testing.assert_close(normed[1:2], normalise_groups(feature[1:2]))
    assert normed.mean() == pytest.approx(0, abs=1e-5)
    channel_means = normed.mean((0, 2, 3))
    assert (channel_means.diff() > 0).all()  # an instance norm would make them all 0


def test_a_layout_stays_black_and_white_at_every_size_while_its_context_is_averaged() -> None:
    layout, context = draw_layout(1, 64, corner=21, side=9), torch.rand(1, 1, 64, 64)
    for side in (4, 8, 16, 32, 64):
        resized = resize_condition(layout, context, side)
        step = 64 // side
        picked = layout[:, :, step // 2 :: step, step // 2 :: step]
        assert torch.equal(resized[:, :2], picked) and set(picked.unique().tolist()) <= {0.0, 1.0}
        blocks = context.reshape(1, 1, side, step, side, step).mean((3, 5))
        torch.testing.assert_close(resized[:, 2:], blocks)


def test_the_second_scale_of_the_discriminator_sees_a_black_and_white_layout_too() -> None:
    torch.manual_seed(0)
    network, seen = MultiScaleDiscriminator(2, TINY_WIDTH), []
    network.scales[1].register_forward_pre_hook(lambda _, given: seen.append(given))
    network(torch.rand(1, 1, 64, 64), draw_layout(1, 64, corner=21, side=9))
    (((film, layout)),) = seen
    assert film.shape == (1, 1, 32, 32) and set(layout.unique().tolist()) == {0.0, 1.0}


# Gradients, conditions, spectral norms ------------------------------------------------------------------------------


def test_every_parameter_of_generator_and_style_encoder_gets_a_gradient() -> None:
    network = build_tiny(ground=True)
    film, layout = torch.rand(2, 1, 64, 64), draw_layout(2, 64)
    made, mean, log_variance = network(film, layout, film)
    (made.square().sum() + mean.square().sum() + log_variance.square().sum()).backward()
    still = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.abs().sum()]
    assert still == []


def test_every_parameter_of_the_discriminator_gets_a_gradient() -> None:
    torch.manual_seed(0)
    network = MultiScaleDiscriminator(2, TINY_WIDTH)
    found = network(torch.rand(2, 1, 64, 64), draw_layout(2, 64))
    # a bias before a normalisation is taken away again by it
    sum(layer.square().sum() for layers in found for layer in layers).backward()
    still = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.abs().sum()]
    assert still == []


def test_the_mask_reaches_the_film_and_the_scores_of_the_discriminator() -> None:
    network, judge = build_tiny().eval(), MultiScaleDiscriminator(2, TINY_WIDTH).eval()
    latent, film = torch.zeros(1, 8), torch.rand(1, 1, 64, 64)
    here, there = draw_layout(1, 64, corner=8), draw_layout(1, 64, corner=40)
    assert (network.generator(latent, here) - network.generator(latent, there)).abs().max() > 1e-3
    for layers, others in zip(judge(film, here), judge(film, there), strict=True):
        assert (layers[-1] - others[-1]).abs().max() > 1e-4


def test_the_style_reaches_the_whole_film() -> None:
    network, layout = build_tiny().eval(), draw_layout(1, 64)
    one, other = (network.generator(torch.full((1, 8), value), layout) for value in (-1.0, 1.0))
    assert (one - other).abs().mean() > 1e-3


@pytest.mark.parametrize("build", [lambda: build_tiny(), lambda: MultiScaleDiscriminator(2, TINY_WIDTH)])
def test_spectral_norms_are_one_after_some_steps(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = build()
    layers = [layer for layer in network.modules() if hasattr(layer, "parametrizations")]
    assert len(layers) >= 10
    for layer in layers:
        with torch.no_grad():
            layer.parametrizations.weight.original.mul_(3)
            for _ in range(200):
                layer.weight  # noqa: B018  each look is one power iteration
            assert float(torch.linalg.matrix_norm(layer.weight.flatten(1), 2)) == pytest.approx(1, abs=0.03)


def test_looking_at_a_film_in_evaluation_mode_changes_nothing() -> None:
    network, judge = build_tiny(ground=True), MultiScaleDiscriminator(2, TINY_WIDTH)
    film, layout = torch.rand(2, 1, 64, 64), draw_layout(2, 64)
    for part in (network, judge):
        before = {name: tensor.clone() for name, tensor in part.state_dict().items()}
        given = (film, layout, film) if part is network else (film, layout)
        part.eval()(*given)
        assert all(torch.equal(tensor, before[name]) for name, tensor in part.state_dict().items())
        part.train()(*given)
        assert not all(torch.equal(tensor, before[name]) for name, tensor in part.state_dict().items())
