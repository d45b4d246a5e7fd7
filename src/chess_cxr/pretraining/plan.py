"""Estimate what a pre-training run takes: steps, hours, memory, network traffic and money.

For this machine, the estimate scales a short real run of the preset (`calibrate`).  For named GPUs it is calculated,
not measured: an operation takes the time of its arithmetic plus the time of its memory traffic, as without kernel
fusion; `docs/proof/scaling.md` compares this model with published speeds.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from torch import nn

from chess_cxr.methods.moco import MoCoConfig, count_own_groups
from chess_cxr.pretraining.calibrate import Calibration, build_weightless, get_batch_shape
from chess_cxr.pretraining.gpus import Fleet, Gpu, get_link_bytes, parse_gpus
from chess_cxr.pretraining.presets import PretrainConfig
from chess_cxr.records import UsageError
from chess_cxr.training.distributed import BUCKET_BYTES
from chess_cxr.training.loop import Method, TrainingConfig
from chess_cxr.training.speed import StepCost, count_step_cost

COMPUTE_SHARE = 0.7  # of the peak, reached by convolutions and matrix products
MEMORY_SHARE = 0.8  # of the memory bandwidth, reached by all operations
LINK_SHARE = 0.7  # of a link's bandwidth, reached by collectives
BACKWARD_SHARE = 0.5  # of a step's time at least, in which gradients are sent
KEEP_PASSES = 5  # reads and writes of a copied state: the copy, and the choice between copy and new state
OPTIMISER_PASSES = 10  # reads and writes of all weights per step, besides those of the networks
WORKING_TENSORS = 3  # of the largest activation's size, besides the kept ones: output and input gradients, work space
GPU_OVERHEAD_BYTES = 2e9  # CUDA context, libraries and their work space, fragmentation
FILM_BYTES = 39e3  # an 8-bit JPEG of quality 95 with a longest side of 512
PAIRS_A_CORE_SECOND = 130.0  # films decoded and drawn as two 512² views, on one core of a 2023 AMD EPYC
STATE_NUMBERS = {"sgd": 1, "adamw": 2}  # of the optimiser per weight


@dataclass(frozen=True)
class StepMemory:
    """The memory of one rank's step, in bytes."""

    parameters: int
    followers: int
    gradients: int
    optimizer: int
    buffers: int
    batch: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        """Peak memory in bytes: the sum of all parts."""
        return sum(getattr(self, field.name) for field in fields(self))


def estimate_step_memory(
    method: Method, shape: tuple[int, ...], training: TrainingConfig, cost: StepCost | None = None
) -> StepMemory:
    """Estimate the peak memory of one rank's step on a batch of `shape` ([2, B, 1, H, W]), float32 and its bytes.

    followers: weights without gradient, such as a momentum encoder.  buffers: queue, running statistics.
    activations: tensors that autograd keeps, counted on a copy without memory.  working: what the backward pass needs
    besides them, `WORKING_TENSORS` times the largest.  Leaves out Python, libraries and prefetched batches.
    """
    if not isinstance(method, nn.Module):
        raise TypeError(f"a method is an nn.Module, not {type(method).__name__}")
    cost = cost or count_step_cost(method, shape, training.precision)
    trained = {id(parameter) for group in method.get_parameters().values() for parameter in group}
    sizes = [(it.numel() * it.element_size(), id(it) in trained) for it in method.parameters()]
    learning = sum(size for size, learns in sizes if learns)
    state = STATE_NUMBERS[training.optimizer] if training.optimizer != "sgd" or training.momentum else 0
    return StepMemory(
        parameters=learning,
        followers=sum(size for size, learns in sizes if not learns),
        gradients=learning,
        optimizer=state * learning,
        buffers=sum(buffer.numel() * buffer.element_size() for buffer in method.buffers()),
        batch=5 * int(np.prod(shape)),
        activations=cost.activation_bytes,
        working=WORKING_TENSORS * cost.largest_activation_bytes,
    )


