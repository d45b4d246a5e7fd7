"""Check torch: device, threads, speed of matrix products, and an encoder folder written and loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from chess_cxr.doctor.check import Finding, Request, Step
from chess_cxr.doctor.machine import GIB
from chess_cxr.doctor.requirements import advise_reinstall
from chess_cxr.workers.cores import count_usable_cores

GEMM_SECONDS = 1.5  # for each number format
NETWORK, SIDE = "test_resnet", 32


def list_steps(request: Request) -> Iterator[Step]:
    """List the steps that need torch."""
    advice = advise_reinstall("torch")
    yield Step("torch", look_at_torch, advice=advice)
    yield Step("device", look_at_device, advice=advice)
    yield Step("threads", look_at_threads, advice=advice)
    yield Step("GEMM peak", measure_peak, advice=advice)
    yield Step("encoder folder", partial(try_encoder_folder, request), advice=advise_reinstall("timm"))


def look_at_torch() -> Finding:
    """Find the version of torch and its build."""
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"
    if getattr(torch.version, "hip", None):
        built = f"ROCm {torch.version.hip}"
    capability = torch.backends.cpu.get_cpu_capability()
    facts = {"version": str(torch.__version__), "cuda": torch.version.cuda, "cpu_capability": capability}
    return Finding("ok", f"{torch.__version__}, built for {built}; CPU instructions {capability}", facts=facts)


def look_at_device() -> Finding:
    """Find the default device of commands, and its memory."""
    import torch

    from chess_cxr.device import choose_device

    device = choose_device()
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        name, count = torch.cuda.get_device_name(device), torch.cuda.device_count()
        facts = {"device": str(device), "name": name, "count": count, "total_bytes": total, "free_bytes": free}
        value = f"{device} of {count}, {name}, {total / GIB:.1f} GiB, {free / GIB:.1f} GiB free"
        return Finding("ok", value, facts=facts)
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        facts = {"device": "mps", "total_bytes": total}
        return Finding("ok", f"mps, {total / GIB:.1f} GiB for torch", facts=facts)
    facts = {"device": "cpu"}
    if has_nvidia_device():
        advice = "update the NVIDIA driver, or install a torch built for it: https://pytorch.org/get-started/locally"
        return Finding("optional", "cpu, although an NVIDIA device is there that torch cannot use", advice, facts)
    return Finding("ok", "cpu (no accelerator was found)", facts=facts)


def has_nvidia_device(devices: Path = Path("/dev")) -> bool:
    """Whether the system shows an NVIDIA GPU to this process."""
    return any(devices.glob("nvidia[0-9]*"))


def look_at_threads() -> Finding:
    """Compare the threads of torch and OpenCV with the usable cores."""
    import cv2
    import torch

    asked, usable = os.environ.get("OMP_NUM_THREADS"), count_usable_cores()
    facts = {"torch": torch.get_num_threads(), "opencv": cv2.getNumThreads(), "OMP_NUM_THREADS": asked}
    facts["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY")
    value = f"torch {facts['torch']}, OpenCV {facts['opencv']}, OMP_NUM_THREADS {asked or 'not set'}"
    if torch.get_num_threads() > usable:
        return Finding("optional", f"{value}; {usable} cores are usable", f"set OMP_NUM_THREADS={usable}", facts)
    return Finding("ok", value, facts=facts)


def measure_peak() -> Finding:
    """Measure the peak speed of matrix products on the device."""
    import torch

    from chess_cxr.device import choose_device
    from chess_cxr.training.speed import measure_gemm_peak

    device = choose_device()
    types = (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,)
    peaks = {str(kind).removeprefix("torch."): measure_gemm_peak(device, None, kind, GEMM_SECONDS) for kind in types}
    threads = torch.get_num_threads()
    where = f"cpu, {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else str(device)
    value = ", ".join(f"{peak:,.0f} GFLOP/s in {name}" for name, peak in peaks.items())
    return Finding("ok", f"{value} ({where})", facts={"gflops": peaks, "threads": threads})


def try_encoder_folder(request: Request) -> Finding:
    """Write an encoder folder; load it on the device with all checks, and with timm alone."""
    import timm
    import torch

    from chess_cxr.device import choose_device
    from chess_cxr.encoders.contract import PixelContract
    from chess_cxr.encoders.folder import write_encoder
    from chess_cxr.encoders.load import build_random_encoder, load_encoder

    made = build_random_encoder(NETWORK, PixelContract(SIDE, (0.5,), (0.25,)))
    with request.open_folder() as folder:
        out = folder / "encoder"
        write_encoder(out, made.module.state_dict(), NETWORK, made.contract, made.licence, made.training)
        load_encoder(out, device=str(choose_device()))
        alone = timm.create_model(f"local-dir:{out}", pretrained=True)
    expected = made.module.state_dict()
    if not all(torch.equal(tensor, expected[name]) for name, tensor in alone.state_dict().items()):
        return Finding("broken", "timm loads other weights than were written", advise_reinstall("timm"))
    return Finding("ok", f"written, loaded with its checks on {choose_device()} and by timm alone")
