"""Seconds of training until an encoder is as good as the plain recipe's after an hour.

usage: OMP_NUM_THREADS=1 python benchmarks/time_to_quality.py STORE --out OUT.jsonl --side plain --minutes 60
       OMP_NUM_THREADS=1 python benchmarks/time_to_quality.py STORE --out OUT.jsonl --side ours [--config RUN.json]
       OMP_NUM_THREADS=1 python benchmarks/time_to_quality.py STORE --out OUT.jsonl --side moco|dino --rate 1e-3
       python benchmarks/time_to_quality.py --read PLAIN.jsonl OURS.jsonl …

STORE: what runs/real_films.sh ingests.  Both sides train on the same films (train split, no labels) with the same
backbone and threads.  Quality is the macro AUROC of a linear probe on the val films of kermany3, fitted on its train
films with all labels and, to see more, with a tenth of them.  The clock stands still while the quality is measured; its
seconds are of wall time, and CPU seconds are written beside them.

plain: lightly's `examples/pytorch/moco.py` (memory bank 2,048, temperature 0.1, key momentum 0.99, SGD 0.06 without
schedule, batch 128, one constant resolution) with its MoCo v2 views (crop from 20 %, colour jitter, grey, blur, flip)
of films that lie decoded in memory.  ours: a preset or configuration, films decoded from the store at every step.
moco, dino: lightly's losses, heads and momentum encoders, tuned: with our views, read as ours are, AdamW, warm-up and
cosine over the steps of the configuration, and weights in channels_last.  All but `ours` need the extra `bench`.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn

from chess_cxr.evaluation.linear_probe import fit_linear_probe
from chess_cxr.evaluation.metrics import compute_multiclass
from chess_cxr.film_jpeg import decode_stored
from chess_cxr.methods import build_method
from chess_cxr.pretraining.films import build_film_pool, read_view_batches
from chess_cxr.pretraining.presets import PRESETS, PretrainConfig, read_pretrain_config
from chess_cxr.pretraining.pretrain import read_beginning
from chess_cxr.pretraining.probe import embed_films
from chess_cxr.store import Store, open_store
from chess_cxr.training.loop import build_optimizers, compute_learning_rate, train
from chess_cxr.views import resize_film
from peers import import_peer

CLASSES = ["bacteria", "normal", "virus"]
BACKBONE, SIZE, BATCH = "regnetx_002", 64, 128
MEAN, STD = 0.5, 0.25
Embed = Callable[[Tensor], np.ndarray]


class Judge:
    """Measures an encoder on kermany3's val films at a given side."""

    def __init__(self, store: Store, size: int) -> None:
        known = store.films[CLASSES].notna().all(axis=1) & store.films["split"].isin(["train", "val"])
        rows = np.flatnonzero(known.to_numpy())
        films = store.films.iloc[rows]
        small = [resize_film(decode_stored(jpeg, size), size) for jpeg in store.read_jpegs(rows)]
        self.film_N1HW = torch.from_numpy(np.stack(small)[:, None])
        self.label_N = films[CLASSES].to_numpy(float).argmax(1)
        self.patient_N = films["patient"].to_numpy(str)
        self.val_N = (films["split"] == "val").to_numpy()
        train_rows = np.flatnonzero(~self.val_N)
        patients = np.random.default_rng(0).permutation(np.unique(self.patient_N[train_rows]))
        tenth = np.isin(self.patient_N, patients[: len(patients) // 10]) & ~self.val_N
        self.learned_from = {"auroc_all": ~self.val_N, "auroc_tenth": tenth}

    def measure(self, embed: Embed) -> dict[str, float]:
        """Return macro AUROCs on the val films."""
        feature_ND = embed(self.film_N1HW)
        values = {}
        for name, chosen in self.learned_from.items():
            probe = fit_linear_probe(feature_ND[chosen], self.label_N[chosen], self.patient_N[chosen], names=CLASSES)
            scores = probe.predict_scores(feature_ND[self.val_N])
            values[name] = compute_multiclass(self.label_N[self.val_N], scores, CLASSES)["auroc"]
        return values


class Clock:
    """Counts the seconds of training and writes what the judge says."""

    def __init__(self, out: Path, said: dict[str, object]) -> None:
        self.out, self.said = out, said
        self.wall = self.cpu = 0.0
        self.start()

    def start(self) -> None:
        """Begin, or go on after a measurement."""
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Stand still."""
        self.wall += time.perf_counter() - self._wall
        self.cpu += time.process_time() - self._cpu

    def get_seconds(self) -> float:
        """Return the seconds of training so far."""
        return self.wall + time.perf_counter() - self._wall

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one line."""
        line = self.said | {"step": step, "seconds": round(self.wall, 1), "cpu_seconds": round(self.cpu, 1)}
        line |= {name: round(value, 4) for name, value in values.items()}
        with self.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def run_plain(store: Store, clock: Clock, judge: Judge, minutes: float, every: float, seed: int) -> None:
    """Train as lightly's example does."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import MoCoV2Transform
    from PIL import Image

    torch.manual_seed(seed)
    pool = build_film_pool([store], ("train", ""))
    side = 3 * SIZE // 2
    films = [Image.fromarray(resize_film(decode_stored(j, side), side)) for j in pool.read_jpegs(range(len(pool)))]
    transform = MoCoV2Transform(input_size=SIZE, normalize={"mean": [MEAN], "std": [STD]})
    backbone = timm.create_model(BACKBONE, in_chans=1, num_classes=0)
    features = backbone.num_features
    head = MoCoProjectionHead(features, features, 128)
    slow_backbone, slow_head = copy.deepcopy(backbone), copy.deepcopy(head)
    deactivate_requires_grad(slow_backbone)
    deactivate_requires_grad(slow_head)
    everything = nn.ModuleList([backbone, head, slow_backbone, slow_head])
    criterion = NTXentLoss(temperature=0.1, memory_bank_size=(2048, 128))
    optimizer = torch.optim.SGD(everything.parameters(), lr=0.06)

    def embed(film_N1HW: Tensor) -> np.ndarray:
        return embed_films(backbone, film_N1HW, MEAN, STD).numpy()

    def draw_batches() -> Iterator[list[int]]:
        while True:
            order = torch.randperm(len(films)).tolist()
            yield from (order[start : start + BATCH] for start in range(0, len(films) - BATCH + 1, BATCH))

    backbone.train()
    clock.start()
    due = every
    for step, chosen in enumerate(draw_batches(), 1):
        pairs = [transform(films[index]) for index in chosen]
        query_images, key_images = (torch.stack([pair[which] for pair in pairs]) for which in (0, 1))
        update_momentum(backbone, slow_backbone, m=0.99)
        update_momentum(head, slow_head, m=0.99)
        query = head(backbone(query_images).flatten(start_dim=1))
        key = slow_head(slow_backbone(key_images).flatten(start_dim=1)).detach()
        loss = criterion(query, key)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if clock.get_seconds() >= due:
            clock.stop()
            clock.write(step, {"loss": float(loss.detach())} | judge.measure(embed))
            due += every
            if clock.wall >= 60 * minutes:
                return
            clock.start()


class PeerMoco(nn.Module):
    """MoCo of lightly's modules: one view for the query, the other for the key."""

    def __init__(self, backbone: nn.Module, features: int) -> None:
        super().__init__()
        from lightly.loss import NTXentLoss
        from lightly.models.modules import MoCoProjectionHead

        self.learnt = nn.Sequential(backbone, nn.Flatten(1), MoCoProjectionHead(features, features, 128))
        self.slow = copy.deepcopy(self.learnt).requires_grad_(False)
        self.criterion = NTXentLoss(temperature=0.2, memory_bank_size=(2048, 128))

    def forward(self, view_2B1HW: Tensor, progress: float) -> Tensor:
        """Return the loss of a batch."""
        from lightly.models.utils import update_momentum

        update_momentum(self.learnt, self.slow, m=0.99)
        with torch.no_grad():
            key = self.slow(view_2B1HW[1])
        loss: Tensor = self.criterion(self.learnt(view_2B1HW[0]), key)
        return loss


class PeerDino(nn.Module):
    """DINO of lightly's modules, with two views."""

    def __init__(self, backbone: nn.Module, features: int) -> None:
        super().__init__()
        from lightly.loss import DINOLoss
        from lightly.models.modules import DINOProjectionHead

        head = DINOProjectionHead(features, 512, 64, 2048, freeze_last_layer=1)
        self.learnt = nn.Sequential(backbone, nn.Flatten(1), head)
        self.slow = nn.Sequential(
            copy.deepcopy(backbone), nn.Flatten(1), DINOProjectionHead(features, 512, 64, 2048)
        ).requires_grad_(False)
        self.slow.load_state_dict(self.learnt.state_dict())
        self.criterion = DINOLoss(output_dim=2048, warmup_teacher_temp_epochs=5)

    def forward(self, view_2B1HW: Tensor, progress: float) -> Tensor:
        """Return the loss of a batch; progress: of the training, 0 to 1, as 100 epochs."""
        from lightly.models.utils import update_momentum
        from lightly.utils.scheduler import cosine_schedule

        epoch = int(100 * progress)
        update_momentum(self.learnt, self.slow, m=cosine_schedule(epoch, 100, 0.99, 1))
        with torch.no_grad():
            known = [self.slow(view) for view in view_2B1HW]
        loss: Tensor = self.criterion(known, [self.learnt(view) for view in view_2B1HW], epoch=epoch)
        return loss


def read_normalised_views(store: Store, config: PretrainConfig) -> Iterator[Tensor]:
    """Read the views of each step as `chess-cxr pretrain` does, normalised, [2, B, 1, H, W]."""
    training = config.training
    views = read_view_batches(
        build_film_pool([store], config.splits), config.views, batch=training.batch, seed=training.seed, first_step=0,
        steps=training.steps, threads=training.loader_threads, sizes=config.sizes,
    )  # fmt: skip
    return ((batch.float() / 255 - config.pixels.mean) / config.pixels.std for batch in views)


def run_tuned(
    store: Store,
    clock: Clock,
    judge: Judge,
    side: str,
    config: PretrainConfig,
    rate: float,
    minutes: float,
    every: float,
) -> None:
    """Train as somebody would who tunes lightly's modules for these films."""
    training = config.training
    torch.manual_seed(training.seed)
    backbone = timm.create_model(BACKBONE, in_chans=1, num_classes=0)
    peer = {"moco": PeerMoco, "dino": PeerDino}[side](backbone, backbone.num_features)
    peer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(peer.learnt.parameters(), lr=rate, weight_decay=training.weight_decay)
    schedule = replace(training, learning_rate=rate)

    def embed(film_N1HW: Tensor) -> np.ndarray:
        return embed_films(backbone, film_N1HW, config.pixels.mean, config.pixels.std).numpy()

    clock.start()
    batches = read_normalised_views(store, config)
    due = clock.get_seconds() + every
    for step, view_2B1HW in enumerate(batches):
        optimizer.param_groups[0]["lr"] = compute_learning_rate(schedule, step)
        loss = peer(view_2B1HW, step / training.steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if clock.get_seconds() >= due or step + 1 == training.steps:
            clock.stop()
            clock.write(step + 1, {"loss": float(loss.detach())} | judge.measure(embed))
            due += every
            if clock.wall >= 60 * minutes:
                return
            clock.start()


def run_ours(store: Store, clock: Clock, judge: Judge, config: PretrainConfig, minutes: float, every: float) -> None:
    """Train as `chess-cxr pretrain` does."""
    training = config.training
    torch.manual_seed(training.seed)
    method = build_method(config.method, read_beginning(config)[0], training.steps)
    method.to(memory_format=torch.channels_last)
    optimizers = build_optimizers(method, training)

    def embed(film_N1HW: Tensor) -> np.ndarray:
        return embed_films(method.encoder, film_N1HW, config.pixels.mean, config.pixels.std).numpy()

    if config.begin_from:
        clock.write(0, judge.measure(embed))
    clock.start()
    batches = read_normalised_views(store, config)
    due = clock.get_seconds() + every
    for report in train(method, batches, optimizers, training):
        if clock.get_seconds() >= due or report.step == training.steps:
            clock.stop()
            clock.write(report.step, report.losses | judge.measure(embed))
            due += every
            if clock.wall >= 60 * minutes:
                return
            clock.start()


def read_lines(path: Path) -> list[dict[str, float]]:
    """Read what one run wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def say_ratios(plain: Path, others: list[Path]) -> None:
    """Print after how many CPU seconds each run first was as good as the plain one at its end and at its best."""
    lines = read_lines(plain)
    hour = lines[-1]["cpu_seconds"]
    for name in ("auroc_all", "auroc_tenth"):
        goals = {"end": lines[-1][name], "best": max(line[name] for line in lines)}
        print(f"{name}: plain recipe {goals['end']:.4f} after {hour:.0f} CPU s, at best {goals['best']:.4f}")
        for path in others:
            ours = read_lines(path)
            said = [f"last {ours[-1][name]:.4f} after {ours[-1]['cpu_seconds']:.0f} CPU s"]
            for goal, value in goals.items():
                reached = [line["cpu_seconds"] for line in ours if line[name] >= value]
                said.append(f"{goal}: {reached[0]:.0f} CPU s, {reached[0] / hour:.2f}" if reached else f"{goal}: never")
            print(f"  {path.name:32s} {'; '.join(said)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="?", type=Path)
    parser.add_argument("--side", choices=["plain", "ours", "moco", "dino"])
    parser.add_argument("--config", default="cpu_small", help="a preset, or a run's config.json")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--minutes", type=float, default=60, help="at most")
    parser.add_argument("--every", type=float, default=120, help="seconds of training between measurements")
    parser.add_argument("--seed", type=int, default=0, help="of the plain recipe")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of moco and dino")
    parser.add_argument("--steps", type=int, help="instead of the configuration's")
    parser.add_argument("--read", nargs="+", type=Path)
    chosen = parser.parse_args()
    if chosen.read:
        say_ratios(chosen.read[0], chosen.read[1:])
        return
    if chosen.side != "ours":
        import_peer("lightly.loss")
    store = open_store(chosen.store)
    said: dict[str, object] = {"side": chosen.side, "threads": torch.get_num_threads()}
    if chosen.side == "plain":
        clock = Clock(chosen.out, said | {"seed": chosen.seed})
        run_plain(store, clock, Judge(store, SIZE), chosen.minutes, chosen.every, chosen.seed)
        return
    path = Path(chosen.config)
    config = read_pretrain_config(json.loads(path.read_text())) if path.exists() else PRESETS[chosen.config]()
    if chosen.steps:
        config = replace(config, training=replace(config.training, steps=chosen.steps))
    said |= {"config": path.name, "seed": config.training.seed, "steps": config.training.steps}
    if chosen.side != "ours":
        clock, judge = Clock(chosen.out, said | {"rate": chosen.rate}), Judge(store, config.views.size)
        run_tuned(store, clock, judge, chosen.side, config, chosen.rate, chosen.minutes, chosen.every)
        return
    clock = Clock(chosen.out, said)
    run_ours(store, clock, Judge(store, config.views.size), config, chosen.minutes, chosen.every)


if __name__ == "__main__":
    main()
