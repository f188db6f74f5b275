"""A process that reads data and was killed: how that shows, and what a user is told."""

import traceback


def is_lost_worker(error: BaseException) -> bool:
    """Torch raises a RuntimeError wherever the main process is at work when one of its workers dies, also within an
    update. A moment before, fetching a tensor from the dead worker fails in its connection."""
    if isinstance(error, ConnectionError | EOFError):
        modules = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)]
        return "multiprocessing.resource_sharer" in modules
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def what_was_lost(error: BaseException) -> str:
    """A sentence with what to do, for an error that [`is_lost_worker`]."""
    text = str(error).strip().splitlines()
    return (
        f"a process that reads data was killed ({text[0].rstrip('.') if text else 'its connection ended'}); if memory "
        "ran out, give fewer --dataloader_num_workers or, in training, a smaller --shuffle_block_size. The same "
        "command continues"
    )
