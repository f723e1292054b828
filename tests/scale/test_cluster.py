"""Real processes, really killed: whatever dies, a rerun gives the volume of a run that nothing disturbed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from urllib.parse import urlsplit

import dask
import numpy as np
import psutil
import pytest
from distributed import Client, get_task_stream
from helpers.stand_ins import BLOCK, Grey, by_network, die, files, segment

from fgnet_lib import REPOSITORY
from fgnet_lib.files.formats import write_volume
from fgnet_lib.scale import cluster
from fgnet_lib.scale.grid import Grid
from fgnet_lib.scale.journal import Journal
from fgnet_lib.scale.prediction import Network, Source, _load, predict_blocks
from fgnet_lib.volumes import Volume

pytestmark = pytest.mark.slow  # starts and kills workers

SHAPE = (12, 64, 64)  # 12 blocks
TESTS = Path(__file__).parents[1]
STAND_INS = TESTS / "helpers" / "stand_ins.py"


@pytest.fixture(scope="module")
def client():
    with cluster.cluster(workers=1, memory="2GiB") as client:
        yield client


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    array = np.random.default_rng(0).integers(0, 255, SHAPE, np.uint8)
    return write_volume(Volume(array, (8, 8, 8)), tmp_path_factory.mktemp("raw") / "raw.zarr")


@pytest.fixture(scope="module")
def alone(raw, tmp_path_factory):
    """Of runs that nothing disturbed: affinities, and the folder of their segmentation."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with Client(processes=False, n_workers=1, dashboard_address=None) as client:
        predict_blocks(client, Source(raw), folder, Grey(), BLOCK, progress=False)
        segment(client, folder / "affinities.zarr", folder / "segmented")
    return folder / "affinities.zarr", folder / "segmented"


@pytest.fixture(scope="module")
def undisturbed(alone):
    """The files of a prediction that nothing disturbed."""
    return files(alone[0])


@pytest.fixture
def again(client, raw, tmp_path):
    """Runs the work in tmp_path / "run", or goes on with it."""

    def run(**options):
        return predict_blocks(client, Source(raw), tmp_path / "run", Grey(**options), BLOCK, progress=False)

    return run


def trap(folder: Path, place: str, kind: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / place).write_text(kind)
    return folder


def notes(folder: Path) -> int:
    """Blocks that are done."""
    grid = Grid(SHAPE, BLOCK)
    return len(grid) - len(Journal(folder, "predict").missing(grid))


@contextmanager
def started(*command: str, **options):
    """A process in a session of its own, of which nothing is left afterwards."""
    environment = os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{REPOSITORY}", **options.pop("env", {})}
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True, **options
    )
    try:
        yield process
    finally:
        kill(process)
        process.wait(180)


