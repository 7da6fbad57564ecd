"""The arithmetic of a GPU's shares, on a stand-in for torch.cuda: nothing of it has run on a GPU here."""

import pytest

from fedge.emulation.cuda import context_bytes, findings, hold_memory, mps_running, mps_share
from fedge.errors import LimitError

GiB = 1 << 30


class Fake:
    def __init__(self, total=16 * GiB, free=15 * GiB, reserved=0):
        self.total, self.free, self.reserved = total, free, reserved
        self.held = []
        self.begun = False

    def init(self):
        self.begun = True

    def mem_get_info(self, device):
        return self.free, self.total

    def memory_reserved(self, device):
        return self.reserved

    def set_per_process_memory_fraction(self, fraction, device):
        self.held.append((fraction, device))


def test_a_share_is_what_is_left_beside_the_context():
    fake = Fake(free=14 * GiB, reserved=GiB // 2)
    assert context_bytes(fake, 0, 15 * GiB) == GiB // 2
    assert fake.begun
    assert hold_memory(fake, 0, 4 * GiB, GiB // 2) == pytest.approx(3.5 / 16)
    assert fake.held == [(pytest.approx(3.5 / 16), 0)]


def test_what_cannot_be_held_is_refused():
    with pytest.raises(LimitError, match="context alone takes 512 MiB of the 256 MiB"):
        hold_memory(Fake(), 0, GiB // 4, GiB // 2)
    with pytest.raises(LimitError, match="has 16384 MiB, and 32768 MiB"):
        hold_memory(Fake(), 1, 32 * GiB, 0)


def test_a_share_of_multiprocessors_needs_the_daemon(tmp_path):
    where = {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}
    assert not mps_running(where)
    with pytest.raises(LimitError, match="daemon of MPS does not run"):
        mps_share(0.25, where)
    (tmp_path / "control").touch()
    assert mps_share(0.25, where) == {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "25"}
    assert mps_share(0.001, where) == {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "1"}
    with pytest.raises(ValueError, match="above 0"):
        mps_share(0, where)


def test_what_a_doctor_says_where_there_is_none():
    assert {row["detail"] for row in findings(0)} == {"no GPU here"}
    assert not any(row["works"] for row in findings(1))
