"""Processes of a distributed run that tests start themselves, as torchrun would."""

import socket

_HELD: list[socket.socket] = []


def rank_environments(count: int) -> list[dict[str, str]]:
    """What torchrun tells each of `count` processes of a run on this machine.

    The port stays bound here, so that it is given to nobody else until the first process listens on it. That one may:
    both ask for a shared address, as the store of torch does, and only one listens.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _HELD.append(held)
    of_all = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(held.getsockname()[1]),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    return [{**of_all, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
