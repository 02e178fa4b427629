# ruff: noqa: E501 (tables of hostile input, and errors looked at where they are caught)
"""Proves by the syntax tree that nothing in the code base runs what it reads: no pickle, no eval, no shell, no remote code."""

import ast
from pathlib import Path

import pytest

import tunesmith

SOURCE = Path(tunesmith.__file__).parent
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "runpy",
    "code",
    "imp",
    "telnetlib",
}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.save", "torch.jit.load", "torch.hub.load",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.dump", "np.load", "numpy.load", "pd.read_pickle",
    "joblib.load", "subprocess.getoutput", "subprocess.getstatusoutput", "shutil.unpack_archive", "tempfile.mktemp",
    "ssl._create_unverified_context",
}  # fmt: skip
CALLED_ANYWHERE = {"extractall", "allow_pickle", "load_pickle", "read_pickle"}


def named(node: ast.AST) -> str:
    """a.b.c of an expression, as far as it is names."""
    if isinstance(node, ast.Attribute):
        return f"{named(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults(text: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES]
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module] if node.module.partition(".")[0] in MODULES else []
            found += [f"{node.module}.{a.name}" for a in node.names if f"{node.module}.{a.name}" in CALLS]
        if isinstance(node, ast.Call):
            name = named(node.func)
            found += [name] if name in CALLS or name.rpartition(".")[2] in CALLED_ANYWHERE else []
            for keyword in node.keywords:
                safe = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in ("shell", "trust_remote_code", "allow_pickle") and not safe:
                    found.append(f"{keyword.arg}=")
                if keyword.arg in ("weights_only", "use_safetensors", "verify") and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is True
                ):
                    found.append(f"{keyword.arg}=")
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_module_runs_what_it_reads(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import loads", "import dill as d", "torch.load('a')", "eval('1')", "exec('1')",
        "yaml.load(text, Loader=yaml.SafeLoader)", "from yaml import unsafe_load", "os.system('ls')", "run('ls', shell=True)",
        "run('ls', shell=not safe)", "M.from_pretrained('a', trust_remote_code=True)", "f(trust_remote_code=settings.trust)",
        "np.load(path, allow_pickle=True)", "f(use_safetensors=None)", "tar.extractall()", "__import__('os')", "joblib.load(x)",
    ],
)  # fmt: skip
def test_each_of_them_would_be_found(text: str) -> None:
    assert faults(text)


def test_models_and_tokenizers_are_loaded_without_remote_code_and_only_from_safetensors() -> None:
    """Said at the call, not left to a default that may change."""
    loads = [
        (path, node)
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and named(node.func).endswith(".from_pretrained")
    ]
    assert len(loads) >= 3
    for path, node in loads:
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        remote = given.get("trust_remote_code")
        assert isinstance(remote, ast.Constant) and remote.value is False, f"{path}:{node.lineno}"  # noqa: PT018
        if "Model" in named(node.func) and "gguf_file" not in given:
            assert "use_safetensors" in given, f"{path}:{node.lineno}"
