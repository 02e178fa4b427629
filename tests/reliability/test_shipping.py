"""Merging and exporting, killed at any moment: under the name that was asked for stands all of it or nothing, and the same command
typed again makes it."""

import hashlib

import pytest
from tests.soak import record

ASKED = {
    "merge": {"call": "merge", "kind": "float32"},
    "export": {"call": "export_gguf", "kind": "f16"},
    "export --ollama": {"call": "export_gguf", "kind": "adapter", "ollama": True},
}

OUT = "out.gguf"
"""A name for any of them: files need the ending, folders may have it."""


def sha256(place):
    """Of a file, or of each file of a folder; None if there is nothing."""
    if place.is_dir():
        return {path.name: sha256(path) for path in place.iterdir()}
    return hashlib.sha256(place.read_bytes()).hexdigest() if place.exists() else None


class Shipping:
    """One of them, to a place of its own. moments: that it has, and could be killed at. late: so many of them are its last, when
    what it made gets its name."""

    def __init__(self, lab, name, run, folder):
        self.lab, self.request = lab, {**ASKED[name], "run": str(run)}
        self.name, self.folder, self.late = name, folder, 10 if "ollama" in name else 5
        done = self.make(folder / "undisturbed", {"moment": 0})
        assert done["code"] == 0, done["error"]
        self.moments, self.right = done["moments"], sha256(folder / "undisturbed")
        assert set(self.right) == ({OUT, "Modelfile"} if "ollama" in name else {OUT})

    def make(self, folder, crash=None):
        return self.lab.ask(**self.request, out=str(folder / OUT), crash=crash or {})

    def assert_all_or_nothing_of_it(self, moment):
        folder = self.folder / str(moment)
        assert self.make(folder, {"moment": moment, "signal": 9})["code"] == -9
        named = {name: content for name, content in (sha256(folder) or {}).items() if not name.startswith(".")}
        assert named.items() <= self.right.items(), moment
        if OUT in named:
            assert named == self.right, (moment, "the file is there, so all that was asked for is")
            return True
        again = self.make(folder)
        assert again["code"] == 0, (moment, again)
        assert sha256(folder) == self.right, (moment, "it clears away what the one that died left")
        return False


@pytest.fixture(params=ASKED)
def shipping(request, lab, whole, tmp_path):
    return Shipping(lab, request.param, whole, tmp_path)


def test_killed_in_the_middle_it_leaves_nothing_and_at_the_end_all_of_it(shipping):
    """At its start, in its middle, and at each of its last moments, when it gets its name."""
    last = shipping.moments
    moments = sorted({1, last // 2, *range(max(1, last - shipping.late), last + 1)})
    ended = [shipping.assert_all_or_nothing_of_it(moment) for moment in moments]
    assert not ended[0]
    assert ended[-1]


def test_a_modelfile_of_another_export_is_left_alone_and_the_same_one_gone_on_with(whole, tmp_path):
    """An export that is killed before its file has its name leaves the same one."""
    import tunesmith as ts
    from tunesmith.errors import RunError

    ts.export_gguf(whole, tmp_path / "out.gguf", "adapter", ollama=True)
    modelfile = (tmp_path / "Modelfile").read_bytes()
    (tmp_path / "out.gguf").unlink()
    ts.export_gguf(whole, tmp_path / "out.gguf", "adapter", ollama=True)
    assert (tmp_path / "Modelfile").read_bytes() == modelfile
    (tmp_path / "out.gguf").unlink()
    (tmp_path / "Modelfile").write_bytes(modelfile + b"PARAMETER temperature 1\n")
    with pytest.raises(RunError, match="Modelfile is there already"):
        ts.export_gguf(whole, tmp_path / "out.gguf", "adapter", ollama=True)
    assert [path.name for path in tmp_path.iterdir()] == ["Modelfile"]


def test_two_exports_at_once_do_not_overwrite_each_others_modelfile(lab, whole, tmp_path):
    from tunesmith.training.workshop import made_whole

    with made_whole(tmp_path / "Modelfile") as made:
        made.write_text("FROM ./mine.gguf")
        refused = lab.ask(call="export_gguf", run=str(whole), out=str(tmp_path / "other.gguf"), kind="adapter", ollama=True)
        assert refused["code"] == 2
        assert f"Another process is making {tmp_path / 'Modelfile'}." in refused["error"]
    assert sha256(tmp_path).keys() == {"Modelfile"}
    assert (tmp_path / "Modelfile").read_text() == "FROM ./mine.gguf"


def test_a_run_that_is_gone_on_with_leaves_alone_what_is_exported_into_its_folder(lab, whole, tmp_path):
    from tunesmith.training.workshop import made_whole

    folder = tmp_path / "run"
    assert lab.train(folder, {"update": 5, "signal": 15})["code"] == 143
    with made_whole(folder / "out.gguf") as made:
        made.write_text("mine")
        assert lab.resume(folder)["code"] == 0
        assert made.read_text() == "mine"
    assert (folder / "out.gguf").read_text() == "mine"
    lab.assert_as_undisturbed(folder, whole)


@pytest.mark.parametrize("name", ASKED)
def test_a_place_that_cannot_be_written_is_said_in_words(lab, whole, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    refused = lab.ask(**ASKED[name], run=str(whole), out=str(tmp_path / "file" / "new" / OUT))
    assert refused["code"] == 2, refused["error"]
    assert f"{tmp_path / 'file' / 'new'}: Not a directory. " in refused["error"]
    assert "give another place." in refused["error"]


@pytest.mark.parametrize("name", ASKED)
def test_a_disk_that_is_full_leaves_nothing(lab, whole, tmp_path, name):
    """A limit on the size of files stands for the disk's end."""
    refused = lab.ask(**ASKED[name], run=str(whole), out=str(tmp_path / OUT), crash={"file_bytes": 10_000})
    assert refused["code"] == 2, refused["error"]
    assert "could not be written" in refused["error"]
    assert "Free some space" in refused["error"]
    assert not list(tmp_path.iterdir())


def test_two_at_once_do_not_write_into_each_others_files(lab, whole, tmp_path):
    from tunesmith.training.workshop import made_whole

    with made_whole(tmp_path / "out") as made:
        made.write_text("mine")
        refused = lab.ask(call="merge", run=str(whole), out=str(tmp_path / "out"), kind="float32")
        assert refused["code"] == 2
        assert f"Another process is making {tmp_path / 'out'}." in refused["error"]
    assert (tmp_path / "out").read_text() == "mine"


def test_what_came_there_meanwhile_is_not_overwritten(tmp_path):
    from tunesmith.errors import RunError
    from tunesmith.training.workshop import made_whole

    def make(place):
        with made_whole(place) as made:
            made.write_text("mine")
            place.mkdir()
            (place / "theirs").touch()

    with pytest.raises(RunError, match="was made by somebody else meanwhile"):
        make(tmp_path / "out")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["out", "out/theirs"]


@pytest.mark.soak
def test_killed_at_every_single_moment_it_leaves_all_or_nothing(shipping):
    ended = [shipping.assert_all_or_nothing_of_it(moment) for moment in range(1, shipping.moments + 1)]
    record(f"{shipping.name} killed at every moment", moments=len(ended), whole_or_nothing=len(ended))
