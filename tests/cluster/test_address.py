"""Mistakes in an address are named before anything is started."""

import socket
import subprocess
import sys

import pytest

from ponder.cluster.address import check_address, joined
from ponder.core.errors import BadField, PonderError


@pytest.mark.parametrize("address", ["", "locally", "10.0.0.1", "10.0.0.1:0", "10.0.0.1:99999", "ray://10.0.0.1:10001", "a b:1"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(BadField, match="'local', 'auto' or HOST:PORT"):
        check_address(address)


def test_an_address_where_nobody_answers():
    pytest.importorskip("ray", reason="Ray is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(PonderError, match=f"nobody answers there within 5 s.*ray start --head --port={port}"), joined(f"127.0.0.1:{port}"):
        raise AssertionError("joined a cluster that is not there")


@pytest.mark.parametrize("options, says", [(["--ray", "local"], "pip install 'ponder[ray]'"), (["--replicas", "2"], "only with --ray")])
def test_without_ray_the_mend_is_named(options, says, tmp_path):
    script = "import sys; sys.modules['ray'] = None\nfrom ponder.cli.main import run\nrun()"
    command = [sys.executable, "-c", script, "compare", "--task", "rg:chain_sum", "--n", "1", "--out", str(tmp_path / "out"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr and not (tmp_path / "out").exists()
