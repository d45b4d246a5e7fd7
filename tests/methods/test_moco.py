"""MoCo v2 against slow manual oracles."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from chess_cxr.methods.full_precision import normalise
from chess_cxr.methods.moco import MoCo, MoCoConfig, check_norm_groups, compute_info_nce
from chess_cxr.records import UsageError

TINY = MoCoConfig("resnet10t", embedding=16, queue=40, key_momentum=0.9, temperature=0.2, norm_groups=2)
WITHOUT_NORM = MoCoConfig("test_efficientnet_gn", embedding=16, queue=40, key_momentum=0.9, norm_groups=1)


@pytest.fixture
def method() -> MoCo:
    torch.manual_seed(0)
    return MoCo(TINY)


def make_batch(films: int = 8, size: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.randn(2, films, 1, size, size, generator=torch.Generator().manual_seed(seed))


def test_info_nce_equals_the_sum_written_out() -> None:
    generator = torch.Generator().manual_seed(3)
    query, key, queue = (F.normalize(torch.randn(n, 5, generator=generator), dim=1) for n in (4, 4, 7))
    total = 0.0
    for q, k in zip(query.tolist(), key.tolist(), strict=True):
        positive = math.exp(sum(a * b for a, b in zip(q, k, strict=True)) / 0.2)
        negatives = sum(math.exp(sum(a * b for a, b in zip(q, n, strict=True)) / 0.2) for n in queue.tolist())
        total -= math.log(positive / (positive + negatives))
    assert compute_info_nce(query, key, queue, 0.2).item() == pytest.approx(total / 4, rel=1e-5)


def test_one_descent_direction_lowers_the_loss_on_the_same_batch(method: MoCo) -> None:
    optimizer = torch.optim.SGD(method.get_parameters()["encoder"], lr=0.05)
    batch = make_batch()
    losses = []
    for _ in range(6):
        ((_, loss),) = method.losses(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


def test_the_key_encoder_follows_by_its_momentum_and_gets_no_gradient(method: MoCo) -> None:
    with torch.no_grad():
        for parameter in method.get_parameters()["encoder"]:
            parameter.add_(torch.ones_like(parameter))
    before = [p.clone() for p in method.key_encoder.parameters()]
    ((_, loss),) = method.losses(make_batch())
    loss.backward()
    method.after_step()
    assert all(p.grad is None for p in method.key_encoder.parameters())
    pairs = zip(method.key_encoder.parameters(), before, method.encoder.parameters(), strict=True)
    for moved, old, query in pairs:
        torch.testing.assert_close(moved, 0.9 * old + 0.1 * query)


def test_the_queue_takes_the_newest_keys_and_wraps_around(method: MoCo) -> None:
    taken = []
    for step in range(6):
        list(method.losses(make_batch(seed=step)))
        keys = method._new_keys_BD
        assert keys is not None
        taken.append(keys.clone())
        method.after_step()
    newest = torch.cat(taken)[-40:]
    assert int(method.queue_position) == 48
    torch.testing.assert_close(method.queue_KD.roll(-8, 0), newest)


def test_a_queue_shorter_than_the_batch_keeps_the_last_keys() -> None:
    method = MoCo(MoCoConfig("resnet10t", embedding=16, queue=5, norm_groups=2))
    list(method.losses(make_batch()))
    keys = method._new_keys_BD
    assert keys is not None
    expected = keys[-5:].clone()
    method.after_step()
    assert {tuple(row) for row in method.queue_KD.tolist()} == {tuple(row) for row in expected.tolist()}


def test_keys_come_back_to_their_queries_after_the_shuffle() -> None:
    torch.manual_seed(0)
    method = MoCo(MoCoConfig("resnet10t", embedding=16, queue=8, norm_groups=4)).eval()
    films = make_batch()[1]
    expected = F.normalize(method.key_head(method.key_encoder(films)), dim=1)
    torch.testing.assert_close(method._embed_keys(films), expected, atol=1e-5, rtol=1e-4)


def test_shuffling_takes_away_what_batch_norm_tells_about_the_batch() -> None:
    """With identical key and query views, unshuffled groups give equal embeddings, shuffled ones do not."""
    torch.manual_seed(0)
    method = MoCo(MoCoConfig("resnet10t", embedding=16, queue=8, norm_groups=4))
    films = make_batch(16)[0]
    with torch.no_grad():
        query = F.normalize(method.head(method._encode_in_groups(method.encoder, films)), dim=1)
        in_same_company = F.normalize(method.key_head(method._encode_in_groups(method.key_encoder, films)), dim=1)
        in_other_company = method._embed_keys(films)
    torch.testing.assert_close(query, in_same_company)
    assert (query * in_other_company).sum(1).max() < 0.9999


def embed_pairs(method: MoCo, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries of the first views and keys of the second, normalised."""
    with torch.no_grad():
        query, key = method.head(method.encoder(pairs[0])), method.key_head(method.key_encoder(pairs[1]))
    return normalise(query), normalise(key)


