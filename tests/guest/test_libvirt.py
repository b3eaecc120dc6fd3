# SPDX-License-Identifier: Apache-2.0
"""libvirt starts our daemon for a domain, or connects the domain to a daemon that runs already."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from guest import daemon, libvirt

from tests.conftest import require

pytestmark = pytest.mark.guest

BINARY = str(daemon.PROJECT / ".venv/bin/virtiofsd")


@pytest.fixture(scope="module", params=["its own daemon", "an external socket"])
def domain(request: pytest.FixtureRequest) -> Iterator[tuple[libvirt.Domain, Path]]:
    """A libvirt domain whose guest has booted, and the shared directory on the host."""
    for program in ("libvirtd", "virsh", "qemu-system-x86_64"):
        require(program)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vfsd-libvirt-")))
        folder.chmod(0o755)
        share = folder / "share"
        share.mkdir()
        (share / "hello").write_text("from the host\n")
        if request.param == "an external socket":
            back_end = stack.enter_context(daemon.serve(daemon.command(""), share, folder))
            element = libvirt.external_daemon(back_end.socket)
        else:
            element = libvirt.own_daemon(BINARY, share)
        running = stack.enter_context(libvirt.host(element))
        running.start()
        running.mount(libvirt.TAG)
        yield running, share


def test_the_guest_works_in_the_share(domain: tuple[libvirt.Domain, Path]) -> None:
    guest, share = domain
    assert guest.check("cat hello") == "from the host\n"
    guest.check("mkdir d; for i in $(seq 200); do echo $i >d/$i; done; mv d e; cp e/7 seven; sync")
    assert (share / "seven").read_text() == "7\n"
    assert len(list((share / "e").iterdir())) == 200
    guest.check("rm -r e; [ ! -e e ]")
    assert not (share / "e").exists()


@pytest.mark.parametrize("domain", ["its own daemon"], indirect=True)
def test_a_reset_of_the_domain_keeps_the_share(domain: tuple[libvirt.Domain, Path]) -> None:
    guest, _ = domain
    guest.virsh("reset", libvirt.DOMAIN)
    guest.wait_ready(libvirt.START_SECONDS)
    guest.mount(libvirt.TAG)
    assert guest.check("cat hello") == "from the host\n"


def test_the_domain_ends_and_with_it_the_daemon(domain: tuple[libvirt.Domain, Path]) -> None:
    guest, _ = domain
    assert guest.virsh("domstate", libvirt.DOMAIN) == "running"
    guest.virsh("destroy", libvirt.DOMAIN)
    assert guest.virsh("list", "--name") == ""
