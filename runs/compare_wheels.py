"""End with an error unless two wheels hold the same files with the same content, but for the list of their hashes.

usage: python runs/compare_wheels.py ONE.whl OTHER.whl
"""

import sys
import zipfile
from pathlib import Path


def read_files(path: Path) -> dict[str, int]:
    """Return the checksum of each file of a wheel."""
    with zipfile.ZipFile(path) as wheel:
        return {file.filename: file.CRC for file in wheel.infolist() if not file.filename.endswith("/RECORD")}


def main() -> None:
    """Compare the two wheels that the command line names."""
    one, other = (read_files(Path(path)) for path in sys.argv[1:])
    if differing := sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name)):
        sys.exit(f"the wheels differ in {len(differing)} files, such as {', '.join(differing[:5])}")
    print(f"both wheels hold the same {len(one)} files")


if __name__ == "__main__":
    main()
