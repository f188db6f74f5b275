"""SIGTERM and Ctrl-C end a run between two steps, not inside one."""

import os
import signal
from types import FrameType, TracebackType

import psutil

PATIENCE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # of torchrun after a SIGTERM, in seconds


class GracefulStop:
    """While active, the first SIGTERM or SIGINT only sets `signal_number`; a second SIGINT interrupts at once.

    Args:
        launcher: process id of a launcher that does not pass signals on; its end counts as SIGTERM.
    """

    def __init__(self, launcher: int | None = None) -> None:
        self.signal_number: int | None = None
        self.launcher = launcher
        self._process = os.getpid()
        self._notice = f"\nfinishing this step, then saving{_patience_of_torchrun()}\n".encode()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "GracefulStop":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a data worker that has just been forked, and has no handler of its own yet
        if number == signal.SIGINT and self.signal_number is not None:
            raise KeyboardInterrupt
        if self.signal_number is None and int(os.environ.get("RANK", "0")) == 0:
            os.write(2, self._notice)  # print is not safe in a signal handler
        self.signal_number = number

    @property
    def requested(self) -> bool:
        if self.signal_number is None and self.launcher is not None and not is_alive(self.launcher):
            self.signal_number = signal.SIGTERM
        return self.signal_number is not None

    @property
    def exit_code(self) -> int:
        """The shell's convention: 128 + signal number; 0 without a signal."""
        return 128 + self.signal_number if self.signal_number is not None else 0


def _patience_of_torchrun() -> str:
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    from torch.distributed.launcher import LaunchConfig  # there where torchrun is, and not needed without

    if "shutdown_timeout" not in LaunchConfig.__dataclass_fields__:  # earlier versions of torch do not ask for it
        return "; the launcher kills what has not ended in 30 s"
    seconds = os.environ.get(PATIENCE, "30")
    return f"; the launcher kills what has not ended in {seconds} s ({PATIENCE}=600 before its command: in 600)"


def is_alive(process: int) -> bool:
    """Whether a process of this host still runs; one that has ended and not been waited for does not."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
