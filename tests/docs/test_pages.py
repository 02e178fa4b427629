"""The documentation says what the code does: settings page fresh, README's commands real, figures from result files."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_settings_page_is_the_recipe():
    spec = importlib.util.spec_from_file_location("make_settings", ROOT / "docs" / "make_settings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run `make docs`"


def test_the_readmes_commands_exist():
    from tunesmith.cli.main import COMMANDS

    blocks = re.findall(r"^```\n(.*?)^```", README, re.M | re.S)
    used = set(re.findall(r"^tunesmith (\w+)", "".join(blocks), re.M))
    assert used
    assert used <= set(COMMANDS)


def test_the_readmes_flags_are_settings(capsys):
    import argparse

    from tunesmith.cli.settings import read_settings

    text = re.sub(r"\\\n\s*", " ", README)
    commands = [line for line in text.splitlines() if line.startswith("tunesmith train ")]
    assert commands
    for command in commands:
        words = command.split("#")[0].split()[2:]
        read_settings(argparse.ArgumentParser(), [w for w in words if not w.endswith(".yaml")], lambda line: None)


def test_the_readmes_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"make (demo|test|\w+)`", README)) | {"demo", "test"} <= targets


def test_the_readmes_speed_figures_are_the_newest_result_files():
    newest = sorted((ROOT / "benchmarks" / "results").glob("*-cpu_recipe.json"))[-1]
    ratios = {c["comparison"]: c["ratio"] for c in json.loads(newest.read_text())["comparisons"]}
    assert newest.name in README
    for name, ratio in ratios.items():
        assert re.search(rf"{re.escape(name)}.*\b{ratio:.1f}×", README), (name, ratio)


@pytest.mark.parametrize("page", sorted(p.relative_to(ROOT).as_posix() for p in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]))
def test_links_lead_somewhere(page):
    path = ROOT / page
    for link in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", path.read_text(encoding="utf-8")):
        target = link[0] or link[1]
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), target


def test_files_named_in_the_tour_exist():
    tour = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    for name in re.findall(r"`(\w+/\w+\.py|\w+\.py)`", tour):
        assert (ROOT / "src" / "tunesmith" / name).exists(), name


def test_the_version_is_stated_once_and_the_same():
    import tunesmith

    assert f'version = "{tunesmith.__version__}"' in (ROOT / "pyproject.toml").read_text()
