"""The hardware as Linux describes it, and whether it is real; elsewhere most answers are empty.

Every function takes the root of the file system, so that tests can hand over a tree of their own.
"""

from __future__ import annotations

import os
import platform
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

ROOT = Path("/")

# What virtual machines call themselves in their firmware's tables (vendor and product), most telling first.
_MACHINES = (
    ("vmware", "VMware"),
    ("virtualbox", "VirtualBox"),
    ("amazon ec2", "KVM"),
    ("google compute engine", "KVM"),
    ("openstack", "KVM"),
    ("microsoft corporation virtual machine", "Hyper-V"),
    ("parallels", "Parallels"),
    ("apple virtualization", "Apple"),
    ("kvm", "KVM"),
    ("qemu", "QEMU"),
    ("xen", "Xen"),
)
# Clocks that only a hypervisor offers; small ones (Firecracker) have no firmware tables.
_CLOCKS = (("kvm-clock", "KVM"), ("hyperv", "Hyper-V"), ("xen", "Xen"))
_CACHE_KINDS = {"Data": "d", "Instruction": "i"}
_MEGA = 2**20
_KILO = 2**10


def read(path: Path) -> str:
    """Return what a file says without white space around it; empty where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def usable_cores() -> int:
    """Return the cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pinned_cores(root: Path = ROOT) -> tuple[int, ...]:
    """Return the cores this process is held to, in order; empty where it may use every core there is."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    allowed = os.sched_getaffinity(0)
    online = _numbers(read(root / "sys/devices/system/cpu/online")) or set(range(os.cpu_count() or 1))
    return () if allowed >= online else tuple(sorted(allowed))


def physical_cores(root: Path = ROOT) -> int:
    """Return the cores this process may run on with hardware threads of one core counted once."""
    if not hasattr(os, "sched_getaffinity"):
        return usable_cores()
    siblings = set()
    for core in os.sched_getaffinity(0):
        topology = root / f"sys/devices/system/cpu/cpu{core}/topology"
        siblings.add((read(topology / "physical_package_id"), read(topology / "core_id") or f"cpu{core}"))
    return len(siblings)


def sockets(cores: Iterable[int] | None = None, root: Path = ROOT) -> tuple[int, ...]:
    """Return the CPU sockets (physical packages) that cores lie on, in order; one, number 0, where nothing says so.

    Args:
        cores: By number; None means all this process may run on.
        root: Of the file system that is read.
    """
    if cores is None:
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    places = {read(root / f"sys/devices/system/cpu/cpu{core}/topology/physical_package_id") for core in cores}
    # Some machines say -1 of every core.
    return tuple(sorted({int(place) if place.isdigit() else 0 for place in places})) or (0,)


def cores_by_socket(root: Path = ROOT) -> list[tuple[int, ...]]:
    """Return the cores this process may run on, socket by socket; hardware threads of one core stand far apart.

    The first cores of a socket then share nothing but the socket, as far as there are as many.

    Args:
        root: Of the file system that is read.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    found: dict[int, list[tuple[int, int]]] = {}
    seen: Counter[tuple[int, str]] = Counter()
    for core in allowed:
        (socket,) = sockets([core], root)
        same = (socket, read(root / f"sys/devices/system/cpu/cpu{core}/topology/core_id") or f"cpu{core}")
        found.setdefault(socket, []).append((seen[same], core))
        seen[same] += 1
    return [tuple(core for _, core in sorted(cores)) for _, cores in sorted(found.items())]


def cpu_model(root: Path = ROOT) -> str:
    """Return the CPU's own name, or the architecture where it does not say."""
    found = re.search(r"^model name\s*:\s*(.+)$", read(root / "proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def caches(root: Path = ROOT) -> str:
    """Return the caches that the first core sees: "L1d 48 KiB, L1i 32 KiB, L2 2 MiB, L3 105 MiB"."""
    found = []
    for index in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, kind, size = read(index / "level"), read(index / "type"), _bytes(read(index / "size"))
        if level and size:
            found.append((f"L{level}{_CACHE_KINDS.get(kind, '')}", size))
    return ", ".join(f"{name} {_whole(size)}" for name, size in sorted(found))


def last_level_cache_bytes(root: Path = ROOT) -> int:
    """Return the size of the caches nearest to memory, those of all cores together; 0 where nothing says so.

    A machine may have one for each group of cores, and threads on all of them use all of them.
    """
    sizes: dict[tuple[int, str], int] = {}
    for index in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*"):
        level, shared = read(index / "level"), read(index / "shared_cpu_list") or index.parts[-3]
        if level.isdigit() and read(index / "type") != "Instruction":
            sizes[int(level), shared] = _bytes(read(index / "size"))
    last = max((level for level, _ in sizes), default=0)
    return sum(size for (level, _), size in sizes.items() if level == last)


def governor(root: Path = ROOT) -> str:
    """Return what steers the CPU's frequency; empty where the system does not say."""
    return read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def virtualization(root: Path = ROOT) -> str:
    """Return the virtual machine and the container this runs in, as far as it shows: "KVM, docker"."""
    return ", ".join(filter(None, [_virtual_machine(root), _container(root)]))


def nvidia_driver(root: Path = ROOT) -> str:
    """Return the version of the NVIDIA driver; empty without one."""
    found = re.search(r"Kernel Module(?: for \S+)?\s+([\d.]+)", read(root / "proc/driver/nvidia/version"))
    return found[1] if found else ""


def _virtual_machine(root: Path) -> str:
    flags = re.search(r"^flags\s*:(.*)$", read(root / "proc/cpuinfo"), re.MULTILINE)
    # Clouds write the same tables on bare metal; on x86 the CPU itself tells a guest. Others have no such flag.
    if flags and "hypervisor" not in flags[1].split():
        return ""
    tables = root / "sys/class/dmi/id"
    says = f"{read(tables / 'sys_vendor')} {read(tables / 'product_name')}".lower()
    clocks = read(root / "sys/devices/system/clocksource/clocksource0/available_clocksource")
    for text, names in ((says, _MACHINES), (clocks, _CLOCKS)):
        for part, name in names:
            if part in text:
                return name
    return "virtual machine" if flags else ""


def _container(root: Path) -> str:
    # The first process of a container is often told by its maker; only its owner may read that.
    for variable in read(root / "proc/1/environ").split("\0"):
        name, _, value = variable.partition("=")
        if name == "container" and value:
            return value
    if (root / "run/.containerenv").exists():
        return "podman"
    return "docker" if (root / ".dockerenv").exists() else ""


def _numbers(text: str) -> set[int]:
    """Return the numbers of a kernel's list, such as "0-3,8"."""
    found: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _bytes(text: str) -> int:
    """Return bytes of a kernel's size, such as "1024K"; 0 for anything else."""
    found = re.fullmatch(r"(\d+)([KM]?)", text)
    return int(found[1]) * {"": 1, "K": _KILO, "M": _MEGA}[found[2]] if found else 0


def _whole(size: int) -> str:
    """Return a cache's size in the largest unit that needs no fraction."""
    for unit, name in ((_MEGA, "MiB"), (_KILO, "KiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"
