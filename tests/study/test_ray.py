"""Studies on a real Ray cluster: several node processes on this machine, with token authentication."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from planted import CORE, PlantedMachine, planted_study
from processes import is_alive, needs_proc, wait_until
from tippingpoint.errors import AnswerError, InputError
from tippingpoint.measurement import Measurement
from tippingpoint.profiling.device import now
from tippingpoint.store import Store
from tippingpoint.study.coordinate import ClusterResult, run_on_cluster
from tippingpoint.study.launch_ray import RayCluster
from tippingpoint.study.run import run_study
from tippingpoint.workload import Place, Study

# Ray reads these once, when it is imported.
os.environ |= {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
pytest.importorskip("ray")

TESTS = Path(__file__).parents[1]
SMALL = {"object_store_memory": 80_000_000}


class Nodes:
    """A cluster whose nodes are processes of this machine, each with locks of its own as machines have.

    Attributes:
        address: Of the cluster.
    """

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.folder = folder
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "node_name": "head", "include_dashboard": False, **SMALL},
        )
        assert self.cluster.address is not None
        self.address = self.cluster.address

    def add(self, name: str, **offered: Any) -> Any:
        locks = self.folder / f"locks-{name}"
        locks.mkdir(exist_ok=True)
        fields = {"num_cpus": 1, **SMALL, **offered}
        return self.cluster.add_node(node_name=name, env_vars={"TIPPINGPOINT_LOCKS": str(locks)}, **fields)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        # So that a slot finds the machine that is planted.
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")])))
        started = Nodes(tmp_path_factory.mktemp("cluster"))
        started.add("node-0")
        started.add("node-1")
        try:
            yield started
        finally:
            started.cluster.shutdown()


@pytest.fixture(scope="module")
def undisturbed() -> set[Any]:
    """What one machine finds by itself."""
    with Store(":memory:") as store:
        run_study(planted_study(CORE), store, machine=PlantedMachine())
        return rows_of(store)


def rows_of(store: Store) -> set[Any]:
    """What was measured, and of which session it is; each once."""
    found = [(o.workload, o.session, getattr(o, "samples", ())) for o in store.outcomes()]
    assert len(set(found)) == len(found)
    return set(found)


def run(
    nodes: Nodes,
    study: Study,
    store: Store,
    *,
    machine: PlantedMachine | None = None,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> ClusterResult:
    with RayCluster(nodes.address, machine=machine or PlantedMachine()) as cluster:
        return run_on_cluster([study], store, cluster, progress=progress, **options)


def nodes_of(store: Store) -> set[str]:
    return {session.place.partition("/")[0] for session in store.sessions()}


def test_a_study_gives_the_rows_that_it_gives_on_one_machine(nodes: Nodes, undisturbed: set[Any], tmp_path: Path):
    gate = tmp_path / "gate"
    seen: set[str] = set()

    def open_when_both_work(line: str) -> None:
        seen.add(line.partition("/")[0])
        if seen >= {"node-0", "node-1"}:
            gate.touch()

    with Store(tmp_path / "results.sqlite") as store:
        result = run(
            nodes, planted_study(CORE), store, machine=PlantedMachine(gate=str(gate)), progress=open_when_both_work
        )
        assert rows_of(store) == undisturbed
        assert nodes_of(store) == {"node-0", "node-1"}, "two comparisons at once"
    (found,) = result.results
    assert len(found.tipping_points) == 8
    assert result.missing == ()


@needs_proc
def test_what_a_killed_worker_was_doing_goes_on_elsewhere(nodes: Nodes, undisturbed: set[Any], tmp_path: Path):
    gate, lines, killed = tmp_path / "gate", list[str](), list[int]()
    asked = tmp_path / "asked"
    asked.mkdir()

    def kill_the_first(line: str) -> None:
        lines.append(line)
        at_work = [int(path.name) for path in asked.iterdir()]
        if at_work and not killed:
            killed.append(at_work[0])
            os.kill(at_work[0], signal.SIGKILL)
            gate.touch()

    with Store(tmp_path / "results.sqlite") as store:
        machine = PlantedMachine(folder=str(asked), gate=str(gate))
        result = run(nodes, planted_study(CORE), store, machine=machine, progress=kill_the_first)
        assert rows_of(store) == undisturbed
    assert result.missing == ()
    assert any("was lost" in line and "goes on elsewhere" in line for line in lines), lines


@needs_proc
def test_what_a_lost_node_was_doing_goes_on_elsewhere(nodes: Nodes, undisturbed: set[Any], tmp_path: Path):
    gate, lines = tmp_path / "gate", list[str]()
    third = [nodes.add("node-2", resources={"third": 1})]

    def take_it_away(line: str) -> None:
        lines.append(line)
        if line.startswith("node-2") and third:
            nodes.cluster.remove_node(third.pop(), allow_graceful=False)
            gate.touch()

    with Store(tmp_path / "results.sqlite") as store:
        machine = PlantedMachine(gate=str(gate))
        result = run(nodes, planted_study(CORE), store, machine=machine, progress=take_it_away)
        assert not third, "it was given something to do"
        assert rows_of(store) == undisturbed
    assert result.missing == ()
    assert any("node-2 was lost" in line for line in lines), lines


DRIVER = """
import sys
from planted import CORE, PlantedMachine, planted_study
from tippingpoint.store import Store
from tippingpoint.study.coordinate import run_on_cluster
from tippingpoint.study.launch_ray import RayCluster

