"""Settings of other tools that are none here, and what does what they do."""

from typing import Any

from tunesmith.errors import RecipeError

ELSEWHERE = {
    **dict.fromkeys(
        ("dry_run", "dryrun"),
        "Leave it out: `tunesmith preview{rest}` shows what would be learnt, and `tunesmith plan{rest}` what it would take.",
    ),
    **dict.fromkeys(
        ("resume", "resume_from_checkpoint"), "Leave it out: `tunesmith resume RUN` goes on with a run that was stopped."
    ),
    **dict.fromkeys(
        ("force", "overwrite", "overwrite_output_dir"),
        "Leave it out, and give another --output-dir or move the old one away: no run is ever overwritten.",
    ),
    "push_to_hub": "Leave it out: `tunesmith push RUN user/name` does it once the run is finished.",
    "fp16": "Leave it out: --dtype float16 does it, and the default takes what the device does well.",
    "bf16": "Leave it out: --dtype bfloat16 does it, and the default takes what the device does well.",
    "config": "Name the YAML file alone: `tunesmith train run.yaml`.",
}
"""What to do instead, by the setting's name. {rest}: the other arguments of the command, after a space."""


def check_elsewhere(key: str, value: Any, rest: str = "") -> None:
    """Raises RecipeError for a setting that another tool has. rest: of the command, to be typed again."""
    if told := ELSEWHERE.get(key.replace("-", "_")):
        asked = value not in (False, None, "", "auto")  # else it asks for what is done anyway
        raise RecipeError(
            f"There is no setting {key!r}.", told.format(rest=f" {rest}" if rest else "") if asked else "Leave it out."
        )
