# SPDX-License-Identifier: Apache-2.0
"""The peers of `vfsd bench --compare`: scripts/bench-peers."""

import shlex
import sys
from collections.abc import Iterator, Sequence

from guest import packages
from vfsd.tool import commands


def peers() -> Iterator[str]:
    """NAME=COMMAND for each peer, in the form of --peer."""
    c, rust = packages.c_virtiofsd(), packages.rust_virtiofsd()
    c_argv = (*c.argv, "--socket-path={socket}", "-o", "source={dir}")
    rust_argv = (*rust.argv, "--socket-path={socket}", "--shared-dir={dir}")
    yield _peer(f"C {c.version}", c_argv)
    yield _peer(f"Rust {rust.version}", rust_argv)
    yield _peer(f"Rust {rust.version} no handles", (*rust_argv, "--inode-file-handles=never"))


def _peer(name: str, argv: Sequence[str]) -> str:
    return f"{name}={shlex.join(argv)}"


def main(arguments: Sequence[str]) -> int:
    try:
        options = [f"--peer={peer}" for peer in peers()]
    except packages.FetchError as error:
        print(f"scripts/bench-peers: cannot fetch the peers: {error}", file=sys.stderr)
        return 1
    return commands.main(["bench", "--compare", *options, *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
