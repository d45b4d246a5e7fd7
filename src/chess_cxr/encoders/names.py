"""Find encoders by name without importing torch: a typing error fails at once."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from chess_cxr.files.whole import read_json
from chess_cxr.records import UsageError

# An example for each kind of name; any other name is the path of an encoder folder, or a published encoder.
EXAMPLES = {
    "random": "random:regnetx_002@96",
    "imagenet": "imagenet:tf_efficientnet_lite0",
    "timm": "timm:resnet50.a1_in1k",
    "hf": "hf:OWNER/NAME",
    "xrv": "xrv:densenet121-res224-all",
    "chess": "chess:FILE.pth.tar",
    "pixels": "pixels:32",
}
WEIGHTS_PACKAGE = "chess_cxr_weights"
HUB_OWNER = "chess-cxr"  # of the repositories on the Hugging Face Hub that hold the published encoders
PUBLISHED = re.compile(r"cxr-[a-z0-9][a-z0-9.-]{0,60}")


def list_published() -> dict[str, Path]:
    """Return the folders of the published encoders on this machine, by name.

    They stand in `weights/` of a checkout, or in the package chess-cxr-weights.  A folder's name is the encoder's.
    """
    return {name: folder for name, folder in _list_weights().items() if "task" not in read_json(folder / "config.json")}


def locate_model(name: Path) -> Path:
    """Turn the name of a published model, such as bones-small, into its folder; return any other path unchanged.

    Models stand beside the published encoders.  A folder of that name in the working directory comes first.
    """
    found = None if name.exists() or len(name.parts) != 1 else _list_weights().get(name.name)
    return found if found and "task" in read_json(found / "config.json") else name


def _list_weights() -> dict[str, Path]:
    checkout = Path(__file__).parents[3]
    package = find_spec(WEIGHTS_PACKAGE)
    roots = [Path(root) for root in (package and package.submodule_search_locations) or ()]
    if (checkout / "pyproject.toml").is_file():
        roots.append(checkout / "weights")  # last, so that it wins
    return {config.parent.name: config.parent for root in roots for config in sorted(root.glob("*/config.json"))}


def list_known() -> str:
    """Return the names of the published encoders on this machine, for a message."""
    absent = "cxr-small (pip install packages/chess-cxr-weights in a checkout of chess-cxr)"
    return ", ".join(list_published()) or absent


def locate_encoder(name: str | Path) -> str:
    """Turn the name of a published encoder into its folder, or into its name on the Hub if it is not on this machine.

    Returns any other name unchanged.  A folder of that name in the working directory comes first.
    """
    text = str(name)
    if not re.fullmatch(r"[\w.-]+", text) or Path(text).exists():
        return text
    if found := list_published().get(text):
        return str(found)
    return f"hf:{HUB_OWNER}/{text}" if PUBLISHED.fullmatch(text) else text


def check_encoder_name(name: str | Path) -> None:
    """Raise `UsageError` unless `name` is an encoder folder or a name of a known kind."""
    name = locate_encoder(name)
    kind, colon, rest = name.partition(":")
    if kind not in EXAMPLES or (not colon and Path(name).is_dir()):
        if not Path(name).is_dir():
            raise UsageError(f"there is no encoder folder {name}, and it is no name such as pixels:32, {list_known()}")
    elif kind == "chess" and not Path(rest).is_file():
        absent = f"there is no file {rest}; chess: names the published checkpoint"
        raise UsageError(f"{absent if rest else 'chess needs the published file'}: {EXAMPLES[kind]}")
    elif not rest:
        raise UsageError(f"{name!r} should be {kind}:NAME, such as {EXAMPLES[kind]}")
