"""Proves that kernels' launchers can be built side by side without one being taken for another."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

launchers = pytest.importorskip("tunesmith.kernels.fused.launchers", reason="needs triton")
build = pytest.importorskip("triton.runtime.build")

pytestmark = [
    pytest.mark.skipif(not shutil.which("gcc") and not shutil.which("clang"), reason="needs a C compiler"),
    pytest.mark.skipif(not hasattr(build, "_load_module_from_path"), reason="Triton before 3.4"),
]

SOURCE = """
#include <Python.h>
static PyObject *launch(PyObject *self, PyObject *arguments) { return PyLong_FromLong(%d); }
static PyMethodDef methods[] = {{"launch", launch, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "__triton_launcher", NULL, -1, methods};
PyMODINIT_FUNC PyInit___triton_launcher(void) { return PyModule_Create(&module); }
"""
"""As Triton 3.6 makes them: a module of one phase, under the one name."""
NUMBERS = range(1, 5)


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return lambda number: build.compile_module_from_src(SOURCE % number, launchers.MODULE)


def test_a_launcher_loaded_before_another_stays_itself(load):
    for _ in range(2):  # the second time their files are in the cache and known to Python
        loaded = [load(number) for number in NUMBERS]
        assert [each.launch() for each in loaded] == list(NUMBERS)


def test_launchers_loaded_by_several_threads_stay_themselves(load):
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            assert [each.launch() for each in pool.map(load, list(NUMBERS) * 4)] == list(NUMBERS) * 4
