"""Recognising errors of collectives."""

import pytest

from adaftr_fast.distributed.ranks import is_of_a_collective


@pytest.mark.parametrize(
    ("message", "of_gloo"),
    [
        ("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:4242", True),
        ("[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 3000ms for recv", True),
        ("[enforce fail at /pytorch/third_party/gloo/gloo/context.cc:51] timeout >= 0. ", True),
        ("Gloo connectFullMesh failed with [../third_party/gloo/gloo/transport/tcp/pair.cc:144] no error", True),
        ("cannot open /data/gloo/x: no such file", False),
        ("cannot parse /home/gloo/loader.cc", False),
    ],
)
def test_only_errors_raised_by_gloo_are_collective_errors(message, of_gloo):
    assert is_of_a_collective(RuntimeError(message)) == of_gloo