address, path, folder, gate = sys.argv[1:]
with Store(path) as store, RayCluster(address, machine=PlantedMachine(folder=folder, gate=gate)) as cluster:
    run_on_cluster([planted_study(CORE)], store, cluster, progress=print)
"""


@needs_proc
def test_a_killed_driver_leaves_no_process_and_its_study_goes_on(nodes: Nodes, undisturbed: set[Any], tmp_path: Path):
    path, gate, asked = tmp_path / "results.sqlite", tmp_path / "gate", tmp_path / "asked"
    asked.mkdir()
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, nodes.address, str(path), str(asked), str(gate)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert driver.stdout is not None
    with driver.stdout:
        # The first sessions are done; the second ones wait for the gate.
        for line in driver.stdout:
            if line.startswith("node-"):
                break
        driver.kill()
        driver.wait()
    slots = [int(each.name) for each in asked.iterdir()]
    assert slots
    assert wait_until(lambda: not any(map(is_alive, slots)), seconds=30)
    with Store(path) as store:
        before = rows_of(store)
        assert before
        assert before < undisturbed
        result = run(nodes, planted_study(CORE), store)
        assert rows_of(store) == undisturbed
    assert result.missing == ()


def test_each_kind_of_device_gets_what_asks_for_it_and_no_device_two_at_once(nodes: Nodes, tmp_path: Path):
    added = [
        nodes.add(f"{kind.lower()}-node", num_cpus=8, num_gpus=2, resources={f"accelerator_type:{kind}": 1})
        for kind in ("H100", "A100")
    ]
    places = (Place(kind="h100"), Place(kind="A100"))
    study = planted_study(None, places=places, budget_s=60.0, phases=("inference",))
    try:
        with Store(":memory:") as store:
            result = run(nodes, study, store)
            where = [session.place for session in store.sessions()]
    finally:
        for node in added:
            nodes.cluster.remove_node(node)
    assert result.missing == ()
    assert {place.partition("/")[0] for place in where} == {"h100-node", "a100-node"}
    # Both GPUs of a node lie on one socket, which measurements do not share.
    assert {place.partition("/")[2] for place in where} <= {"cuda:0", "cuda:1"}


# What Ray asks of the description of a cluster, with nodes that are processes.
AUTOSCALING = {
    "cluster_name": "growing",
    "max_workers": 2,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "one-core": {"resources": {"CPU": 1, **SMALL}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    "head_node_type": "ray.head.default",
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 0.05,
    "file_mounts_sync_continuously": False,
    **{name: {} for name in ("auth", "docker", "file_mounts")},
    **{
        name: []
        for name in (
            "initialization_commands",
            "setup_commands",
            "head_setup_commands",
            "worker_setup_commands",
            "head_start_ray_commands",
            "worker_start_ray_commands",
            "cluster_synced_files",
            "rsync_exclude",
            "rsync_filter",
        )
    },
}
# The nodes of this provider know no other.
AUTOSCALING_PORT = 6379


@pytest.fixture
def growing_cluster(nodes: Nodes, tmp_path: Path) -> Iterator[str]:
    """A cluster of a head alone, which starts a node when something waits for one."""
    with socket.socket() as free:
        if free.connect_ex(("127.0.0.1", AUTOSCALING_PORT)) == 0:
            pytest.skip(f"port {AUTOSCALING_PORT} is taken")
    description = tmp_path / "cluster.json"
    description.write_text(json.dumps(AUTOSCALING))
    options = [
        "--head",
        "--block",
        "--num-cpus=0",
        "--include-dashboard=false",
        f"--object-store-memory={SMALL['object_store_memory']}",
        f"--port={AUTOSCALING_PORT}",
        f"--autoscaling-config={description}",
    ]
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", *options],
        env={**os.environ, "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def is_up() -> bool:
        with socket.socket() as there:
            return there.connect_ex(("127.0.0.1", AUTOSCALING_PORT)) == 0

    try:
        assert wait_until(is_up, seconds=30)
        yield f"127.0.0.1:{AUTOSCALING_PORT}"
    finally:
        head.terminate()
        head.wait()


def test_an_autoscaling_cluster_grows_for_a_study_and_shrinks_after_it(growing_cluster: str, undisturbed: set[Any]):
    with Store(":memory:") as store, RayCluster(growing_cluster, machine=PlantedMachine()) as cluster:
        assert cluster.offers() == "1 x (nothing)"
        result = run_on_cluster([planted_study(CORE)], store, cluster)
        assert result.missing == ()
        assert rows_of(store) == undisturbed
        assert wait_until(lambda: cluster.offers() == "1 x (nothing)", seconds=60)


def test_a_cluster_without_slots_is_waited_for_and_not_asked_all_the_time(nodes: Nodes):
    with RayCluster(nodes.address) as cluster:
        begin = now()
        assert cluster.events(0.2) == []
        assert now() - begin >= 0.2


def test_the_address_of_a_client_is_refused():
    with pytest.raises(InputError, match="is for Ray's clients"):
        RayCluster("ray://node:10001")


def test_what_the_cluster_lacks_is_waited_for_and_then_named(nodes: Nodes):
    lines: list[str] = []
    with Store(":memory:") as store, pytest.raises(AnswerError, match=r"no B200 .* it offers .*1 CPU") as caught:
        run(nodes, planted_study(Place(kind="B200")), store, progress=lines.append, wait_s=1.0)
    assert "same command goes on" in str(caught.value)


def test_more_cores_than_a_socket_has_are_refused(nodes: Nodes, tmp_path: Path):
    node = nodes.add("boaster", num_cpus=10_000)
    try:
        said = r"what came was lost: boaster: the study asks for 10000 CPU cores of one socket.* has \d"
        with Store(":memory:") as store, pytest.raises(AnswerError, match=said):
            run(nodes, planted_study(Place(kind="cpu", cores=10_000), threads=1), store, wait_s=4.0)
    finally:
        nodes.cluster.remove_node(node)


def command(nodes: Nodes, study: Path, store: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    arguments = ["study", str(study), "--on", "ray", "--address", nodes.address, "--store", str(store)]
    return subprocess.run(
        [sys.executable, "-m", "tippingpoint", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    content = {
        "name": "mine",
        "modality": "text",
        "baselines": ["bert"],
        "variants": ["longformer"],
        "lengths": [48, 96],
        "size": "tiny",
        "phases": ["inference"],
        "metrics": ["latency"],
        "target": 0.5,
        "precision": 0.99,
        "budget": "8s",
        "device": {"kind": "cpu", "cores": 1},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_command_measures_on_a_node_what_this_machine_would_measure(
    nodes: Nodes, study_file: Path, tmp_path: Path
):
    done = command(nodes, study_file, tmp_path / "results.sqlite")
    assert done.returncode == 0, done.stderr
    assert "Tipping points" in done.stdout
    assert "1 comparison" in done.stderr
    with Store(tmp_path / "results.sqlite") as store:
        outcomes = store.outcomes()
        assert nodes_of(store) <= {"node-0", "node-1"}
    measured = [outcome for outcome in outcomes if isinstance(outcome, Measurement)]
    assert {str(outcome.workload.subject) for outcome in measured} == {"bert", "longformer"}
    environment = measured[0].environment
    # Neither the cores that the slot was held on nor Ray's settings make it another machine.
    assert environment.cores == 1
    assert environment.affinity == ()
    assert not [name for name, _ in environment.thread_settings if name == "OMP_NUM_THREADS"]


def test_a_wrong_token_is_refused(nodes: Nodes, study_file: Path, tmp_path: Path):
    # Ray tries once a second; twenty times, if it is not told otherwise.
    environment = {"RAY_AUTH_TOKEN": "wrong" * 8, "RAY_NUM_REDIS_GET_RETRIES": "2"}
    done = command(nodes, study_file, tmp_path / "results.sqlite", **environment)
    assert done.returncode == 2, done.stderr
    # Ray itself has a line for every attempt.
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: no Ray cluster could be joined")
    assert "is its token here" in error
    assert "Traceback" not in done.stderr