@dataclass(frozen=True)
class Plan:
    """The estimate of a run; bytes, seconds and FLOPs are per rank (one GPU) unless stated otherwise.

    step_seconds: on GPUs the sum of compute_seconds, memory_seconds and traffic_seconds (the wait for what is sent).
    gradient_bytes, gathered_bytes: sent to other ranks per step.  cost: in the currency of the price.  notes: the basis
    of the numbers.
    """

    preset: str
    method: str
    architecture: str
    size: int
    batch: int
    precision: str
    machine: str
    measured: bool
    ranks: int
    images: int
    steps: int
    passes: float
    store_bytes: float
    step_flops: int
    step_seconds: float
    compute_seconds: float
    memory_seconds: float
    traffic_seconds: float
    hours: float
    images_per_second: float
    memory: dict[str, int]
    memory_bytes: float
    memory_limit_bytes: float
    gradient_bytes: float
    gathered_bytes: float
    loader_cores: float
    gpu_hours: float
    price_per_gpu_hour: float
    cost: float
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values."""
        return asdict(self)

    def as_text(self) -> str:
        """Return the plan as readable lines."""
        how = "measured, scaled" if self.measured else "calculated, not measured"
        network = f"{self.method}, {self.architecture}, {self.size}², batch {self.batch}, {self.precision}"
        lines = [
            f"preset        {self.preset}: {network}",
            f"machine       {self.machine} ({how})",
            f"store         {tell_bytes(self.store_bytes)} for {self.images:,} films",
            f"steps         {self.steps:,} ({self.passes:,.1f} passes over the films)",
            f"speed         {tell_number(self.images_per_second)} images/s in all, {self.step_seconds:.3f} s a step",
            f"time          {tell_hours(self.hours)}",
            f"memory        {tell_bytes(self.memory_bytes)} a rank{self._tell_memory_limit()}",
        ]
        if self.ranks > 1:
            sent = self.gradient_bytes + self.gathered_bytes
            lines.append(
                f"interconnect  {tell_bytes(sent)} sent by each GPU a step, {tell_bytes(sent / self.step_seconds)}/s: "
                f"gradients {tell_bytes(self.gradient_bytes)}, views and embeddings {tell_bytes(self.gathered_bytes)}"
            )
        lines.append(f"loader        {tell_number(self.loader_cores)} CPU cores in all keep up with the steps")
        if self.gpu_hours:
            money = f", {self.cost:,.0f} at {self.price_per_gpu_hour:g} each" if self.price_per_gpu_hour else ""
            lines.append(f"cost          {self.gpu_hours:,.0f} GPU-hours{money}")
        return "\n".join([*lines, *(f"note          {note}" for note in self.notes)])

    def _tell_memory_limit(self) -> str:
        if not self.memory_limit_bytes:
            return ""
        fits = "fits" if self.memory_bytes <= self.memory_limit_bytes else "DOES NOT FIT: more GPUs or a smaller batch"
        return f" of {tell_bytes(self.memory_limit_bytes)}: {fits}"


def plan(
    config: PretrainConfig,
    images: int,
    gpus: str = "",
    *,
    calibration: Calibration | None = None,
    price: float = 0.0,
    network_gbit: float = 100.0,
    film_bytes: float = 0.0,
    epochs: float = 0.0,
) -> Plan:
    """Estimate a run of `config` on a number of films.

    gpus: "8xH100", or "4x8xH100" for 4 nodes of 8; "" for the calibrated machine.
    price: per GPU-hour.  network_gbit: Gbit/s of a node's network, all its cards together.
    film_bytes: size of an encoded film; 0 for the calibration's value, or that of a 512-pixel JPEG.
    epochs: passes over the films, instead of the preset's steps; 0 for the preset's steps.
    Raises UsageError for an unknown GPU, a batch that the ranks cannot share, or a missing calibration.
    """
    check_plan_numbers(images, price, network_gbit, film_bytes, epochs)
    fleet = parse_gpus(gpus) if gpus else None
    ranks = fleet.ranks if fleet else 1
    batch = config.training.batch
    if batch % ranks:
        raise UsageError(f"a batch of {batch} films cannot be shared by {ranks} GPUs; choose a divisor")
    if not fleet and not calibration:
        raise UsageError("name GPUs with --gpus, or measure this machine first: chess-cxr plan --calibrate")
    steps = math.ceil(epochs * images / batch) if epochs else config.training.steps
    method, shape = build_weightless(_take_rank(config, ranks)), get_batch_shape(config, ranks)
    cost = count_step_cost(method, shape, config.training.precision)
    memory = estimate_step_memory(method, shape, config.training, cost)
    sent = count_sent_bytes(config, memory.gradients, ranks, fleet.gpus_a_node if fleet else None)
    if fleet:
        weights = memory.parameters + memory.followers
        kept = weights + memory.optimizer + memory.buffers
        compute, moving = estimate_gpu_seconds(cost, weights, fleet.gpu, config.training.precision, kept)
        sending = estimate_sending_seconds(sent, fleet, network_gbit, compute + moving)
        step_seconds = compute + moving + sending
        seconds, notes = steps * step_seconds, tell_gpu_notes(fleet, network_gbit)
        machine = f"{gpus} ({fleet.gpu.name})"
    else:
        assert calibration
        step_seconds = compute = calibration.step_seconds * cost.flops / calibration.step_flops
        moving = sending = 0.0
        seconds = estimate_machine_seconds(config, calibration, step_seconds, steps)
        notes, machine = tell_calibration_notes(config, calibration), calibration.machine
    gpu_hours = seconds / 3600 * ranks if fleet else 0.0
    return Plan(
        preset=config.preset, method=config.method.name, architecture=config.method.architecture,
        size=config.views.size, batch=batch, precision=config.training.precision, machine=machine,
        measured=fleet is None, ranks=ranks, images=images, steps=steps, passes=steps * batch / images,
        store_bytes=images * (film_bytes or (calibration.film_bytes if calibration else FILM_BYTES)),
        step_flops=cost.flops, step_seconds=step_seconds, compute_seconds=compute, memory_seconds=moving,
        traffic_seconds=sending, hours=seconds / 3600, images_per_second=batch / step_seconds,
        memory=asdict(memory), memory_bytes=memory.total + (GPU_OVERHEAD_BYTES if fleet else 0),
        memory_limit_bytes=fleet.gpu.memory_gb * 1e9 if fleet else 0.0,
        gradient_bytes=sent.gradients, gathered_bytes=sent.within_node + sent.embeddings,
        loader_cores=batch / step_seconds / get_pairs_a_core(config, calibration),
        gpu_hours=gpu_hours, price_per_gpu_hour=price, cost=gpu_hours * price, notes=notes,
    )  # fmt: skip


def _take_rank(config: PretrainConfig, ranks: int) -> PretrainConfig:
    """Return the configuration of one rank of many, as the planning process itself has only one rank."""
    if not isinstance(config.method, MoCoConfig):
        return config
    return replace(config, method=replace(config.method, norm_groups=count_own_groups(config.method, ranks)))


def check_plan_numbers(images: int, price: float, network_gbit: float, film_bytes: float, epochs: float) -> None:
    """Raise UsageError for invalid numbers."""
    if images < 1:
        raise UsageError("--images must be 1 or more")
    if not all(0 <= number < math.inf for number in (price, film_bytes, epochs)) or not 0 < network_gbit < math.inf:
        raise UsageError("--price, --film-kilobytes and --epochs must be 0 or more, --network-gbit above 0")


def estimate_gpu_seconds(
    cost: StepCost, weight_bytes: float, gpu: Gpu, precision: str, kept_bytes: float = 0.0
) -> tuple[float, float]:
    """Return the seconds of a step's arithmetic, and of its memory traffic, on one GPU.

    kept_bytes: of the state that is copied, to be restored if the step is not finite.
    """
    peak = gpu.single_tflops if precision == "float32" else gpu.half_tflops
    moved = cost.traffic_bytes + OPTIMISER_PASSES * weight_bytes + KEEP_PASSES * kept_bytes
    return cost.flops / (COMPUTE_SHARE * peak * 1e12), moved / (MEMORY_SHARE * gpu.memory_gb_s * 1e9)


def estimate_machine_seconds(
    config: PretrainConfig, calibration: Calibration, step_seconds: float, steps: int
) -> float:
    """Return the seconds of a run on the calibrated machine: start, steps, probes and checkpoints."""
    training = config.training
    probes, checkpoints = math.ceil(steps / training.probe_every), math.ceil(steps / training.checkpoint_every)
    beside = probes * calibration.probe_seconds + checkpoints * calibration.checkpoint_seconds
    return calibration.start_seconds + steps * step_seconds + beside


@dataclass(frozen=True)
class SentBytes:
    """What each rank sends per step: gradients, views and keys within its node (ShuffleBN), embeddings to all ranks."""

    gradients: float
    within_node: float
    embeddings: float


def count_sent_bytes(config: PretrainConfig, gradient_bytes: int, ranks: int, a_node: int | None = None) -> SentBytes:
    """Return the bytes that each rank sends per step.

    a_node: ranks of a node, all by default.  Assumes ring algorithms: an all-reduce of n bytes sends
    2 n (ranks - 1) / ranks, an all-gather sends its own part ranks - 1 times.  MoCo v2 gathers one view of every film,
    a byte a pixel, and its key within the node, twice if it is symmetric; then the keys over all ranks.  The other
    methods gather embeddings twice.
    """
    own = config.training.batch / ranks
    embeddings = own * 4 * getattr(config.method, "embedding", 0)
    gradients = 2 * gradient_bytes * (ranks - 1) / ranks
    if not isinstance(config.method, MoCoConfig):
        return SentBytes(gradients, 0.0, 2 * embeddings * (ranks - 1))
    together = a_node or ranks
    if together * count_own_groups(config.method, ranks) == 1:  # as in `MoCo._find_company`
        together = ranks
    shuffled = (own * config.views.size**2 + embeddings) * (2 if config.method.symmetric else 1)
    return SentBytes(gradients, shuffled * (together - 1), embeddings * (ranks - 1))


def estimate_sending_seconds(sent: SentBytes, fleet: Fleet, network_gbit: float, computing: float) -> float:
    """Return the seconds per step that the GPUs wait for what they send.

    computing: seconds of arithmetic and memory traffic.  Gradients are sent during the backward pass, but for the last
    bucket.
    """
    between = LINK_SHARE * get_link_bytes(fleet, network_gbit)
    gradients = sent.gradients / between
    last_bucket = gradients * min(1.0, BUCKET_BYTES / max(sent.gradients / 2, 1.0))
    waiting = max(last_bucket, gradients - BACKWARD_SHARE * computing)
    return waiting + sent.within_node / (LINK_SHARE * fleet.gpu.link_gb_s * 1e9) + sent.embeddings / between


def get_pairs_a_core(config: PretrainConfig, calibration: Calibration | None) -> float:
    """Return the view pairs of the configuration's size that a core prepares per second, scaled by pixels."""
    if calibration is None:
        return PAIRS_A_CORE_SECOND * (512 / config.views.size) ** 2
    return calibration.pairs_a_core_second * (calibration.size / config.views.size) ** 2


