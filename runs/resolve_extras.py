"""Ask the package index whether each extra of chess-cxr, and all of them together, can be installed; install nothing.

usage: python runs/resolve_extras.py [--python VERSION] [--only EXTRA ...]     in any environment with pip
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def resolve(extras: str, python: str) -> tuple[int, str]:
    """Return the number of packages that pip would install, and why it cannot, "" if it can."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        if python:
            command += ["--python-version", python, "--only-binary", ":all:", "--target", folder]
        ended = subprocess.run(
            [*command, "--report", str(report), f"{ROOT}{extras}"], capture_output=True, text=True, check=False
        )
        if ended.returncode:
            errors = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")]
            return 0, errors[0] if errors else f"pip ended with {ended.returncode}"
        return len(json.loads(report.read_text())["install"]), ""


def main() -> None:
    """Print one row an extra; end with an error if one cannot be resolved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--python", default="", help="resolve for this Python, such as 3.13; by default the running one"
    )
    parser.add_argument("--only", nargs="+", default=[], help="these extras, one by one")
    asked = parser.parse_args()
    extras = list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    failed = 0
    print("| extras | packages | seconds |\n| --- | --- | --- |")
    everything = [] if asked.only else ["", f"[{','.join(extras)}]"]
    for named in [*everything, *(f"[{extra}]" for extra in asked.only or extras)]:
        began = time.monotonic()
        packages, error = resolve(named, asked.python)
        failed += bool(error)
        label = "core" if not named else "all together" if "," in named else named.strip("[]")
        print(f"| {label} | {error or packages} | {time.monotonic() - began:.0f} |", flush=True)
    sys.exit(failed and f"{failed} cannot be installed")


if __name__ == "__main__":
    main()
