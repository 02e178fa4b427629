"""Proves that what is made beside its place comes there whole, by one process at a time, and that a place it could not come to is
refused before anything is made."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import RunError
from tunesmith.training import workshop
from tunesmith.training.workshop import check_free, made_whole, remove_leftovers


def test_a_file_and_a_folder_come_whole_and_leave_nothing_beside_them(tmp_path: Path) -> None:
    with made_whole(tmp_path / "new" / "file") as made:
        made.write_text("mine")
        assert not (tmp_path / "new" / "file").exists()
    (tmp_path / "new" / "folder").mkdir()
    with made_whole(tmp_path / "new" / "folder", folder=True) as made:
        (made / "deep").mkdir()
        (made / "deep" / "file").write_text("mine")
    found = sorted(path.relative_to(tmp_path / "new").as_posix() for path in (tmp_path / "new").rglob("*"))
    assert found == ["file", "folder", "folder/deep", "folder/deep/file"]


def test_all_of_it_is_on_the_disk_before_it_has_its_name_and_then_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order in which the system is asked, by inode."""
    asked: list[int | str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda handle: (asked.append(os.fstat(handle).st_ino), fsync(handle)))
    monkeypatch.setattr(os, "rename", lambda *paths: (asked.append("rename"), rename(*paths)))
    with made_whole(tmp_path / "out", folder=True) as made:
        (made / "file").write_text("mine")
    inodes = [path.stat().st_ino for path in (tmp_path / "out", tmp_path / "out" / "file")]
    assert asked == [*inodes, "rename", tmp_path.stat().st_ino]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError), made_whole(tmp_path / "out") as made:
        made.write_text("half \udc80", encoding="utf-8")
    assert not list(tmp_path.iterdir())


def test_files_that_may_not_be_written_are_synced_too(tmp_path: Path) -> None:
    """As nobody, if this is root, who may write everything."""
    tmp_path.chmod(0o777)
    script = (
        "import os, sys; from pathlib import Path; from tunesmith.training.workshop import made_whole\n"
        "os.chdir(sys.argv[1])\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "with made_whole(Path('out')) as made: made.write_text('mine'); made.chmod(0o444)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_text() == "mine"


# ---- one process at a time


def test_what_another_process_is_making_is_refused(tmp_path: Path) -> None:
    with made_whole(tmp_path / "out") as made:
        made.write_text("mine")
        with pytest.raises(RunError, match=r"Another process is making .*out\."), made_whole(tmp_path / "out"):
            pass
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.skipif(workshop.fcntl is None, reason="a system without these locks")
def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / ".tmp-out").write_text("somebody's")
    with pytest.raises(RunError, match=r"\.tmp-out is in the way"), made_whole(tmp_path / "out"):
        pass
    assert (tmp_path / ".tmp-out").read_text() == "somebody's"


def test_processes_at_one_place_at_once_are_refused_or_served(tmp_path: Path) -> None:
    """Each tries a thousand times; a raw error would end it with another code."""
    tries = (
        "import sys, pathlib, contextlib\nfrom tunesmith.errors import RunError\n"
        "from tunesmith.training.workshop import workshop\n"
        "for _ in range(1000):\n    with contextlib.suppress(RunError), workshop(pathlib.Path(sys.argv[1])):\n        pass\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", tries, str(tmp_path / "out")], stderr=subprocess.PIPE) for _ in range(3)]
    assert [(process.communicate()[1], process.returncode) for process in both] == [(b"", 0)] * 3


@pytest.mark.parametrize("moment", ["open", "flock"], ids=["before it is opened", "before it is locked"])
def test_a_workshop_that_another_process_leaves_just_now_is_not_taken_for_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The other one removes it between two steps of this one: locking what is gone would keep nobody out."""
    module = os if moment == "open" else workshop.fcntl
    real, left = getattr(module, moment), []

    def step(*arguments: Any, **named: Any) -> object:
        if not left:
            left.append(True)
            shutil.rmtree(tmp_path / ".tmp-out")
        return real(*arguments, **named)

    monkeypatch.setattr(module, moment, step)
    with made_whole(tmp_path / "out") as made:
        made.write_text("mine")
        with pytest.raises(RunError, match="Another process is making"), made_whole(tmp_path / "out"):
            pass
    assert left
    assert (tmp_path / "out").read_text() == "mine"


def test_leftovers_are_removed_but_not_what_a_living_process_is_making(tmp_path: Path) -> None:
    (tmp_path / ".tmp-checkpoint-14").mkdir()
    (tmp_path / ".tmp-metrics.jsonl").write_bytes(b"half")
    with made_whole(tmp_path / "out") as made:
        made.write_text("mine")
        remove_leftovers(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [".tmp-out"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# ---- places it cannot come to


def refused(place: Path, *, folder: bool) -> str:
    with pytest.raises(RunError) as error, made_whole(place, folder=folder):
        pytest.fail("something was begun")
    return str(error.value)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_there_already_is_named_and_left_alone(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    said = refused(tmp_path / kind, folder=True)
    assert said == f"{tmp_path / kind} " + {
        "file": "is there already. Give another name, or move it away.",
        "folder": "is not empty. Give another folder, or move it away.",
    }[kind]  # fmt: skip
    assert len(list(tmp_path.rglob("*"))) == 3


def test_a_folder_where_a_file_should_go_asks_for_a_name_in_it(tmp_path: Path) -> None:
    assert refused(tmp_path, folder=False) == f"{tmp_path} is a folder. Name a file in it: {tmp_path / 'out.gguf'}"


@pytest.mark.parametrize("target", ["empty", "nowhere"])
def test_a_link_is_refused_with_the_place_it_leads_to(tmp_path: Path, target: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / target)
    for folder in (True, False):
        said = refused(tmp_path / "link", folder=folder)
        assert said.endswith(f"would be replaced. Give the place it leads to: {tmp_path.resolve() / target}")
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("name", [".", "", "as it is"])
def test_the_folder_one_is_in_is_refused_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path if name == "as it is" else Path(name)
    assert "is the folder you are in" in (said := refused(place, folder=True))
    assert said.endswith(f"Name a new one in it: {place / 'merged'}")
    assert refused(Path("nowhere") / "..", folder=True).startswith("nowhere/.. is there already.")
    assert not list(tmp_path.iterdir())


def test_a_mounted_disk_is_refused_with_a_folder_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it takes to mount one, tests are not allowed; the system's own word for it is."""
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path)
    with pytest.raises(RunError, match=r"A disk is mounted at .*, which cannot be replaced\. Name a new folder in it: .*merged"):
        check_free(tmp_path, folder=True)
    check_free(tmp_path / "new", folder=True)
