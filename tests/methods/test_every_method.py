"""What holds for all methods alike."""

import json
from dataclasses import asdict

import pytest
import timm
import torch
from pydantic import TypeAdapter
from torch import nn

from chess_cxr.encoders.encoder import build_encoder
from chess_cxr.methods import METHODS, AnyMethod, MethodConfig, build_method
from chess_cxr.methods.full_precision import normalise
from chess_cxr.methods.moco import MoCo
from chess_cxr.methods.simclr import SimCLRConfig
from chess_cxr.records import UsageError
from chess_cxr.training.loop import TrainingConfig, build_optimizers, train
from chess_cxr.training.precision import compute_losses
from tiny_methods import CONFIGS, STEPS, TRUNK, build_tiny, give


@pytest.mark.parametrize("name", METHODS)
def test_a_configuration_is_told_apart_by_its_name_in_json(name: str) -> None:
    config = METHODS[name][0]()
    assert config.name == name
    described = json.loads(json.dumps(asdict(config)))
    assert TypeAdapter(MethodConfig).validate_python(described) == config


@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_flows_to_what_is_trained_and_nowhere_else(name: str, phantom_pairs: torch.Tensor) -> None:
    method = build_tiny(name)
    trained = {id(parameter) for parameter in method.get_parameters()["encoder"]}
    if "masked" in name:  # the first step has no negatives
        list(method.losses(give(name, phantom_pairs)))
        method.after_step()
    ((_, loss),) = method.losses(give(name, phantom_pairs))
    loss.backward()
    for key, parameter in method.named_parameters():
        if id(parameter) in trained:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
        else:
            assert parameter.grad is None and not parameter.requires_grad, key
    left_out = {key.split(".")[0] for key, parameter in method.named_parameters() if id(parameter) not in trained}
    frozen = {"encoder"} if "ViT" in name else set()
    assert left_out - frozen <= {
        "key_encoder",
        "key_head",
        "target_encoder",
        "target_head",
        "teacher_encoder",
        "teacher_head",
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_falls_on_the_same_films(name: str, phantom_pairs: torch.Tensor) -> None:
    method = build_tiny(name)
    list(method.losses(give(name, phantom_pairs.flip(1))))
    method.after_step()  # once, so that a queue holds something, and not again: what is to be found stands still
    optimizer = torch.optim.AdamW(method.get_parameters()["encoder"], lr=1e-3)
    losses = []
    for _ in range(12):
        ((_, loss),) = method.losses(give(name, phantom_pairs))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert 0.9 * losses[0] > losses[6] > losses[-1], losses


@pytest.mark.parametrize("name", CONFIGS)
def test_a_method_continues_from_its_state_as_if_nothing_had_happened(name: str, phantom_pairs: torch.Tensor) -> None:
    def run(method: AnyMethod, first: int, last: int) -> None:
        optimizer = torch.optim.SGD(method.get_parameters()["encoder"], lr=0.01)  # without momentum: it has no state
        for step in range(first, last):
            ((_, loss),) = method.losses(give(name, phantom_pairs.roll(step, 3)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.after_step()

    whole, begun, resumed = build_tiny(name), build_tiny(name), build_tiny(name, seed=1)
    torch.manual_seed(5)
    run(whole, 0, STEPS)
    torch.manual_seed(5)
    run(begun, 0, 2)
    resumed.load_state_dict({key: tensor.clone() for key, tensor in begun.state_dict().items()})
    run(resumed, 2, STEPS)
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key
    assert whole.signals == resumed.signals


@pytest.mark.parametrize("name", METHODS)
def test_an_encoder_to_continue_from_is_trained_itself_and_followed_from_where_it_is(name: str) -> None:
    encoder = build_encoder(TRUNK).eval().requires_grad_(False)
    method = build_method(CONFIGS[name], encoder)
    assert method.encoder is encoder and encoder.training
    ids = {id(parameter) for parameter in method.get_parameters()["encoder"]}
    assert all(id(parameter) in ids and parameter.requires_grad for parameter in encoder.parameters())
    follower = getattr(
        method, "key_encoder", getattr(method, "target_encoder", getattr(method, "teacher_encoder", encoder))
    )
    for own, started in zip(follower.parameters(), encoder.parameters(), strict=True):
        assert torch.equal(own, started)


def test_an_encoder_that_does_not_tell_its_features_is_refused() -> None:
    with pytest.raises(UsageError, match="the encoder to continue from has no num_features"):
        build_method(SimCLRConfig(TRUNK), nn.Flatten())


@pytest.mark.parametrize("name", CONFIGS)
def test_mixed_precision_changes_the_networks_numbers_a_little_and_their_kind_not_at_all(
    name: str, phantom_pairs: torch.Tensor
) -> None:
    method, exact = build_tiny(name), build_tiny(name)
    for step in range(2):
        torch.manual_seed(step)
        ((_, loss),) = compute_losses(method.losses(give(name, phantom_pairs)), "bfloat16", torch.device("cpu"))
        torch.manual_seed(step)
        ((_, expected),) = exact.losses(give(name, phantom_pairs))
        for one in (method, exact):
            one.after_step()
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=0.05, abs=0.05)
    assert {tensor.dtype for tensor in method.state_dict().values()} <= {torch.float32, torch.int64}


@pytest.mark.parametrize("name", [name for name in CONFIGS if "local" not in name and "dino" not in name])
def test_losses_of_given_embeddings_are_exact_under_mixed_precision(name: str) -> None:
    method = build_tiny(name)
    # networks that hand their input on: what is left is the loss
    for part in ("encoder", "head", "predictor", "key_encoder", "key_head", "target_encoder", "target_head"):
        if hasattr(method, part):
            setattr(method, part, nn.Identity())
    pairs = torch.randn(2, 16, method.config.embedding, generator=torch.Generator().manual_seed(1))
    for _ in range(2):  # a queue holds something the second time
        ((_, exact),) = method.losses(pairs)
        signals = method.signals
        ((_, loss),) = compute_losses(method.losses(pairs), "bfloat16", torch.device("cpu"))
        assert loss.item() == exact.item() and method.signals == signals
        if isinstance(method, MoCo):
            method._enqueue(normalise(pairs[1]))


def test_the_patch_projection_of_a_vit_stays_as_it_was(phantom_pairs: torch.Tensor) -> None:
    method = build_tiny("moco_v3 of a ViT")
    assert isinstance(method.encoder, timm.models.VisionTransformer)
    before = {key: tensor.clone() for key, tensor in method.encoder.state_dict().items()}
    config = TrainingConfig(steps=2, batch=16, optimizer="adamw", learning_rate=1e-3, weight_decay=0.1, frozen_steps=1)
    list(train(method, (phantom_pairs for _ in range(2)), build_optimizers(method, config), config))
    still = {key for key, tensor in method.encoder.state_dict().items() if torch.equal(tensor, before[key])}
    assert still == {"patch_embed.proj.weight", "patch_embed.proj.bias"}
