"""Memory does not grow with the number of answers, also of those nobody waited for."""

import concurrent.futures
import gc
import os
import time

import psutil
import pytest
from tests.serve.conftest import CHAT, question
from tests.soak import record

REQUESTS = int(os.environ.get("SOAK_REQUESTS", "1000"))


@pytest.mark.soak
def test_memory_is_flat_over_a_thousand_requests_of_fifty_clients_half_of_which_leave(serve, endless):
    process, sizes = psutil.Process(), []

    def come(number):
        leaves = number % 2
        asked = question(max_tokens=200 if leaves else 16, stream=True)
        with live.client() as client, client.stream("POST", CHAT, json=asked) as response:
            lines = response.iter_lines()
            return next(lines) and None if leaves else list(lines)[-2]

    with serve(endless) as live, concurrent.futures.ThreadPoolExecutor(50) as pool:
        start = time.monotonic()
        for begun in range(0, REQUESTS, 50):
            answers = list(pool.map(come, range(begun, begun + 50)))
            assert answers[::2] == ["data: [DONE]"] * 25
            with live.client() as client:
                while live.service.open or live.service.worker.living:
                    client.get("/health")
            gc.collect()
            sizes.append(process.memory_info().rss)
        seconds = time.monotonic() - start
        ends = {end: count for (_, end), count in live.service.metrics.answers.items()}
    warm = sizes[len(sizes) // 4]  # allocators and caches have what they want by then
    assert sum(ends.values()) == REQUESTS
    assert sizes[-1] - warm < 10e6
    assert ends["left"] > REQUESTS / 4, "most of those that leave do so before their answers end"
    megabytes = {"when_warm": round(warm / 1e6, 1), "at_the_end": round(sizes[-1] / 1e6, 1)}
    record("clients of a server", requests=REQUESTS, at_a_time=50, left_midway=ends["left"], stayed_and_got_all=REQUESTS // 2,
           megabytes=megabytes, seconds=round(seconds))  # fmt: skip
