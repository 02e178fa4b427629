"""What memory this machine still has to give."""

from pathlib import Path

import psutil
import torch

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_bytes(device: torch.device) -> int:
    """Memory that a new allocation can take now: of a GPU, or of the machine and of the containers this process is in."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([psutil.virtual_memory().available, *left_in_containers()])


def left_in_containers(groups: Path = GROUPS, own: Path = OWN) -> list[int]:
    """What the limit of each control group of this process leaves (Linux, version 2; of version 1 the outermost): beyond it a
    process is killed. Files that were read count as used there, but would be given back."""
    version1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    version2 = ("memory.max", "memory.current", "inactive_file")
    places = [(groups / "memory", *version1), *((place, *version2) for place in _own_groups(groups, own))]
    found = [_left(*place) for place in places]
    return [left for left in found if left is not None]


def _own_groups(groups: Path, own: Path) -> list[Path]:
    """The group of this process and those around it."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    inner = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    return [groups / part for part in (Path(inner), *Path(inner).parents)]


def _left(group: Path, limit: str, used: str, cached: str) -> int | None:
    try:
        most, now = int((group / limit).read_text()), int((group / used).read_text())
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, most - now + int(kept.get(cached, 0)))
    except (OSError, ValueError):  # no such group, or one without a limit ("max")
        return None
