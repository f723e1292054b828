"""Blocks on many processes and machines: Dask's scheduler and workers, by default on this computer.

Anyone who reaches a Dask scheduler can run code with the rights of its workers. So on this computer it listens on
loopback only, and speaks TLS with keys that live as long as it does.
"""

from __future__ import annotations

import asyncio
import ipaddress
import resource
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import islice
from operator import methodcaller
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np
from dask.system import CPU_COUNT
from distributed import Client, Future, KilledWorker, LocalCluster, Worker, WorkerPlugin, as_completed
from distributed.core import Status
from distributed.security import Security
from tqdm.auto import tqdm

from fgnet_lib.files.locks import lock
from fgnet_lib.memory import return_freed_memory
from fgnet_lib.scale.grid import Grid
from fgnet_lib.scale.journal import Done, Journal, Seconds, Step, process_block

RETRIES = 2  # of a block that raises
AT_ONCE = 4000  # blocks that the scheduler is told of; it keeps something of each in memory
PATIENCE = 120  # seconds without a worker on this computer; one takes some seconds to start
THREADS = 2  # of a worker: while one block computes, another is read or written
STACK = 2**19  # bytes of a thread whose process has little memory
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total:.1f} MVox [{elapsed}<{remaining}, {rate_noinv_fmt}]"
LOOPBACK = "127.0.0.1"
GONE = "the scheduler is gone; run again for the remaining blocks"


class BlocksFailed(RuntimeError):
    """Some blocks failed, and all others are complete; `failed` maps the number of a block to its error in words."""

    def __init__(self, step: Step, failed: dict[int, str]) -> None:
        self.failed = failed
        lines = [f"block {index} at [{step.grid.region(index)}]: {error}" for index, error in sorted(failed.items())]
        super().__init__(
            f"{step.name}: {len(failed)} of {len(step.grid)} blocks failed, the others are done. Run it again to fill "
            f"the holes.\n" + "\n".join(lines[:10]) + ("\n..." if len(lines) > 10 else "")
        )


@dataclass
class Report:
    """The blocks, seconds and memory of a step.

    Attributes:
        step: name of the step.
        done: number of blocks that were computed.
        kept: number of blocks that were complete before.
        seconds: sums over the blocks that were computed.
        peak_bytes: most memory that a process with blocks of this step has had.
    """

    step: str
    done: int = 0
    kept: int = 0
    seconds: Seconds = field(default_factory=Seconds)
    peak_bytes: int = 0


@contextmanager
def cluster(
    workers: int | None = None,
    memory: str = "auto",
    address: str | None = None,
    host: str = LOOPBACK,
    dashboard: int = 8787,
) -> Iterator[Client]:
    """Start workers on this computer, or connect to a scheduler that runs already.

    Args:
        workers: Number of processes; by default one for each GPU, or for each core of a computer without GPU.
        memory: Most memory of a worker, as in "4GiB"; beyond it the worker is replaced and its block tried again.
            "auto" shares the computer's memory.
        address: Address of a scheduler, as in "tcp://10.0.0.1:8786"; nothing is started, and the rest is ignored.
        host: Address that scheduler, workers and dashboard listen on.
        dashboard: Port of the dashboard; a free port if this one is in use.

    Yields:
        Dask's client; `client.dashboard_link` is the page to watch.
    """
    if address is not None:
        _warn_unless_loopback(urlsplit(address if "://" in address else f"tcp://{address}").hostname or address)
        with Client(address) as client:
            yield client
        return
    _warn_unless_loopback(host)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # "port 8787 is already in use"
        local = LocalCluster(
            n_workers=workers or _processes(),
            threads_per_worker=THREADS,
            memory_limit=memory,
            host=host,
            dashboard_address=f"{host}:{dashboard}",
            security=Security.temporary(),
        )
    with local, Client(local) as client:
        yield client


def run(client: Client, step: Step, progress: bool = True) -> Report:
    """Do all blocks of a step that are not complete; a block that keeps failing leaves a hole, and the rest finishes.

    Args:
        client: Dask's client, as `cluster` yields it.
        step: The step; its folder is locked meanwhile.
        progress: Show a bar with the rate and the time left.

    Raises:
        BlocksFailed: some blocks failed; run again to fill the holes.
        ConnectionError: the scheduler is gone; run again.
        ValueError: the folder holds this step with other settings.
        RuntimeError: another run writes to the folder.
    """
    if not client.scheduler_info()["workers"]:
        warnings.warn(f"{client.scheduler.address} has no worker yet; waiting for one", stacklevel=2)
    with lock(step.folder):
        journal, settings = Journal(step.folder, step.name), _settings(client, step)
        journal.check(settings)
        step.prepare()
        journal.begin(settings)
        report, total = Report(step.name), np.prod(step.grid.shape) / 1e6
        with tqdm(total=total, desc=step.name, unit=" MVox", bar_format=BAR, disable=not progress) as bar:
            errors = _do(client, step, range(len(step.grid)), report, bar)
            # Dask counts the death of a worker against all blocks that it held: tried alone, the innocent ones pass
            for index in [index for index, error in errors.items() if isinstance(error, KilledWorker)]:
                del errors[index]
                errors |= _do(client, step, [index], report, bar)
    if errors:
        raise BlocksFailed(step, {index: f"{type(error).__name__}: {error}" for index, error in errors.items()})
    return report