def tell_gpu_notes(fleet: Fleet, network_gbit: float) -> tuple[str, ...]:
    """Return the basis of a calculated plan."""
    gpu = fleet.gpu
    notes = [
        f"{gpu.source}: {gpu.half_tflops:g} TFLOP/s half, {gpu.single_tflops:g} single, {gpu.memory_gb_s:g} GB/s:"
        f" {COMPUTE_SHARE:.0%} and {MEMORY_SHARE:.0%} of these are taken",
        "the model's constants were fitted to four published speeds of ResNet-50, which it misses by up to 36 %; "
        "loader, probes and checkpoints are taken as hidden",
    ]
    if fleet.nodes > 1:
        notes.append(f"a network of {network_gbit:g} Gbit/s a node is taken (--network-gbit)")
    return tuple(notes)


def tell_calibration_notes(config: PretrainConfig, calibration: Calibration) -> tuple[str, ...]:
    """Return the basis of a plan for this machine."""
    share = calibration.gflop_per_second / calibration.peak_gflops
    notes = [
        f"calibrated {calibration.date} with {calibration.preset} on {calibration.data}, {calibration.steps} steps: "
        f"{calibration.gflop_per_second:.0f} GFLOP/s, {share:.0%} of the GEMM peak"
    ]
    here = (config.method.name, config.method.architecture, config.views.size, config.training.precision)
    if here != (calibration.method, calibration.architecture, calibration.size, calibration.precision):
        notes.append(f"scaled by FLOPs, which is rough; better: chess-cxr plan --calibrate --preset {config.preset}")
    return tuple(notes)


def tell_bytes(count: float) -> str:
    """Format bytes with a decimal unit, such as 187 GB."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 999.5 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f"{count:.3g} {units[0]}" if count < 1000 else f"{count:,.0f} {units[0]}"


def tell_hours(hours: float) -> str:
    """Format a duration in minutes, hours or days."""
    if hours < 1:
        return f"{hours * 60:.1f} minutes"
    return f"{hours:,.1f} hours" if hours < 72 else f"{hours:,.0f} hours ({hours / 24:,.0f} days)"


def tell_number(number: float) -> str:
    """Format a number with its significant digits."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
