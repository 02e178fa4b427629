"""Proves that a container's limit counts as the machine's memory, with what is only cached left out."""

import pytest
import torch

from tunesmith.plan.machine import available_bytes, left_in_containers

GB = 2**30


def group(folder, limit, used, cached, names=("memory.max", "memory.current", "inactive_file")):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {cached}\nfile 7\n")


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own"
    path.write_text("1:name=systemd:/x\n0::/work.slice/job.scope\n")
    return path


def test_every_group_around_this_process_counts(tmp_path, own):
    group(tmp_path / "work.slice" / "job.scope", 8 * GB, 3 * GB, GB)
    group(tmp_path / "work.slice", 5 * GB, 4 * GB, 0)
    group(tmp_path / "other.slice", GB, GB, 0)
    assert sorted(left_in_containers(tmp_path, own)) == [GB, 6 * GB]


def test_a_container_that_sees_itself_as_the_root_counts(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/\n")
    group(tmp_path, 4 * GB, GB, 0)
    assert left_in_containers(tmp_path, own) == [3 * GB]


def test_version_1_counts(tmp_path, own):
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    group(tmp_path / "memory", 4 * GB, 3 * GB, GB, names)
    assert left_in_containers(tmp_path, own) == [2 * GB]


def test_no_limit_no_files_or_more_used_than_allowed(tmp_path, own):
    assert left_in_containers(tmp_path, tmp_path / "nothing") == []
    group(tmp_path / "work.slice", "max", GB, 0)
    assert left_in_containers(tmp_path, own) == []
    group(tmp_path / "work.slice", GB, 2 * GB, 0)
    assert left_in_containers(tmp_path, own) == [0]


def test_there_is_memory_here():
    assert 2**20 < available_bytes(torch.device("cpu")) < 2**50