def kill(process: subprocess.Popen) -> None:
    """-9 for all processes of a session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def skip_loudly(reason: str) -> None:
    """Skip, with a warning that pytest repeats at its end; also with CI set, where nobody is root."""
    warnings.warn(reason, stacklevel=2)
    pytest.skip(reason)


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def test_a_worker_killed_within_a_block(again, undisturbed, tmp_path):
    report = again(traps=trap(tmp_path / "traps", "4-32-0", "kill once"))
    assert report.done + report.kept == 12  # of some, the worker took the answer with it, and they were asked for again
    assert not list((tmp_path / "traps").iterdir())
    assert files(tmp_path / "run" / "affinities.zarr") == undisturbed
    assert again().kept == 12


def test_a_worker_killed_within_a_write(again, client, undisturbed, tmp_path):
    client.run(die, "predict", "write", 5)
    again()
    assert files(tmp_path / "run" / "affinities.zarr") == undisturbed
    assert again().kept == 12


def test_a_block_that_keeps_failing_leaves_a_hole_that_a_rerun_fills(again, undisturbed, tmp_path):
    with pytest.raises(cluster.BlocksFailed, match=r"block 6 at \[4:8, 32:64, 0:32\]: ValueError: this block") as error:
        again(traps=trap(tmp_path / "traps", "4-32-0", "raise"))
    assert set(error.value.failed) == {6} and notes(tmp_path / "run") == 11
    report = again()
    assert (report.done, report.kept) == (1, 11)
    assert files(tmp_path / "run" / "affinities.zarr") == undisturbed


def test_a_block_that_kills_every_worker_is_the_only_one_that_fails(again, tmp_path):
    with pytest.raises(cluster.BlocksFailed, match="KilledWorker") as error:
        again(traps=trap(tmp_path / "traps", "4-32-0", "kill"), seconds=0.3)  # not while the worker starts
    assert set(error.value.failed) == {6} and notes(tmp_path / "run") == 11


def test_a_worker_that_dask_gives_up_is_replaced(again, tmp_path):
    """Dask gives up a worker that is not back some time after its death; here it never is."""
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "50ms"}):
        again(traps=trap(tmp_path / "traps", "4-32-0", "kill once"))
    assert again().kept == 12


def test_a_worker_that_dask_keeps_though_it_is_closed_is_replaced(raw, tmp_path):
    """So it ends with one that takes another's place and dies as it starts, or finds its name still taken.

    On a cluster of its own: Dask may still be waiting to take those that other tests have killed off its list.
    """
    keep = dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"})
    with keep, cluster.cluster(workers=1, memory="2GiB") as client:
        (worker,) = client.cluster.workers.values()
        client.sync(worker.close)
        assert [*client.cluster.workers.values()] == [worker]
        assert predict_blocks(client, Source(raw), tmp_path / "run", Grey(), BLOCK, progress=False).done == 12


def test_an_answer_that_is_lost_before_it_is_fetched_is_computed_again(again, client, monkeypatch, tmp_path):
    outcome, (worker,) = cluster._outcome, client.run(os.getpid).values()

    def after_its_death(client, future):
        if future.key.startswith("process_block"):
            monkeypatch.setattr(cluster, "_outcome", outcome)
            os.kill(worker, signal.SIGKILL)
            wait_for(lambda: future.status != "finished")
        return outcome(client, future)

    monkeypatch.setattr(cluster, "_outcome", after_its_death)
    again()
    assert again().kept == 12 and worker not in client.run(os.getpid).values()


def test_nobody_waits_for_workers_that_do_not_come(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    with (
        Client(processes=False, n_workers=0, dashboard_address=None) as client,
        pytest.warns(UserWarning, match="has no worker yet"),
        pytest.raises(ConnectionError, match="no worker is left"),
    ):
        predict_blocks(client, Source(raw), tmp_path / "run", Grey(), BLOCK, progress=False)


def test_more_blocks_than_the_scheduler_is_told_of_at_once(again, monkeypatch, undisturbed, tmp_path):
    monkeypatch.setattr(cluster, "AT_ONCE", 3)
    assert again().done == 12 and again().kept == 12
    assert files(tmp_path / "run" / "affinities.zarr") == undisturbed


def test_a_run_that_is_left_takes_its_blocks_back(again, client, monkeypatch, tmp_path):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "_count", stop)
    with pytest.raises(KeyboardInterrupt):
        again(seconds=0.3)
    wait_for(lambda: not any(client.processing().values()))
    assert notes(tmp_path / "run") < 12


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux refuses memory")
def test_a_process_gets_no_more_memory_than_it_may_have():
    code = """
import numpy as np
from fgnet_lib.scale.cluster import limit_memory
limit_memory(50_000_000)
np.ones(20_000_000, np.uint8)
try:
    np.ones(100_000_000, np.uint8)
except MemoryError:
    limit_memory(None)
    print(len(np.ones(100_000_000, np.uint8)))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "100000000\n"


