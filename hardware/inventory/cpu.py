"""CPU, memory and NUMA, from /proc/cpuinfo, /proc/meminfo and /sys/devices/system.

x86 names its model in cpuinfo; ARM gives only numbers of the MIDR register, which the tables below name (source: the main ID
register in Arm's and the licensees' technical reference manuals). Topology is counted from sibling lists, not from
ids: ids repeat between dies and clusters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cairn.hardware.inventory.tree import NUMBERS_MAX, TEXT_BYTES_MAX, Tree, format_list, parse_list, parse_mask, whole
from cairn.proto.v1.node_pb2 import CpuFacts, NumaNode

_CPUS: Final = "sys/devices/system/cpu"
_NODES: Final = "sys/devices/system/node"
_IMPLEMENTERS: Final = {
    0x41: "ARM", 0x42: "Broadcom", 0x43: "Cavium", 0x44: "DEC", 0x46: "Fujitsu", 0x48: "HiSilicon", 0x49: "Infineon",
    0x4D: "Motorola", 0x4E: "NVIDIA", 0x50: "APM", 0x51: "Qualcomm", 0x53: "Samsung", 0x56: "Marvell", 0x61: "Apple",
    0x66: "Faraday", 0x69: "Intel", 0x6D: "Microsoft", 0x70: "Phytium", 0xC0: "Ampere",
}  # fmt: skip
_PARTS: Final = {
    (0x41, 0xB76): "ARM1176", (0x41, 0xC05): "Cortex-A5", (0x41, 0xC07): "Cortex-A7", (0x41, 0xC08): "Cortex-A8",
    (0x41, 0xC09): "Cortex-A9", (0x41, 0xC0D): "Cortex-A17", (0x41, 0xC0E): "Cortex-A17", (0x41, 0xC0F): "Cortex-A15",
    (0x41, 0xD01): "Cortex-A32", (0x41, 0xD02): "Cortex-A34", (0x41, 0xD03): "Cortex-A53", (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55", (0x41, 0xD06): "Cortex-A65", (0x41, 0xD07): "Cortex-A57", (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73", (0x41, 0xD0A): "Cortex-A75", (0x41, 0xD0B): "Cortex-A76", (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD0D): "Cortex-A77", (0x41, 0xD0E): "Cortex-A76AE", (0x41, 0xD40): "Neoverse-V1", (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE", (0x41, 0xD43): "Cortex-A65AE", (0x41, 0xD44): "Cortex-X1", (0x41, 0xD46): "Cortex-A510",
    (0x41, 0xD47): "Cortex-A710", (0x41, 0xD48): "Cortex-X2", (0x41, 0xD49): "Neoverse-N2", (0x41, 0xD4A): "Neoverse-E1",
    (0x41, 0xD4B): "Cortex-A78C", (0x41, 0xD4C): "Cortex-X1C", (0x41, 0xD4D): "Cortex-A715", (0x41, 0xD4E): "Cortex-X3",
    (0x41, 0xD4F): "Neoverse-V2", (0x41, 0xD80): "Cortex-A520", (0x41, 0xD81): "Cortex-A720", (0x41, 0xD82): "Cortex-X4",
    (0x41, 0xD83): "Neoverse-V3AE", (0x41, 0xD84): "Neoverse-V3", (0x41, 0xD85): "Cortex-X925", (0x41, 0xD87): "Cortex-A725",
    (0x41, 0xD8E): "Neoverse-N3", (0x42, 0x516): "Vulcan", (0x43, 0x0A1): "ThunderX-88XX", (0x43, 0x0A2): "ThunderX-81XX",
    (0x43, 0x0A3): "ThunderX-83XX", (0x43, 0x0AF): "ThunderX2-99xx", (0x43, 0x0B8): "ThunderX3-T110",
    (0x46, 0x001): "A64FX", (0x46, 0x003): "MONAKA", (0x48, 0xD01): "TaiShan-v110", (0x48, 0xD02): "TaiShan-v120",
    (0x48, 0xD06): "Kunpeng-950", (0x48, 0xD22): "Kunpeng-920",
    (0x48, 0xD40): "Cortex-A76", (0x4E, 0x000): "Denver", (0x4E, 0x003): "Denver-2", (0x4E, 0x004): "Carmel",
    (0x4E, 0x010): "Olympus",
    (0x50, 0x000): "X-Gene", (0x51, 0x001): "Oryon-V1", (0x51, 0x800): "Kryo-2XX-Gold", (0x51, 0x802): "Kryo-3XX-Gold",
    (0x51, 0x804): "Kryo-4XX-Gold", (0x51, 0x805): "Kryo-4XX-Silver", (0x51, 0xC00): "Falkor", (0x51, 0xC01): "Saphira",
    (0x53, 0x001): "exynos-m1", (0x6D, 0xD49): "Azure-Cobalt-100", (0x70, 0x303): "FTC310", (0x70, 0x660): "FTC660",
    (0x70, 0x661): "FTC661", (0x70, 0x662): "FTC662", (0x70, 0x663): "FTC663", (0x70, 0x664): "FTC664",
    (0x70, 0x862): "FTC862", (0xC0, 0xAC3): "Ampere-1", (0xC0, 0xAC4): "Ampere-1a", (0xC0, 0xAC5): "Ampere-1b",
}  # fmt: skip


def read_cpu(tree: Tree, arch: str) -> CpuFacts:
    """Return what the CPUs are, and how many sockets, cores and threads are online."""
    blocks = _blocks(tree.text("proc/cpuinfo", TEXT_BYTES_MAX))
    first = next((block for block in blocks if "processor" in block), {})
    # Old ARM kernels tell features once, in a block of their own.
    shared = {key: value for block in reversed(blocks) for key, value in block.items()}
    flags = (first.get("flags") or shared.get("flags") or shared.get("Features") or shared.get("features") or "").split()
    vendor, model = _arm_identity(blocks) or _identity(first, shared)
    threads = online_cpus(tree) or [number for number, _ in enumerate(block for block in blocks if "processor" in block)]
    threads = threads[:NUMBERS_MAX]
    sockets, cores = _topology(tree, threads)
    frequencies = [tree.number(f"{_CPUS}/cpu{cpu}/cpufreq/cpuinfo_max_freq") for cpu in threads]
    return CpuFacts(
        model=model,
        vendor=vendor,
        sockets=sockets,
        cores=cores,
        threads=len(threads),
        virtualization=_virtualization(tree, arch, flags),
        flags=flags,
        mhz_max=max(frequencies, default=0) // 1000,
    )


def read_memory(tree: Tree) -> int:
    """Return the bytes of memory guests can be in: what the kernel uses, without that of GPUs and persistent memory.

    Such memory, where it is made part of the system's, is in NUMA nodes without CPUs, and in the kernel's total.
    """
    total = _kib(tree.text("proc/meminfo"), "MemTotal:")
    cpus, without = _numa(tree)
    foreign = sum(node.memory_bytes for node in without) if cpus else 0
    return max(0, total - foreign)


def read_numa(tree: Tree) -> list[NumaNode]:
    """Return the NUMA nodes that have CPUs; none when the kernel knows none."""
    return _numa(tree)[0]


def _numa(tree: Tree) -> tuple[list[NumaNode], list[NumaNode]]:
    """Return the NUMA nodes with CPUs, and those without."""
    nodes: tuple[list[NumaNode], list[NumaNode]] = ([], [])
    for number, path in tree.numbered(_NODES, "node"):
        cpus = tree.text(path / "cpulist") or format_list(parse_mask(tree.text(path / "cpumap")))
        size = _kib(tree.text(path / "meminfo"), "MemTotal:")
        nodes[0 if parse_list(cpus) else 1].append(NumaNode(id=number, memory_bytes=size, cpus=cpus))
    return nodes


def _kib(meminfo: str, name: str) -> int:
    """Return the bytes of a line such as "MemTotal: 5596296 kB" or "Node 0 MemTotal: 245760 kB"; 0 when it tells none."""
    for line in meminfo.splitlines():
        words = line.split()
        if name in words[:-1]:
            kib = whole(words[words.index(name) + 1]) or 0
            return kib * 1024 if kib < 2**53 else 0
    return 0


def guess_arch(tree: Tree) -> str:
    """Return the architecture of a recorded machine as far as its cpuinfo shows it; empty: unknown."""
    cpuinfo = tree.text("proc/cpuinfo", TEXT_BYTES_MAX)
    if "CPU implementer" in cpuinfo:
        return (
            "aarch64" if any(line.split(":")[1].strip() in ("8", "AArch64") for line in _lines(cpuinfo, "CPU arch")) else "arm"
        )
    flags = next((line.split(":")[1].split() for line in _lines(cpuinfo, "flags")), [])
    return ("x86_64" if "lm" in flags else "i686") if flags else ""


def online_cpus(tree: Tree) -> list[int]:
    """Return the numbers of the CPUs online; none when /sys does not tell."""
    listed = parse_list(tree.text(f"{_CPUS}/online"))
    if listed:
        return listed
    return [number for number, path in tree.numbered(_CPUS, "cpu") if tree.number(path / "online", 1) == 1]


def _topology(tree: Tree, threads: list[int]) -> tuple[int, int]:
    """Return (sockets, cores) of the threads online."""
    sockets, cores, online = set[int](), set[object](), frozenset(threads)
    for cpu in threads:
        folder = f"{_CPUS}/cpu{cpu}/topology"
        package = tree.number(f"{folder}/physical_package_id", -1)
        siblings = _siblings(tree, folder, ("core_cpus", "thread_siblings"), online)
        cores.add(siblings or (package, tree.text(f"{folder}/core_id") or cpu))
        # -1 is what ARM kernels say without firmware tables: then all share one socket.
        sockets.add(package)
    if _tells_clusters(tree):
        return min(len(sockets), 1), len(cores)
    return len(sockets), len(cores)


def _tells_clusters(tree: Tree) -> bool:
    """Tell whether package ids may be those of clusters: ARM with a device tree, Linux before 6.0. It has one."""
    described = tree.exists("sys/firmware/devicetree/base") or tree.exists("proc/device-tree")
    several = len(_numa(tree)[0]) > 1
    return described and not several and not tree.exists("sys/firmware/acpi") and not tree.exists("sys/class/dmi/id/sys_vendor")


def _siblings(tree: Tree, folder: str, names: Iterable[str], online: frozenset[int]) -> tuple[int, ...]:
    for name in names:
        found = parse_list(tree.text(f"{folder}/{name}_list")) or parse_mask(tree.text(f"{folder}/{name}"))
        if found:
            return tuple(cpu for cpu in found if cpu in online)
    return ()


def _blocks(cpuinfo: str) -> list[dict[str, str]]:
    """Return /proc/cpuinfo as one dictionary per paragraph."""
    blocks = []
    for paragraph in cpuinfo.split("\n\n"):
        pairs = (line.partition(":") for line in paragraph.splitlines() if ":" in line)
        blocks.append({key.strip(): value.strip() for key, _, value in pairs})
    return blocks


def _lines(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start) and ":" in line]


def _identity(first: dict[str, str], shared: dict[str, str]) -> tuple[str, str]:
    names = ("model name", "uarch", "cpu model", "cpu", "Processor", "Model Name", "machine")
    model = next((block[name] for block in (first, shared) for name in names if block.get(name)), "")
    vendor = first.get("vendor_id") or shared.get("vendor_id") or shared.get("vendor") or shared.get("mvendorid") or ""
    return vendor, " ".join(model.split())


def _arm_identity(blocks: list[dict[str, str]]) -> tuple[str, str] | None:
    """Return vendor and model(s) by MIDR numbers; None when this is no ARM machine. Different cores are joined by " + "."""
    models: dict[str, None] = {}
    vendor = ""
    for block in blocks:
        try:
            implementer, part = int(block["CPU implementer"], 16), int(block["CPU part"], 16)
        except (KeyError, ValueError):
            continue
        vendor = vendor or _IMPLEMENTERS.get(implementer, f"implementer {implementer:#04x}")
        models[_PARTS.get((implementer, part), f"part {part:#05x}")] = None
    return (vendor, " + ".join(models)) if models else None


def _virtualization(tree: Tree, arch: str, flags: list[str]) -> str:
    for flag in ("vmx", "svm"):
        if flag in flags:
            return flag
    return "el2" if arch == "aarch64" and tree.exists("dev/kvm") else ""
