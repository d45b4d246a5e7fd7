"""The file of VGG16, which an optional package brings."""

import os
from pathlib import Path

import pytest

from chess_cxr.models.vgg16 import find_vgg16_file
from chess_cxr.records import UsageError


@pytest.fixture(scope="session")
def vgg16_file() -> Path:
    try:
        return find_vgg16_file()
    except UsageError as error:
        if os.environ.get("CI"):
            pytest.fail(f"{error}: CI installs it")
        pytest.skip(str(error))
