"""What transformers gives chat templates beside what jinja has: the same names, the same results."""

import json
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace


class TemplateNamespace(Namespace):
    """Variables that outlive a loop; none of Python's own."""

    def __init__(*args: Any, **named: Any) -> None:
        self, attributes = args[0], dict(*args[1:], **named)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        """Without what is in it, which may be itself many times over."""
        return "<Namespace>"


class TemplateDict:
    """``dict``, without what hangs on the type."""

    def __call__(self, *args: Any, **named: Any) -> dict[Any, Any]:
        return dict(*args, **named)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace holds no {name!r}")


def raise_exception(message: str) -> NoReturn:
    """A template's way to refuse a conversation."""
    raise TemplateError(message)


def strftime_now(form: str) -> str:
    """The date, as the template writes it."""
    return datetime.now().strftime(form)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON that is not escaped for HTML, as jinja's own would be."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


GLOBALS = {
    "raise_exception": raise_exception,
    "strftime_now": strftime_now,
    "dict": TemplateDict(),
    "namespace": TemplateNamespace,
}
FILTERS = {"tojson": tojson}
