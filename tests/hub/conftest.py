"""A Hub of their own for tests of the hub room."""

from collections.abc import Iterator

import pytest
from loopback_hub import TOKEN, Hub, start_hub


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An empty one."""
    hub, server = start_hub()
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def api(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    """A client of it in this process."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return huggingface_hub.HfApi(endpoint=hub.url, token=TOKEN)
