import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny products are many times faster without threads that wait for each other, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