def test_an_account_with_less_memory_keeps_its_limit():
    code = """
import resource
from fgnet_lib.scale.cluster import limit_memory
resource.setrlimit(resource.RLIMIT_DATA, (2**34, 2**34))
limit_memory(50_000_000)
assert resource.getrlimit(resource.RLIMIT_DATA)[0] < 2**34
limit_memory(2**40)
limit_memory(None)
print(*resource.getrlimit(resource.RLIMIT_DATA))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == f"{2**34} {2**34}\n", run.stderr


def allocates(size: int) -> bool:
    try:
        np.ones(size, np.uint8)
    except MemoryError:
        return False
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux refuses memory")
def test_a_worker_that_replaces_another_has_its_memory_limit():
    limit = cluster.MemoryLimit(200_000_000, imports=("fgnet_lib.scale.prediction", "scipy.ndimage"))
    keep = dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"})  # however slowly it starts anew
    with keep, cluster.cluster(workers=1, memory="2GiB") as client:
        client.register_plugin(limit)
        (first,) = client.run(os.getpid).values()
        assert not client.submit(allocates, 400_000_000, pure=False).result()
        os.kill(first, signal.SIGKILL)
        assert client.submit(os.getpid, pure=False).result() != first
        assert "scipy.ndimage" in client.submit(lambda: [*sys.modules]).result()
        assert client.submit(allocates, 100_000_000, pure=False).result()
        assert not client.submit(allocates, 400_000_000, pure=False).result()
        client.unregister_worker_plugin(limit.name)
        assert client.submit(allocates, 400_000_000, pure=False).result()


def test_warnings_of_the_caller_are_heard(monkeypatch):
    monkeypatch.setattr(cluster, "LocalCluster", lambda **options: nullcontext())
    monkeypatch.setattr(cluster, "Client", nullcontext)
    with pytest.warns(UserWarning, match="of the caller"), cluster.cluster(workers=1):
        warnings.warn("of the caller", stacklevel=1)


@pytest.fixture
def held(tmp_path):
    """The last block is not finished, however slow or fast the others are."""
    return trap(tmp_path / "traps", "8-32-32", "hold")


def test_the_whole_run_killed(again, raw, undisturbed, held, tmp_path):
    with started(sys.executable, str(STAND_INS), str(raw), str(tmp_path / "run")) as process:
        wait_for(lambda: process.poll() is not None or notes(tmp_path / "run") >= 2)
        kill(process)
        process.wait(180)
    before = notes(tmp_path / "run")
    assert 2 <= before < 12
    report = again()
    assert report.kept == before and report.done == 12 - before
    assert files(tmp_path / "run" / "affinities.zarr") == undisturbed


def test_a_second_run_on_the_same_folder_is_refused(again, raw, held, tmp_path):
    with started(sys.executable, str(STAND_INS), str(raw), str(tmp_path / "run")) as process:
        wait_for(lambda: process.poll() is not None or notes(tmp_path / "run") >= 1)
        with pytest.raises(RuntimeError, match=f"being written by process {process.pid} on"):
            again()


def test_the_scheduler_killed(again, raw, undisturbed, held, tmp_path):
    place = tmp_path / "scheduler.json"
    python = (sys.executable, "-m", "dask")
    with (
        started(
            *python,
            "scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
            "--scheduler-file",
            str(place),
        ) as head,
        started(*python, "worker", "--scheduler-file", str(place), "--no-nanny", "--no-dashboard", "--nthreads", "2"),
    ):
        wait_for(place.exists)
        address = json.loads(place.read_text())["address"]
        with started(sys.executable, str(STAND_INS), str(raw), str(tmp_path / "run"), address) as process:
            wait_for(lambda: process.poll() is not None or notes(tmp_path / "run") >= 2)
            kill(head)
            assert process.wait(120) != 0
            assert "ConnectionError: the scheduler is gone" in process.stderr.read()
    again()
    assert files(tmp_path / "run" / "affinities.zarr") == undisturbed


@pytest.fixture(scope="module")
def of_network(raw, tmp_path_factory):
    """The files of a network's prediction that nothing disturbed."""
    folder = tmp_path_factory.mktemp("network")
    with Client(processes=False, n_workers=1, dashboard_address=None) as client:
        by_network(client, raw, folder)
    return files(folder)


