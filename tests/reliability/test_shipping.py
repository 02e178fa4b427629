"""Merging and exporting, killed at any moment: under the name that was asked for stands all of it or nothing, and the same command
typed again makes it."""

import hashlib

import pytest
from tests.soak import record

KINDS = {"merge": "float32", "export_gguf": "f16"}


def sha256(place):
    """Of a file, or of each file of a folder; None if there is nothing."""
    if place.is_dir():
        return {path.name: sha256(path) for path in place.iterdir()}
    return hashlib.sha256(place.read_bytes()).hexdigest() if place.exists() else None


class Shipping:
    """One of the two, to a place of its own. moments: that it has, and could be killed at."""

    def __init__(self, lab, call, run, folder):
        self.lab, self.request = lab, {"call": call, "run": str(run), "kind": KINDS[call]}
        self.folder = folder
        done = self.make(folder / "undisturbed", {"moment": 0})
        assert done["code"] == 0, done["error"]
        self.moments, self.right = done["moments"], sha256(folder / "undisturbed" / "out")

    def make(self, folder, crash=None):
        return self.lab.ask(**self.request, out=str(folder / "out"), crash=crash or {})

    def assert_all_or_nothing_of_it(self, moment):
        folder = self.folder / str(moment)
        assert self.make(folder, {"moment": moment, "signal": 9})["code"] == -9
        left = sha256(folder / "out")
        assert left in (None, self.right), moment
        if left is None:
            again = self.make(folder)
            assert again["code"] == 0, (moment, again)
        assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] == ["out"]
        assert sha256(folder / "out") == self.right, moment
        assert left or [path.name for path in folder.iterdir()] == ["out"], "it clears away what the one that died left"
        return left is not None


@pytest.fixture(params=KINDS)
def shipping(request, lab, whole, tmp_path):
    return Shipping(lab, request.param, whole, tmp_path)


def test_killed_in_the_middle_it_leaves_nothing_and_at_the_end_all_of_it(shipping):
    """At its start, in its middle, and at each of its last moments, when it gets its name."""
    last = shipping.moments
    moments = sorted({1, last // 2, *range(max(1, last - 5), last + 1)})
    ended = [shipping.assert_all_or_nothing_of_it(moment) for moment in moments]
    assert not ended[0]
    assert ended[-1]


def test_killed_between_a_file_and_its_modelfile_the_next_export_goes_on(lab, whole, tmp_path):
    """The Modelfile that stands there then is no other's."""
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


def test_two_at_once_do_not_write_into_each_others_files(lab, whole, tmp_path):
    from tunesmith.training.disk import made_whole

    with made_whole(tmp_path / "out") as made:
        made.write_text("mine")
        refused = lab.ask(call="merge", run=str(whole), out=str(tmp_path / "out"), kind="float32")
        assert refused["code"] == 2
        assert f"Another process is making {tmp_path / 'out'}." in refused["error"]
    assert (tmp_path / "out").read_text() == "mine"


def test_what_came_there_meanwhile_is_not_overwritten(tmp_path):
    from tunesmith.errors import RunError
    from tunesmith.training.disk import made_whole

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
    record(f"{shipping.request['call']} killed at every moment", moments=len(ended), whole_or_nothing=len(ended))
