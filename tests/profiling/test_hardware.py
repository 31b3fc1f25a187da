import os
from pathlib import Path

import pytest

from tippingpoint.profiling import hardware
from trees import CORES, cache, write

GUEST = {"proc/cpuinfo": "processor\t: 0\nmodel name\t: Imaginary 9000\nflags\t\t: fpu sse hypervisor avx"}
METAL = {"proc/cpuinfo": "processor\t: 0\nmodel name\t: Imaginary 9000\nflags\t\t: fpu sse avx"}
TABLES = "sys/class/dmi/id"
CLOCKS = "sys/devices/system/clocksource/clocksource0/available_clocksource"

needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="this system tells no process's cores"
)


@pytest.fixture
def on_cores(monkeypatch):
    """Set the cores this process may use."""

    def pin(*cores: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(cores), raising=False)

    return pin


def test_caches_are_told_by_level_with_data_before_instructions(tmp_path):
    write(
        tmp_path,
        {
            **cache(0, 3, 3, "Unified", "107520K", "0-55"),
            **cache(0, 2, 2, "Unified", "2048K", "0,56"),
            **cache(0, 1, 1, "Instruction", "32K", "0,56"),
            **cache(0, 0, 1, "Data", "48K", "0,56"),
        },
    )
    assert hardware.caches(tmp_path) == "L1d 48 KiB, L1i 32 KiB, L2 2 MiB, L3 105 MiB"


def test_last_level_caches_of_all_groups_of_cores_are_added_and_shared_ones_counted_once(tmp_path):
    for core, group in ((0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3")):
        write(tmp_path, cache(core, 2, 2, "Unified", "1024K", str(core)))
        write(tmp_path, cache(core, 3, 3, "Unified", "32M", group))
    assert hardware.last_level_cache_bytes(tmp_path) == 2 * 32 * 2**20


def test_last_level_caches_of_cores_that_share_nothing_are_added(tmp_path):
    for core in range(3):
        write(tmp_path, cache(core, 0, 1, "Data", "64K", str(core)))
        write(tmp_path, cache(core, 1, 1, "Instruction", "96K", str(core)))
    assert hardware.last_level_cache_bytes(tmp_path) == 3 * 64 * 2**10


def test_a_process_that_may_use_every_core_is_not_pinned(tmp_path, on_cores):
    write(tmp_path, {f"{CORES}/online": "0-3,8"})
    on_cores(0, 1, 2, 3, 8)
    assert hardware.pinned_cores(tmp_path) == ()
    on_cores(8, 2)
    assert hardware.pinned_cores(tmp_path) == (2, 8)


@needs_affinity
def test_this_process_held_to_one_core_is_pinned_to_it(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    (core, *_) = os.sched_getaffinity(0)
    assert hardware.pinned_cores(Path("/nowhere")) == tuple(sorted(os.sched_getaffinity(0)))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        assert hardware.pinned_cores(Path("/nowhere")) == (core,)
        assert hardware.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_threads_of_one_physical_core_are_one_core(tmp_path, on_cores):
    for core, (package, number) in enumerate([(0, 0), (0, 1), (0, 0), (1, 0)]):
        topology = f"{CORES}/cpu{core}/topology"
        write(tmp_path, {f"{topology}/physical_package_id": package, f"{topology}/core_id": number})
    on_cores(0, 1, 2, 3)
    assert hardware.physical_cores(tmp_path) == 3
    on_cores(0, 2)
    assert hardware.physical_cores(tmp_path) == 1


def test_cores_that_do_not_say_where_they_are_count_each(tmp_path, on_cores):
    on_cores(0, 1, 2)
    assert hardware.physical_cores(tmp_path) == 3


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (METAL, ""),
        # Some clouds rent bare metal with the tables of their virtual machines.
        ({**METAL, f"{TABLES}/sys_vendor": "Amazon EC2", f"{TABLES}/product_name": "c7i.metal"}, ""),
        ({**GUEST, f"{TABLES}/sys_vendor": "Amazon EC2", f"{TABLES}/product_name": "c7i.large"}, "KVM"),
        ({**GUEST, f"{TABLES}/sys_vendor": "VMware, Inc.", f"{TABLES}/product_name": "VMware20,1"}, "VMware"),
        (
            {**GUEST, f"{TABLES}/sys_vendor": "Microsoft Corporation", f"{TABLES}/product_name": "Virtual Machine"},
            "Hyper-V",
        ),
        ({**METAL, f"{TABLES}/sys_vendor": "Microsoft Corporation", f"{TABLES}/product_name": "Surface"}, ""),
        ({**GUEST, CLOCKS: "tsc kvm-clock"}, "KVM"),
        (GUEST, "virtual machine"),
        ({**GUEST, CLOCKS: "tsc kvm-clock", ".dockerenv": ""}, "KVM, docker"),
        ({**METAL, "run/.containerenv": ""}, "podman"),
        ({**METAL, ".dockerenv": "", "proc/1/environ": "PATH=/bin\0container=lxc\0"}, "lxc"),
        # Elsewhere than on x86 the CPU tells no guest that it is one.
        ({"proc/cpuinfo": "Features : fp asimd", f"{TABLES}/product_name": "KVM Virtual Machine"}, "KVM"),
        ({"proc/cpuinfo": "Features : fp asimd"}, ""),
    ],
)
def test_virtual_machines_and_containers_are_told_by_what_they_leave(tmp_path, files, expected):
    assert hardware.virtualization(write(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023", "535.104.05"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs-builder@U16)",
            "570.86.15",
        ),
        ("something else", ""),
    ],
)
def test_the_version_of_the_gpus_driver_is_found(tmp_path, line, version):
    assert hardware.nvidia_driver(write(tmp_path, {"proc/driver/nvidia/version": line})) == version


