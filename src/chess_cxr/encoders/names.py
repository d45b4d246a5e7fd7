"""Check encoder names without importing torch: a typing error fails at once."""

from __future__ import annotations

from pathlib import Path

from chess_cxr.records import UsageError

# An example for each kind of name; any other name is the path of an encoder folder.
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
    """Raise `UsageError` unless `name` is an encoder folder or a name of a known kind."""
    kind, colon, rest = str(name).partition(":")
    if kind not in EXAMPLES or (not colon and Path(name).is_dir()):
        if not Path(name).is_dir():
            raise UsageError(f"there is no encoder folder {name}, and it is no name such as pixels:32")
    elif kind == "chess" and not Path(rest).is_file():
        absent = f"there is no file {rest}; chess: names the published checkpoint"
        raise UsageError(f"{absent if rest else 'chess needs the published file'}: {EXAMPLES[kind]}")
    elif not rest:
        raise UsageError(f"{str(name)!r} should be {kind}:NAME, such as {EXAMPLES[kind]}")