@pytest.mark.parametrize(("step", "moment"), [("encode", "write"), ("decode", "compute"), ("decode", "write")])
def test_a_worker_killed_in_a_step_of_the_network(client, raw, of_network, tmp_path, step, moment):
    (worker,) = client.run(os.getpid).values()
    client.run(die, step, moment, 3)
    by_network(client, raw, tmp_path)
    assert worker not in client.run(os.getpid).values()
    assert files(tmp_path) == of_network
    assert by_network(client, raw, tmp_path)[0].kept == 4


@pytest.mark.parametrize(("step", "moment"), [("fragments", "write"), ("faces", "compute"), ("relabel", "write")])
def test_a_worker_killed_in_a_step_of_the_segmentation(client, alone, tmp_path, step, moment):
    (worker,) = client.run(os.getpid).values()
    client.run(die, step, moment, 5)
    segment(client, alone[0], tmp_path)
    assert worker not in client.run(os.getpid).values()
    assert files(tmp_path) == files(alone[1])
    assert not any(report.done for report in segment(client, alone[0], tmp_path))


@pytest.mark.parametrize(
    ("work", "steps"),
    [(by_network, ("encode", "decode", "blend")), (segment, ("fragments", "faces", "merge", "relabel"))],
)
def test_the_whole_run_killed_in_each_step(client, raw, of_network, alone, tmp_path, work, steps):
    data, undisturbed = {by_network: (raw, of_network), segment: (alone[0], files(alone[1]))}[work]
    call = f"die_in_every_step({work.__name__}, {steps}, *map(Path, sys.argv[1:]))"
    code = f"from helpers.stand_ins import *; print({call})"
    with started(sys.executable, "-c", code, str(data), str(tmp_path), stdout=subprocess.PIPE) as process:
        out, errors = process.communicate(timeout=600)
    assert out.splitlines()[-1:] == [str([-signal.SIGKILL] * 2 * len(steps))], errors
    work(client, data, tmp_path)
    assert files(tmp_path) == undisturbed
    assert not any(report.done for report in work(client, data, tmp_path))


