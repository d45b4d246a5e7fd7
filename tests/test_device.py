import pytest
import torch

from chess_cxr.device import choose_device
from chess_cxr.records import UsageError


def test_auto_takes_an_accelerator_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device() == choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "said"),
    [("gpu", "no device 'gpu'"), ("", "no device ''"), ("cuda:x", "no device"), ("cuda:99", "cannot be used here")],
)
def test_what_is_no_device_is_wrong_use(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        choose_device(name)
