"""One encoder at several sizes, and the features of several of its blocks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from chess_cxr.benchmarking.encoders import check_spec, compute_identity, describe_source, load_source
from chess_cxr.benchmarking.run import run_benchmark
from chess_cxr.benchmarking.suite import EncoderSource, Suite, anchor_encoder
from chess_cxr.benchmarking.variants import Variant, parse_variant
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.records import ChessError, UsageError


def load(spec: str) -> Encoder:
    found = load_source(EncoderSource("one", spec))
    assert isinstance(found, Encoder)
    return found


def test_variants_stand_before_the_name_of_an_encoder() -> None:
    assert parse_variant("size=128:blocks=4:encoders/first") == Variant("encoders/first", 128, 4)
    assert parse_variant("chess:a.pth.tar") == Variant("chess:a.pth.tar")
    assert anchor_encoder("size=128:first", Path("/here")) == "size=128:/here/first"
    assert anchor_encoder("blocks=2:size=64:random:resnet18@32", Path("/here")) == "blocks=2:size=64:random:resnet18@32"
    for wrong in ("size=0:a", "size=64:size=32:a", "blocks=2:random", "size=64:pixels:32"):
        with pytest.raises(UsageError):
            check_spec(wrong)


def test_another_size_is_the_same_network_on_larger_films() -> None:
    plain, large = load("random:test_resnet@64"), load("size=96:random:test_resnet@64")
    assert large.contract.size == 96 and large.feature_count == plain.feature_count
    film = np.random.default_rng(0).random((96, 96), np.float32)
    with torch.inference_mode():
        wanted = plain.module(large.contract.prepare(film)[None]).numpy()
    np.testing.assert_allclose(large.embed([film]), wanted, atol=1e-5)
    assert compute_identity(plain) != compute_identity(large)


def test_the_last_blocks_of_a_convolutional_network_are_its_pooled_stages() -> None:
    plain, blocks = load("random:test_resnet@64"), load("blocks=2:random:test_resnet@64")
    film = np.random.default_rng(0).random((64, 64), np.float32)
    maps = list[torch.Tensor]()
    stages = [plain.module.layer3, plain.module.layer4]
    hooks = [stage.register_forward_hook(lambda _m, _i, out: maps.append(out)) for stage in stages]
    with torch.inference_mode():
        plain.module(plain.contract.prepare(film)[None])
    for hook in hooks:
        hook.remove()
    wanted = torch.cat([one.mean((2, 3)) for one in maps], 1).numpy()
    np.testing.assert_allclose(blocks.embed([film]), wanted, atol=1e-5)
    assert blocks.feature_count == wanted.shape[1] > plain.feature_count


def test_the_blocks_of_a_transformer_have_class_token_and_mean_of_patches() -> None:
    plain, blocks = load("random:test_vit@64"), load("blocks=2:random:test_vit@64")
    assert blocks.feature_count == 4 * plain.feature_count
    film = np.random.default_rng(0).random((64, 64), np.float32)
    with torch.inference_mode():
        tokens = plain.module.forward_features(plain.contract.prepare(film)[None])
    # the last block before the final norm: its normalised class token is the network's own
    found = torch.from_numpy(blocks.embed([film]))[:, -plain.feature_count :]
    np.testing.assert_allclose(plain.module.norm(found).detach().numpy(), tokens[:, 0].numpy(), atol=1e-4)


def test_an_untrained_network_is_like_the_reference_in_its_form() -> None:
    like = "size=96:blocks=2:random:test_resnet@64#3"
    found = load_source(EncoderSource("scratch", "random", like))
    assert isinstance(found, Encoder) and found.contract.size == 96
    assert found.feature_count == load(like).feature_count and compute_identity(found) != compute_identity(load(like))


def test_more_blocks_than_there_are_are_refused() -> None:
    with pytest.raises(ChessError, match="fewer than 40 blocks"):
        describe_source(EncoderSource("one", "blocks=40:random:test_resnet@64"))


@pytest.mark.real_films
def test_a_sweep_of_sizes_is_a_suite_of_variants(make_suite: Callable[..., Suite], tmp_path: Path) -> None:
    sizes = {f"{size} px": f"size={size}:random:test_resnet@64" for size in (32, 64)}
    run = run_benchmark(make_suite(encoders=sizes, reference="64 px", fractions=(1.0,), replicates=20), tmp_path)
    one, other = run.results.sets
    assert one.encoder == "32 px" and not np.allclose(one.test_MC, other.test_MC)
