"""What pages show and `make docs-blocks` does not run."""

import re
from pathlib import Path

from chess_cxr.benchmarking.suite import read_suite

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_suite_with_everything_that_docs_show_is_one(tmp_path: Path) -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```", (DOCS / "benchmark.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "suite.toml").write_text(max(blocks, key=len))
    suite = read_suite(tmp_path / "suite.toml")
    assert list(suite.encoders) == ["scratch", "ImageNet", "CheSS", "ours"]
    assert suite.tasks["pneumonia"].labels == ("bacteria", "normal", "virus")