@pytest.mark.parametrize(
    ("step", "file"),
    [
        (0, "fragments.zarr/c/1/0/1"),
        (0, "seams/0/5.npz"),
        (1, "faces/0/5.npz"),
        (2, "table/fragments.npy"),
        (2, "table/neurons.npy"),
        (3, "neurons.zarr/c/1/0/1"),
    ],
)
def test_a_file_of_the_segmentation_that_is_cut_in_half_or_lost_is_made_again(client, alone, tmp_path, step, file):
    folder = shutil.copytree(alone[1], tmp_path / "run")
    for damage in (lambda path: os.truncate(path, path.stat().st_size // 2), Path.unlink):
        damage(folder / file)
        assert [report.done for report in segment(client, alone[0], folder)] == [int(n == step) for n in range(4)]
        assert files(folder) == files(alone[1])


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB at tmp_path / "run", and a function that makes it larger."""
    folder = tmp_path / "run"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        skip_loudly(f"a small disk takes the right to mount (root): {mounted.stderr.decode()}")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk(again, undisturbed, tmp_path, small_disk):
    with pytest.raises(cluster.BlocksFailed, match="No space left"):
        again()
    done = notes(tmp_path / "run")
    small_disk()
    report = again()
    assert report.done >= 12 - done > 0
    assert files(tmp_path / "run" / "affinities.zarr") == undisturbed


def test_only_this_computer_is_listened_to(client):
    assert client.scheduler.address.startswith("tls://127.0.0.1:")
    assert client.dashboard_link.startswith("http://127.0.0.1:")
    assert all(address.startswith("tls://127.0.0.1:") for address in client.scheduler_info()["workers"])
    processes = [psutil.Process(), *map(psutil.Process, client.run(os.getpid).values())]
    sockets = [one for process in processes for one in process.net_connections("inet")]
    listened = [one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN]
    assert len(listened) >= 4 and set(listened) == {"127.0.0.1"}  # with dashboards, and who looks after workers


def test_loopback_needs_no_warning_however_it_is_written(monkeypatch):
    monkeypatch.setattr(cluster, "Client", lambda address: nullcontext())
    with warnings.catch_warnings(action="error"), cluster.cluster(address="127.0.0.1:1"):
        pass


@pytest.mark.parametrize("options", [{"address": "tcp://10.213.7.9:1"}, {"host": "0.0.0.0"}])
def test_an_address_that_others_reach_is_warned_about(monkeypatch, options):
    class NotStarted(Exception):
        pass

    def not_started(*args, **kwargs):
        raise NotStarted

    monkeypatch.setattr(cluster, "Client", not_started)
    monkeypatch.setattr(cluster, "LocalCluster", not_started)
    with pytest.warns(UserWarning, match="can run code as you"), pytest.raises(NotStarted), cluster.cluster(**options):
        pass


def test_a_model_is_load_once_for_each_worker(client, raw, tmp_path):
    """`lru_cache` counts in the worker itself."""
    client.run(_load.cache_clear)
    predict_blocks(client, Source(raw), tmp_path / "run", Network(tile=(4, 32, 32)), (12, 32, 64), progress=False)
    (info,) = client.run(_load.cache_info).values()
    assert info.misses == 1 and info.hits == 1


@pytest.fixture
def hosts():
    """Two network namespaces, each with an address of its own, joined to this computer: their names."""
    names, commands = ("fgnet1", "fgnet2"), ["link add fgnet0 type bridge", "addr add 10.213.7.1/24 dev fgnet0"]
    for number, name in enumerate(names, start=2):
        commands += [
            f"netns add {name}", f"link add {name} type veth peer name eth0 netns {name}",
            f"link set {name} master fgnet0 up", f"-n {name} addr add 10.213.7.{number}/24 dev eth0",
            f"-n {name} link set eth0 up", f"-n {name} link set lo up",
        ]  # fmt: skip
    if not shutil.which("ip"):
        skip_loudly("network namespaces take the command `ip` (iproute2)")
    try:
        for command in [*commands, "link set fgnet0 up"]:
            made = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
            if made.returncode:
                skip_loudly(f"network namespaces take root and CAP_NET_ADMIN: ip {command}: {made.stderr}")
        yield names
    finally:
        for command in (*(f"netns del {name}" for name in names), "link del fgnet0"):
            subprocess.run(["ip", *command.split()], capture_output=True)


def test_two_hosts_with_addresses_of_their_own_and_one_folder(hosts, raw, undisturbed, tmp_path):
    place, python = tmp_path / "scheduler.json", (sys.executable, "-m", "dask")
    worker = (*python, "worker", "--scheduler-file", str(place), "--no-nanny", "--no-dashboard")
    with (
        started(
            *python,
            "scheduler",
            "--host",
            "10.213.7.1",
            "--port",
            "0",
            "--no-dashboard",
            "--scheduler-file",
            str(place),
        ),
        started("ip", "netns", "exec", hosts[0], *worker),
        started("ip", "netns", "exec", hosts[1], *worker),
    ):
        wait_for(place.exists)
        address = json.loads(place.read_text())["address"]
        with pytest.warns(UserWarning, match="can run code as you"), cluster.cluster(address=address) as client:
            client.wait_for_workers(2, timeout=120)
            with get_task_stream(client) as stream:
                predict_blocks(client, Source(raw), tmp_path / "run", Grey(seconds=0.3), BLOCK, progress=False)
    worked = {urlsplit(one["worker"]).hostname for one in stream.data if one["key"].startswith("process_block")}
    assert worked == {"10.213.7.2", "10.213.7.3"}
    assert files(tmp_path / "run" / "affinities.zarr") == undisturbed