def test_the_symmetric_loss_is_the_mean_of_both_ways_and_the_queue_takes_the_keys_of_one_view(
    phantom_pairs: torch.Tensor,
) -> None:
    both, one = (MoCo(replace(WITHOUT_NORM, symmetric=symmetric)) for symmetric in (True, False))
    one.load_state_dict(both.state_dict())
    ways = [next(iter(one.losses(pairs)))[1].item() for pairs in (phantom_pairs.flip(0), phantom_pairs)]
    ((_, loss),) = both.losses(phantom_pairs)
    assert loss.item() == pytest.approx(sum(ways) / 2, rel=1e-5) and abs(ways[0] - ways[1]) > 1e-4
    for method in (both, one):  # the one-way method has seen the second views as keys last
        method.after_step()
    torch.testing.assert_close(both.queue_KD, one.queue_KD)
    assert int(both.queue_position) == 16


def test_only_keys_are_negatives_where_the_unfilled_queue_is_masked(phantom_pairs: torch.Tensor) -> None:
    method = MoCo(replace(WITHOUT_NORM, mask_unfilled=True, queue=24))
    ((_, loss),) = method.losses(phantom_pairs)
    assert loss.item() == 0  # nothing to be told apart from yet
    for filled in (16, 24):
        method.after_step()
        ((_, loss),) = method.losses(phantom_pairs)
        expected = compute_info_nce(*embed_pairs(method, phantom_pairs), method.queue_KD[:filled], 0.2)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_queue_tells_its_age_and_how_near_its_keys_are(phantom_pairs: torch.Tensor) -> None:
    method = MoCo(replace(WITHOUT_NORM, queue=40))
    made_at: list[int] = []
    for step in range(5):
        list(method.losses(phantom_pairs))
        ages = [step - made for made in made_at[-40:]]
        assert method.signals["queue_age_steps"] == pytest.approx(sum(ages) / len(ages) if ages else 0)
        queries, keys = embed_pairs(method, phantom_pairs)[0].tolist(), method.queue_KD.tolist()
        cosines = [sum(a * b for a, b in zip(q, k, strict=True)) for q in queries for k in keys]
        assert method.signals["negative_similarity"] == pytest.approx(sum(cosines) / len(cosines), rel=1e-3, abs=1e-5)
        method.after_step()
        made_at += [step] * 16


@pytest.mark.parametrize(("end", "expected"), [(None, [0, 0, 0]), (0.5, [0, 0.25, 0.5])])
def test_the_key_momentum_rises_only_where_an_end_is_given(end: float | None, expected: list[float]) -> None:
    method = MoCo(replace(WITHOUT_NORM, key_momentum=0.0, key_momentum_end=end), steps=2)
    kept = []
    for _ in range(3):
        before = method.key_head[0].weight.clone()
        with torch.no_grad():
            method.head[0].weight.add_(1.0)
        method.after_step()
        moved = (method.key_head[0].weight - before) / (method.head[0].weight - before)
        kept.append(1 - moved.mean().item())
    assert kept == pytest.approx(expected, abs=1e-5)


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="queue"):
        MoCo(MoCoConfig("resnet10t", queue=0))
    with pytest.raises(UsageError, match="no network named 'resnet9000'"):
        MoCo(MoCoConfig("resnet9000"))


def test_one_process_with_one_group_is_refused_where_batch_norm_would_give_the_answer_away() -> None:
    one = MoCoConfig("resnet10t", embedding=16, queue=8, norm_groups=1)
    with pytest.raises(UsageError, match=r"set method\.norm_groups to 8"):
        check_norm_groups(MoCo(one), one, world=1)
    check_norm_groups(MoCo(one), one, world=2)
    check_norm_groups(MoCo(WITHOUT_NORM), WITHOUT_NORM, world=1)
    two = replace(one, norm_groups=2)
    check_norm_groups(MoCo(two), two, world=1)


def test_keys_rarely_share_their_group_with_their_query() -> None:
    """Count, of a batch of 64, how much of its query's company a key meets again: see docs/decisions/0002."""
    method = MoCo(MoCoConfig("test_resnet", embedding=8, queue=8, norm_groups=1))
    shares = {}
    for groups in (1, 2, 8):
        method.config = replace(method.config, norm_groups=groups)
        seen: list[set[int]] = []
        method.key_encoder = Remember(seen)
        method.key_head = torch.nn.Identity()
        company = [set(range(first, first + 64 // groups)) for first in range(0, 64, 64 // groups)]
        shared = []
        for _ in range(60):
            seen.clear()
            method._embed_keys(torch.arange(64.0).reshape(64, 1, 1, 1))
            shared += [len(mine & keys) ** 2 for mine in company for keys in seen]
        shares[groups] = sum(shared) / 60 / 64 / (64 // groups)
    assert shares[1] == 1.0
    assert shares[2] == pytest.approx(0.5, abs=0.03) and shares[8] == pytest.approx(0.23, abs=0.03)


class Remember(torch.nn.Module):
    """Stands where the key encoder stands and notes which films come together."""

    def __init__(self, seen: list[set[int]]) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, view_B1HW: torch.Tensor) -> torch.Tensor:
        self.seen.append({int(film) for film in view_B1HW.flatten().tolist()})
        return view_B1HW.flatten(1).expand(-1, 8)


def test_the_published_numbers_are_the_defaults() -> None:
    config = MoCoConfig()
    assert (config.architecture, config.embedding, config.queue) == ("resnet50", 128, 65_536)
    assert (config.key_momentum, config.temperature) == (0.999, 0.2)
    assert (config.symmetric, config.key_momentum_end, config.mask_unfilled) == (False, None, False)
