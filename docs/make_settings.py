"""Write docs/settings.md from `Recipe`, so that the page cannot drift from the code: python docs/make_settings.py"""

from pathlib import Path
from typing import Any

from tunesmith.recipe import GROUPS, Recipe

PAGE = Path(__file__).parent / "settings.md"


def page() -> str:
    """The page: one table per group of settings."""
    lines = [
        "# Settings",
        "",
        "Every setting has one name, transformers', peft's or trl's. On the command line write it `--learning-rate 1e-4`,",
        "`--learning_rate 1e-4` or `learning_rate=1e-4`; in YAML `learning_rate: 1e-4`; in Python as a keyword. The names that",
        "other tools use are accepted and echoed back as ours. This page is made from the code (`make docs`).",
    ]
    for group in GROUPS:
        lines += ["", f"## {group}", "", "| setting | default | what it does | also known as |", "|---|---|---|---|"]
        for name, field in Recipe.model_fields.items():
            extra: Any = field.json_schema_extra
            if extra["group"] == group:
                default = "" if field.default is None else f"`{field.default}`"
                aliases = ", ".join(f"`{alias}`" for alias in extra["aliases"])
                lines.append(f"| `{name}` | {default} | {field.description} | {aliases} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
