"""Check names of encoders without loading anything, so that a typing error costs no second."""

from __future__ import annotations

from pathlib import Path

from chess_cxr.records import UsageError

# Each kind of name with an example.  Whatever is none of these is the path of an encoder folder.
EXAMPLES = {
    "random": "random:regnetx_002@96",
    "imagenet": "imagenet:tf_efficientnet_lite0",
    "timm": "timm:resnet50.a1_in1k",
    "hf": "hf:OWNER/NAME",
    "xrv": "xrv:densenet121-res224-all",
    "chess": "chess:FILE.pth.tar",
    "pixels": "pixels:32",
}


def check_encoder_name(name: str | Path) -> None:
    """Raise `UsageError` for what is neither an encoder folder nor a name of a known kind."""
    kind, colon, rest = str(name).partition(":")
    if kind not in EXAMPLES or (not colon and Path(name).is_dir()):
        if not Path(name).is_dir():
            raise UsageError(f"there is no encoder folder {name}, and it is no name such as pixels:32")
    elif kind == "chess" and not Path(rest).is_file():
        what = (
            f"there is no file {rest}; chess: names the published checkpoint"
            if rest
            else "chess needs the published file"
        )
        raise UsageError(f"{what}: {EXAMPLES[kind]}")
    elif not rest:
        raise UsageError(f"{str(name)!r} should be {kind}:NAME, such as {EXAMPLES[kind]}")
