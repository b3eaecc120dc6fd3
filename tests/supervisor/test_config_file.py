# SPDX-License-Identifier: Apache-2.0
"""--config: each option is given by its long name, and a mistake in the file is reported in one
line."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from vfsd.supervisor.command_line import parse
from vfsd.supervisor.options import KEYS, Bare, Option
from vfsd.transport.errors import OperatorError

BASE: Final = ["--socket-path=/run/vm001.sock", "--shared-dir=/srv"]
# A value for each option that takes a value; tests write it as TOML and on the command line.
VALUES: Final[dict[str, Any]] = {
    "shared-dir": "/srv/a,b",
    "socket-path": "/run/x.sock",
    "fd": 7,
    "connect": "/run/vmm.sock",
    "keep-state": "/run/state",
    "socket-group": "kvm",
    "tag": "share",
    "request-queues": 3,
    "workers": 2,
    "queue-cpus": "0-3,8",
    "poll-us": 20,
    "thread-pool-size": 5,
    "rlimit-nofile": 4096,
    "inode-limit": 100_000,
    "sandbox": "chroot",
    "seccomp": "log",
    "modcaps": "+sys_admin:-mknod",
    "worker-faults": 3,
    "give-up-after": 5,
    "uid-map": ":0:1000:1:",
    "gid-map": ":0:1000:1:",
    "log-level": "trace",
    "cache": "none",
    "timeout": 2.5,
    "entry-timeout": 3,
    "attr-timeout": 0.25,
    "negative-timeout": 1,
    "posix-acl": "auto",
    "migration-mode": "file-handles",
    "migration-on-error": "guest-error",
    "lock-wait": "none",
    "inode-file-handles": "never",
    "xattrmap": ":ok:all:::",
    "security-label": "auto",
    "translate-uid": "map:0:1000:1",
    "translate-gid": "guest:0:1:2",
}


def written(folder: Path, text: str) -> str:
    path = folder / "vm.toml"
    path.write_text(text)
    return f"--config={path}"


def switches() -> list[tuple[str, bool]]:
    rows = [(key, row) for key, row in KEYS.items() if row.long[f"--{key}"] is not None]
    return [(key, value) for key, row in rows for value in (True, False) if has(row, value)]


def has(row: Option, value: bool) -> bool:
    return value or f"--no-{row.key}" in row.long


@pytest.mark.parametrize("key", sorted(VALUES))
def test_each_option_with_a_value(tmp_path: Path, key: str) -> None:
    value = VALUES[key]
    others = dict.fromkeys(("fd", "connect", "socket-path"), BASE[1:]) | {"shared-dir": BASE[:1]}
    base = others.get(key, BASE)
    from_file = parse([*base, written(tmp_path, f"{key} = {json.dumps(value)}")])
    assert from_file == parse([*base, f"--{key}={value}"])
    if base == BASE:
        assert from_file != parse(base)


@pytest.mark.parametrize(("key", "value"), switches())
def test_each_switch(tmp_path: Path, key: str, value: bool) -> None:
    from_file = parse([*BASE, written(tmp_path, f"{key} = {json.dumps(value)}")])
    assert from_file == parse([*BASE, f"--{key}" if value else f"--no-{key}"])


def test_every_option_is_tried_here() -> None:
    valued = {key for key, row in KEYS.items() if row.long[f"--{key}"] is None}
    alone = {key for key, row in KEYS.items() if isinstance(row.long[f"--{key}"], Bare)}
    assert set(VALUES) == valued | alone
    assert {key for key, _ in switches()} == KEYS.keys() - valued


def test_a_repeatable_option_takes_a_list(tmp_path: Path) -> None:
    text = 'uid-map = [":0:1000:1:", ":1:100000:65536:"]'
    options = parse([*BASE, written(tmp_path, text)])
    assert options.uid_map == ((0, 1000, 1), (1, 100000, 65536))


def test_the_command_line_wins(tmp_path: Path) -> None:
    config = written(tmp_path, 'cache = "always"\nxattr = true\nuid-map = [":0:5:1:"]\n'
                               'shared-dir = "/other"\nkeep-listening = true')  # fmt: skip
    for arguments in (["--cache=never", config], [config, "-o", "cache=none"]):
        options = parse(
            [*BASE, *arguments, "--no-xattr", "--uid-map=:0:7:2:", "--no-keep-listening"]
        )
        assert (options.cache, options.xattr, options.uid_map) == ("never", False, ((0, 7, 2),))
        assert (options.shared_dir, options.keep_listening) == ("/srv", False)


def test_a_later_file_wins_over_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    first = written(tmp_path, 'cache = "always"\nworkers = 3')
    second = written(tmp_path / "second", 'cache = "never"')
    options = parse([*BASE, first, second])
    assert (options.cache, options.workers) == ("never", 3)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("shraed-dir = 1", "unknown option shraed-dir; did you mean shared-dir?"),
        ("shared_dir = 1", "unknown option shared_dir; did you mean shared-dir?"),
        ("no-xattr = true", "unknown option no-xattr; write xattr = false"),
        ("help = true", "unknown option help; see --help"),
        ('config = "x"', "unknown option config;"),
        ("[fs]\ncache = 1", "unknown option fs; "),
        ("cache = 1\ncache = 2", "is not TOML: Cannot overwrite a value"),
        ("cache", "is not TOML: Expected '='"),
        ("workers = " + 5000 * "9", "is not TOML: "),
        ('cache = "some"', "'some' is not one of never, metadata, auto, always"),
        ("cache = true", "needs a value, not true or false"),
        ("cache = []", "must be text or a number"),
        ("uid-map = {}", "must be text or a number or a list of them"),
        ("xattr = 1", "must be true or false"),
        ('xattr = "yes"', "must be true or false"),
        ("timeout = nan", "'nan' is not a number of seconds"),
        ("workers = 2.0", "'2.0' is not a whole number"),
        ("workers = -1", "'-1' is not a whole number"),
        ("fd = 3", "fd in .*/vm.toml and --socket-path exclude each other"),
        ('posix-acl = "auto"\nxattr = false', "posix-acl in .* needs extended attributes, but xat"),
    ],
)  # fmt: skip
def test_each_mistake_has_its_own_message(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(OperatorError, match=complaint) as caught:
        parse([*BASE, written(tmp_path, text)])
    assert "vm.toml" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.status == 2


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file")):
        with pytest.raises(OperatorError, match=f"--config: '{path}': {reason}"):
            parse([*BASE, f"--config={path}"])
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(OperatorError, match="is not UTF-8"):
        parse([*BASE, f"--config={tmp_path}/binary"])
