"""How timm and transformers prepare films for an encoder: what of the pixel contract they can express, and what not.

`AutoImageProcessor` of transformers opens an encoder folder with its image processor for timm's networks, which follows
`pretrained_cfg` in `config.json`.  `preprocessor_config.json` names that class and repeats its numbers for others.
"""

from __future__ import annotations

from typing import Any

from chess_cxr.encoders.contract import PixelContract

# Of Pillow's filters, hamming comes closest to an average over areas: Pillow's box gives a pixel to one area or the
# other, never to both in parts.  On 60 films of 224 to 512 pixels shrunk to 64, features were off by 1.1 % of their
# length (median; box 2.2 %, bilinear 3.3 %).
TIMM_INTERPOLATIONS = {"area": "hamming", "bilinear": "bilinear"}
TIMM_CROPS = {"squash": "squash", "pad": "border", "crop": "center"}
PILLOW_FILTERS = {"hamming": 5, "bilinear": 2}


def describe_for_timm(contract: PixelContract) -> dict[str, Any]:
    """Return the contract as entries of timm's `pretrained_cfg`."""
    return {
        "input_size": [contract.channels, contract.size, contract.size],
        "interpolation": TIMM_INTERPOLATIONS[contract.interpolation],
        "crop_pct": 1.0,
        "crop_mode": TIMM_CROPS[contract.fit],
        "mean": list(contract.mean),
        "std": list(contract.std),
    }


def describe_for_transformers(contract: PixelContract) -> dict[str, Any]:
    """Return the contract as the content of `preprocessor_config.json`."""
    return {
        "image_processor_type": "TimmWrapperImageProcessor",
        "do_convert_rgb": contract.channels == 3,
        "do_resize": True,
        "size": {"height": contract.size, "width": contract.size},
        "resample": PILLOW_FILTERS[TIMM_INTERPOLATIONS[contract.interpolation]],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(contract.mean),
        "image_std": list(contract.std),
    }


def list_unexpressed(contract: PixelContract) -> list[str]:
    """Return what a caller of these processors must do himself, as sentences for the model card."""
    wanted = "air dark and bone bright" if contract.polarity == "bone_bright" else "air bright and bone dark"
    left = [f"Polarity: hand over films with {wanted}; nothing inverts them."]
    if contract.percentiles:
        low, high = contract.percentiles
        left.append(f"Grey levels: clip each film to its percentiles {low} and {high} and stretch it to 0 … 255.")
    if contract.fit == "pad":
        left.append("Fit: the margins get the mean grey instead of air; pad films to squares first.")
    if contract.interpolation == "area":
        left.append("Resizing: Pillow's filter comes close to the area average; resize films first for equal features.")
    return left
