"""What a check of a machine says."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "fails"]


@dataclass(frozen=True)
class Finding:
    """
    Args:
        what: was looked at.
        status: "fails" for what would end a run, "warning" for what may.
        found: in a few words; never a secret.
        advice: what to type or to do; empty if all is well.
    """

    what: str
    status: Status
    found: str
    advice: str = ""


def in_bytes(count: float) -> str:
    """A size as people read it."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


__all__ = ["Finding", "Status", "in_bytes"]