def test_governor_and_model_are_what_the_system_says(tmp_path):
    write(tmp_path, {**METAL, f"{CORES}/cpu0/cpufreq/scaling_governor": "schedutil"})
    assert hardware.governor(tmp_path) == "schedutil"
    assert hardware.cpu_model(tmp_path) == "Imaginary 9000"


def test_where_nothing_can_be_read_nothing_is_claimed_and_nothing_fails(tmp_path):
    answers = (
        hardware.caches(tmp_path),
        hardware.governor(tmp_path),
        hardware.virtualization(tmp_path),
        hardware.nvidia_driver(tmp_path),
    )
    assert answers == ("",) * 4
    assert hardware.last_level_cache_bytes(tmp_path) == 0
    assert hardware.cpu_model(tmp_path)


def test_a_file_that_may_not_be_read_is_empty(tmp_path):
    (tmp_path / "folder").mkdir()
    assert hardware.read(tmp_path / "folder") == ""


def test_a_system_without_affinity_is_not_pinned(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert hardware.pinned_cores() == ()
    assert hardware.physical_cores() == hardware.usable_cores() == (os.cpu_count() or 1)


def test_cores_lie_on_sockets(tmp_path, on_cores):
    for core, place in ((0, 0), (1, 1), (2, 0), (3, 1)):
        write(tmp_path, {f"{CORES}/cpu{core}/topology/physical_package_id": place})
    assert hardware.sockets((0, 2), tmp_path) == (0,)
    assert hardware.sockets((3, 0, 1), tmp_path) == (0, 1)
    on_cores(1, 3)
    assert hardware.sockets(None, tmp_path) == (1,)


def test_where_nothing_tells_of_sockets_there_is_one(tmp_path, on_cores):
    on_cores(0, 1)
    write(tmp_path, {f"{CORES}/cpu1/topology/physical_package_id": -1})
    assert (
        hardware.sockets(None, tmp_path) == hardware.sockets((), tmp_path) == hardware.sockets((7,), tmp_path) == (0,)
    )


def test_hardware_threads_of_one_core_stand_far_apart_in_their_socket(tmp_path, on_cores):
    on_cores(0, 1, 2, 3, 4, 5)
    # Cloud machines number the two threads of a core one after the other.
    for core, (package, number) in enumerate(((0, 0), (0, 0), (0, 1), (0, 1), (1, 0), (1, 0))):
        topology = f"{CORES}/cpu{core}/topology"
        write(tmp_path, {f"{topology}/physical_package_id": package, f"{topology}/core_id": number})
    assert hardware.cores_by_socket(tmp_path) == [(0, 2, 1, 3), (4, 5)]


def test_where_nothing_tells_of_cores_there_is_one_socket_with_all(tmp_path, on_cores):
    on_cores(3, 1)
    assert hardware.cores_by_socket(tmp_path) == [(1, 3)]
