"""`tunesmith login`: the hub's own login. The token goes to the hub's own store; tunesmith keeps none."""

import os
import sys

from tunesmith.cli.parser import Parser
from tunesmith.errors import HubError


def run(arguments: list[str]) -> int:
    """Log in unless one is, and say as whom."""
    parser = Parser(
        prog="tunesmith login",
        description="Log in to the Hugging Face hub with a browser or a token, as `hf auth login` does. "
        "The token is kept where the hub's own tools keep it; HF_TOKEN in the environment goes before it.",
    )
    parser.add_argument("--force", action="store_true", help="log in anew even if a token is there")
    options = parser.parse_args(arguments)

    import huggingface_hub
    from huggingface_hub.utils import logging

    from tunesmith.export.hub_errors import in_users_terms

    if options.force or huggingface_hub.get_token() is None:
        if os.environ.get("HF_TOKEN"):
            raise HubError("HF_TOKEN is set, and goes before any login.", "Unset it, and log in again.")
        if not sys.stdin.isatty():
            raise HubError("A login needs a terminal.", "Set HF_TOKEN instead where there is none.")
        logging.set_verbosity_info()  # its questions are told as log messages
        with in_users_terms("the hub"):
            huggingface_hub.login(skip_if_logged_in=not options.force)
    with in_users_terms("the hub"):
        who = huggingface_hub.whoami()
    print(f"Logged in as {who['name']}.")
    return 0