@dataclass(frozen=True)
class MemoryLimit(WorkerPlugin):
    """A plugin of Dask that limits the memory of each worker by `limit_memory`, also of workers that start later.

    Example:
        >>> limit = MemoryLimit(64_000_000, imports=("scipy.ndimage",))
        >>> client.register_plugin(limit)  # doctest: +SKIP
        >>> client.unregister_worker_plugin(limit.name)  # lifts it  # doctest: +SKIP

    Attributes:
        extra: bytes beyond what a worker holds when it gets the plugin.
        imports: modules that a worker imports before that, because their code takes memory too.
    """

    extra: int
    imports: tuple[str, ...] = ()
    name: ClassVar[str] = "memory limit"

    def setup(self, worker: Worker) -> None:
        """Import the modules and set the limit; Dask calls this before the worker gets a block."""
        for module in self.imports:
            import_module(module)
        limit_memory(self.extra)

    def teardown(self, worker: Worker) -> None:
        """Lift the limit."""
        limit_memory(None)


def limit_memory(extra: int | None) -> None:
    """Limit this process to `extra` bytes beyond what it holds now; when it asks for more, it gets a MemoryError.

    None lifts the limit, as far as the account has none. Only Linux has such a limit; elsewhere nothing is refused.
    """
    status, most = Path("/proc/self/statm"), resource.getrlimit(resource.RLIMIT_DATA)[1]
    if status.exists():
        limit = most
        if extra is not None:
            threading.stack_size(STACK)  # of threads to come: it counts
            return_freed_memory()  # so does what an earlier block freed and glibc keeps
            limit = int(status.read_text(encoding="ascii").split()[5]) * resource.getpagesize() + extra
            limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


def _settings(client: Client, step: Step) -> dict[str, Any]:
    """The settings of a step as a worker sees them: without a GPU this process would compute in another precision."""
    ((_, settings, error),) = _answers(client, methodcaller("settings"), [step])
    if error:
        raise error
    return settings


def _do(client: Client, step: Step, indices: Iterable[int], report: Report, bar: tqdm) -> dict[int, BaseException]:
    """Do blocks, and return the errors of those that failed."""
    errors = {}
    with closing(_answers(client, partial(process_block, step), indices)) as answers:
        for index, done, error in answers:
            if error:
                errors[index] = error
            else:
                _count(report, done, bar, step.grid)
    return errors


def _answers(
    client: Client, function: Callable[[Any], Any], arguments: Iterable[Any]
) -> Generator[tuple[Any, Any, Any]]:
    """Call a function on the workers: each argument with the function's result or None, and its error or None.

    Answers come in any order.

    Raises:
        ConnectionError: the scheduler is gone, or all workers of this computer are.
    """
    remaining, completed = iter(arguments), as_completed(loop=client.loop)
    running: dict[Future, Any] = {}
    try:
        while True:
            if len(running) <= AT_ONCE // 2:
                batch = list(islice(remaining, AT_ONCE - len(running)))
                futures = client.map(function, batch, retries=RETRIES, pure=False)
                running.update(zip(futures, batch, strict=True))
                completed.update(futures)
            if not running:
                return
            _wait(client, completed.has_ready)
            future = next(completed)
            result, error = _outcome(client, future)
            yield running.pop(future), result, error
    finally:
        if running and client.status == "running":  # a caller that stops here wants no more blocks
            client.cancel(list(running))


def _outcome(client: Client, future: Future) -> tuple[Any, BaseException | None]:
    """The result of a future or None, and its error or None; a result that died with its worker is computed again."""
    if future.cancelled():
        raise ConnectionError(GONE)
    # not `future.result(timeout)`, which cancels the computation when time is up
    arriving = asyncio.run_coroutine_threadsafe(client.gather(future, asynchronous=True), client.loop.asyncio_loop)
    _wait(client, arriving.done)
    try:
        return arriving.result(), None
    except (Exception, asyncio.CancelledError) as error:
        if future.status == "error":
            return None, error
        raise ConnectionError(GONE) from error


def _wait(client: Client, done: Callable[[], bool]) -> None:
    """Wait until `done()`; lost workers of this computer are replaced meanwhile, elsewhere new ones may come anyway."""
    local, alive = client.cluster, time.monotonic()
    while not done():
        time.sleep(0.01)
        if not isinstance(local, LocalCluster):
            continue
        if len(local.scheduler.workers) < len(local.worker_spec):
            client.loop.add_callback(_replace_lost, local)
            time.sleep(0.1)
        if local.scheduler.workers:
            alive = time.monotonic()
        elif time.monotonic() > alive + PATIENCE:
            raise ConnectionError("no worker is left; start the cluster anew, and run again for the remaining blocks")


def _replace_lost(local: LocalCluster) -> None:
    """Start the workers anew that Dask gives up.

    Dask gives up a worker that has not restarted 15 s after its death, one that dies as it starts, and one whose name
    is still in use by its predecessor; the latter two stay in Dask's list.
    """
    for name, worker in list(local.workers.items()):
        if worker.status in (Status.closed, Status.failed):
            del local.workers[name]
    local.scale(len(local.worker_spec))


def _count(report: Report, done: Done, bar: tqdm, grid: Grid) -> None:
    """Add a block to the report and to the bar."""
    million = grid.region(done.block).voxels / 1e6
    report.peak_bytes = max(report.peak_bytes, done.peak_bytes)
    if done.kept:
        report.kept += 1
        if not bar.disable:  # neither the rate nor the time left counts blocks that were complete before
            bar.initial += million
    else:
        report.done += 1
        report.seconds += done.seconds
    bar.update(million)


def _processes() -> int:
    import torch

    return torch.cuda.device_count() or CPU_COUNT


def _warn_unless_loopback(host: str) -> None:
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        warnings.warn(
            f"the scheduler at {host} can be reached from other computers, and whoever reaches it can run code as you. "
            "Keep it in a network of your own, or give it TLS (https://distributed.dask.org/en/latest/tls.html)",
            stacklevel=4,
        )
