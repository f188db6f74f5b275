"""Whether the Hub would let this user in. A token is used, and never shown."""

import threading
from collections.abc import Iterator

from huggingface_hub import HfApi, constants, get_token

from .health_findings import Finding

_PATIENCE = 5.0  # seconds


def check_hub() -> Iterator[Finding]:
    """Offline mode, the token, and, where there is network, whose it is."""
    token = get_token()
    if constants.HF_HUB_OFFLINE:
        found = "HF_HUB_OFFLINE is set: only what is in the cache is read, and nothing is pushed"
        yield Finding("Hub", "ok", found)
    elif not token:
        advice = "type hf auth login, if you want to push or to read gated repositories"
        yield Finding("Hub", "ok", "nobody is logged in; the Hub itself was not asked", advice)
    else:
        yield _login(token)


def _login(token: str) -> Finding:
    answers: list[Finding] = []

    def ask() -> None:
        try:
            name = HfApi(token=token).whoami()["name"]
        except Exception as error:  # of the network, or of a token that is no longer good
            refused = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
            if refused:
                answers.append(Finding("Hub", "warning", "the Hub refuses the token", "type hf auth login"))
            else:
                found = f"there is a token, and the Hub does not answer ({type(error).__name__})"
                answers.append(Finding("Hub", "warning", found, "without network, set HF_HUB_OFFLINE=1"))
        else:
            answers.append(Finding("Hub", "ok", f"logged in as {name}"))

    thread = threading.Thread(target=ask, daemon=True)  # for a network that swallows what is sent
    thread.start()
    thread.join(_PATIENCE)
    late = Finding("Hub", "warning", f"no answer in {_PATIENCE:g} s", "without network, set HF_HUB_OFFLINE=1")
    return answers[0] if answers else late


__all__ = ["check_hub"]
