"""Named run configurations."""

import pytest

from chess_cxr.encoders.encoder import build_encoder
from chess_cxr.methods.moco import count_own_groups
from chess_cxr.pretraining.presets import PRESETS, chess_paper, read_pretrain_config
from chess_cxr.records import UsageError
from chess_cxr.training.loop import check_training_config
from chess_cxr.training.run import describe


def test_the_paper_preset_has_the_published_numbers() -> None:
    config = chess_paper()
    assert (config.method.architecture, config.method.queue, config.method.embedding) == ("resnet50", 65_536, 128)
    assert (config.method.key_momentum, config.method.temperature) == (0.999, 0.2)
    training = config.training
    assert (training.optimizer, training.learning_rate, training.momentum) == ("sgd", 0.03, 0.9)
    assert (training.weight_decay, training.batch) == (1e-4, 256)
    assert training.steps == 200 * 18_750
    assert (config.views.size, config.views.crop_area, config.views.flip_p) == (512, (1.0, 1.0), 0.0)
    assert (config.pixels.mean, config.pixels.std) == (0.658, 0.221)


def test_the_paper_preset_normalises_groups_of_32_films_on_any_number_of_ranks_up_to_8() -> None:
    config = chess_paper()
    groups = {world: count_own_groups(config.method, world) for world in (1, 2, 4, 8, 16)}
    assert groups == {1: 8, 2: 4, 4: 2, 8: 1, 16: 1}  # on 8 ranks the published layout: each rank is one group


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_lets_batch_norm_give_the_answer_away_on_one_process(name: str) -> None:
    method = PRESETS[name]().method
    assert method.norm_groups == 8 and PRESETS[name]().training.batch % method.norm_groups == 0


def test_the_paper_network_has_one_input_channel_and_torchvisions_strides() -> None:
    network = build_encoder("resnet50")
    assert network.conv1.weight.shape == (64, 1, 7, 7)
    assert network.num_features == 2048
    block = network.layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json_and_can_train(name: str) -> None:
    config = PRESETS[name]()
    assert config.preset == name
    assert read_pretrain_config(describe(config)) == config
    check_training_config(config.training)


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (("training", "steps"), "many", "training.steps"),
        (("training", "stepps"), 3, "training.stepps"),
        (("views", "filters"), 7, "views.filters"),
        (("method", "queue"), 1.5, "method.queue"),
    ],
)
def test_a_wrong_entry_is_named_in_one_line(place: tuple[str, str], value: object, named: str) -> None:
    described = describe(PRESETS["cpu_small"]())
    described[place[0]][place[1]] = value
    with pytest.raises(UsageError, match=named) as error:
        read_pretrain_config(described)
    assert "\n" not in str(error.value)


def test_a_missing_entry_without_default_is_named() -> None:
    described = describe(PRESETS["cpu_small"]())
    del described["views"]
    with pytest.raises(UsageError, match="views"):
        read_pretrain_config(described)
