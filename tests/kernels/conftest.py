"""Fixtures of the kernel tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _fixed_random_state():
    torch.manual_seed(0)
