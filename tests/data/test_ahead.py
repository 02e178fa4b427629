"""Proves that items come as they are, one ahead, and that nobody waits for what is no longer wanted."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from tunesmith.data.ahead import ahead, check_wanted

LONG = 10**7


def long_in_the_making(begun: threading.Event) -> str:
    begun.set()
    for _ in range(LONG):
        check_wanted()
    pytest.fail("it was made to its end")


def test_items_come_in_order_and_an_error_where_it_is_asked_for() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise ZeroDivisionError

    coming = ahead(items(), "numbers")
    assert (next(coming), next(coming)) == (1, 2)
    with pytest.raises(ZeroDivisionError):
        next(coming)


@pytest.mark.parametrize("layers", [1, 2], ids=["made ahead", "made ahead for what is made ahead"])
def test_who_leaves_does_not_wait_for_what_is_being_made(layers: int) -> None:
    begun = threading.Event()

    def items() -> Iterator[str]:
        yield "first"
        yield long_in_the_making(begun)

    coming = items()
    for number in range(layers):
        coming = ahead(coming, f"layer {number}")
    assert next(coming) == "first"
    assert begun.wait(10)
    coming.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("layer")]


def test_ctrl_c_while_the_next_item_is_waited_for_ends_it_at_once() -> None:
    def items() -> Iterator[str]:
        os.kill(os.getpid(), signal.SIGINT)
        yield long_in_the_making(threading.Event())

    with pytest.raises(KeyboardInterrupt):
        next(ahead(items(), "words"))


def test_outside_of_its_threads_everything_is_wanted() -> None:
    check_wanted()
