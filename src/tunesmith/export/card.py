"""README.md of a run: a model card made of facts only."""

from pathlib import Path
from typing import Any

import yaml


def write_card(folder: Path, base: str, facts: dict[str, Any]) -> None:
    """Write the card. ``facts``: heading to value, shown as a table; nothing from the rows themselves."""
    front = {"library_name": "peft", "base_model": base, "tags": ["tunesmith", "lora", "sft"]}
    table = "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in facts.items())
    folder.joinpath("README.md").write_text(
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {_cell(folder.name)}\n\n"
        f"A LoRA adapter for `{_cell(base)}`, trained with tunesmith.\n\n| | |\n|---|---|\n{table}\n\n"
        "## Use\n\n```python\nfrom peft import AutoPeftModelForCausalLM\n\n"
        f'model = AutoPeftModelForCausalLM.from_pretrained("PATH_OR_HUB_ID_OF_THIS_ADAPTER")\n```\n',
        encoding="utf-8",
    )


def _cell(value: Any) -> str:
    text = " ".join(str(value).split())
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "'")):
        text = text.replace(sign, safe)
    return text
