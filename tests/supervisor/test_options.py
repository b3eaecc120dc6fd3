# SPDX-License-Identifier: Apache-2.0
"""The command line, with the spellings of both peers."""

import contextlib
import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd.supervisor.command_line import parse
from vfsd.supervisor.option_help import help_text, spellings
from vfsd.supervisor.options import (
    KEYS,
    OPTIONS,
    Options,
    cache_timeout,
    default_request_queues,
)
from vfsd.supervisor.pool_job import filesystem
from vfsd.transport.errors import OperatorError

BASE = ["--socket-path=/run/vm001.sock", "--shared-dir=/srv"]


def value_of(field: str, *arguments: str) -> object:
    return getattr(parse([*BASE, *arguments]), field)


@pytest.mark.parametrize(
    ("field", "value", "spellings"),
    [
        ("shared_dir", "/srv", [["-o", "source=/srv"], ["--shared-dir", "/srv"]]),
        ("cache", "never", [["--cache=never"], ["-o", "cache=none"], ["--cache", "NEVER"]]),
        ("cache", "always", [["-ocache=always"], ["-o=cache=always", "--"],
                             ["--cache=auto", "--cache=always"]]),
        ("timeout", 2.5, [["-o", "timeout=2.5"], ["--timeout=2.5"]]),
        ("sandbox", "chroot", [["--sandbox=chroot"], ["-o", "sandbox=chroot"]]),
        ("log_level", "debug", [["-d"], ["-o", "debug"], ["-o", "log_level=debug"],
                                ["-o", "loglevel=debug"], ["--log-level", "debug"],
                                ["--log-level=trace"]]),
        ("log_level", "off", [["--log-level=off"], ["-d", "--log-level=OFF"]]),
        ("log_level", "error", [["-o", "log_level=err"], ["--log-level=error"]]),
        ("xattr", True, [["--xattr"], ["-o", "xattr"], ["-o", "posix_acl"]]),
        ("xattr", False, [[], ["-o", "no_xattr"], ["--xattr", "--no-xattr"]]),
        ("posix_acl", "always", [["--posix-acl"], ["-o", "posix_acl"], ["--posix-acl=always"]]),
        ("posix_acl", "auto", [["--posix-acl=auto"], ["--posix-acl", "--posix-acl=AUTO"]]),
        ("posix_acl", "never", [[], ["--posix-acl=never"], ["-o", "posix_acl,no_posix_acl"],
                                ["--posix-acl", "--no-posix-acl"]]),
        ("xattr", True, [["--xattrmap=:ok:all:::"], ["-o", "security_label"]]),
        ("xattrmap", "=ok=all===", [["--xattrmap", "=ok=all==="], ["-o", "xattrmap==ok=all==="]]),
        ("xattrmap", ",map,,user.v,", [["--xattrmap=,map,,user.v,"],
                                         ["-o", r"xattrmap=\,map\,\,user.v\,"]]),
        ("security_label", "always", [["--security-label"], ["-o", "security_label"]]),
        ("security_label", "auto", [["--security-label=auto"]]),
        ("security_label", "never", [[], ["--no-security-label"], ["-o", "no_security_label"]]),
        ("readdirplus", True, [[], ["--readdirplus"], ["--cache=never", "-o", "readdirplus"]]),
        ("readdirplus", False, [["--no-readdirplus"], ["-o", "no_readdirplus"], ["--cache=never"]]),
        ("writeback", True, [["--writeback"], ["-o", "writeback"]]),
        ("allow_direct_io", True, [["--allow-direct-io"], ["-o", "allow_direct_io"]]),
        ("announce_submounts", True, [[], ["-o", "announce_submounts"], ["--announce-submounts"]]),
        ("announce_submounts", False, [["--no-announce-submounts"]]),
        ("idmapped_mounts", True, [[], ["--idmapped-mounts"]]),
        ("idmapped_mounts", False, [["--no-idmapped-mounts"]]),
        ("killpriv_v2", True, [[], ["--killpriv-v2"], ["-o", "killpriv_v2"]]),
        ("killpriv_v2", False, [["-o", "no_killpriv_v2"], ["--no-killpriv-v2"]]),
        ("flock", True, [["-o", "flock"], ["--flock"]]),
        ("posix_lock", True, [["-o", "posix_lock"], ["--posix-lock"]]),
        ("posix_lock", False, [[], ["-o", "posix_lock,no_posix_lock"]]),
        ("readonly", True, [["--readonly"]]),
        ("allow_mmap", True, [["--allow-mmap"]]),
        ("preserve_noatime", True, [["--preserve-noatime"]]),
        ("allow_project_ids", True, [["--allow-project-ids"]]),
        ("keep_listening", True, [["--keep-listening"]]),
        ("syslog", True, [["--syslog"], ["-f", "--syslog"], ["--daemonize"]]),
        ("syslog", False, [[], ["--daemonize", "--no-syslog"], ["--daemonize", "-f"]]),
        ("daemonize", True, [["--daemonize"], ["-f", "--daemonize"]]),
        ("daemonize", False, [[], ["-f"], ["--daemonize", "-f"], ["--no-daemonize"]]),
        ("queue_cpus", (), [[]]),
        ("queue_cpus", (0, 1, 2, 3, 8), [["--queue-cpus=0-3,8"], ["--queue-cpus", "0,1-3,8"]]),
        ("entry_timeout", 0.5, [["--entry-timeout=0.5"], ["-o", "entry_timeout=0.5"]]),
        ("attr_timeout", 3.0, [["--attr-timeout=3"], ["-o", "attr_timeout=3"]]),
        ("negative_timeout", 0.0, [[], ["--negative-timeout=0"]]),
        ("negative_timeout", 9.0, [["--negative-timeout=9"], ["-o", "negative_timeout=9"]]),
        ("lock_wait", 3600.0, [[]]),
        ("lock_wait", math.inf, [["--lock-wait=none"]]),
        ("lock_wait", 0.25, [["--lock-wait", "0.25"]]),
        ("userns", False, [[], ["--userns", "--no-userns"]]),
        ("userns", True, [["--userns"]]),
        ("uid_map", ((0, 1000, 1), (1, 100000, 65536)),
         [["--uid-map=:0:1000:1:", "--uid-map", ":1:100000:65536:"]]),
        ("gid_map", ((0, 7, 2),), [["--gid-map=,0,7,2,"]]),
        ("modcaps", "+sys_admin:-chown", [["--modcaps=+sys_admin:-chown"],
                                          ["-o", "modcaps=+SYS_ADMIN:-CHOWN"]]),
        ("poll_us", -1, [[], ["--poll-us=auto"]]),
        ("poll_us", 50, [["--poll-us", "50"]]),
        ("request_queues", 4, [["--request-queues=4"]]),
        ("request_queues", default_request_queues(), [[]]),
        ("workers", 4, [["--request-queues=4"], ["--workers=4"],
                        ["--workers=9", "--request-queues=4"]]),
        ("thread_pool_size", 64, [["--thread-pool-size=64"]]),
        ("rlimit_nofile", 0, [["--rlimit-nofile=0"]]),
        ("strict", True, [["--strict"]]),
        ("inode_limit", 1000, [["--inode-limit=1000"]]),
        ("seccomp", "log", [["--seccomp=log"]]),
        ("tag", "fs", [["--tag=fs"]]),
        ("translate_uid", (), [[]]),
        ("translate_uid", ("map:0:1000:1", "forbid-guest:1:9"),
         [["--translate-uid=map:0:1000:1", "--translate-uid", "forbid-guest:1:9"]]),
        ("translate_gid", ("guest:0:1:2",), [["--translate-gid=guest:0:1:2"]]),
        ("migration_mode", "find-paths", [[], ["--migration-mode", "find-paths"]]),
        ("migration_mode", "file-handles", [["--migration-mode=file-handles"]]),
        ("migration_on_error", "abort", [[], ["--migration-on-error=abort"]]),
        ("migration_on_error", "guest-error", [["--migration-on-error", "guest-error"]]),
        ("migration_verify_handles", True, [["--migration-verify-handles"]]),
        ("migration_confirm_paths", True, [["--migration-confirm-paths"]]),
    ],
)  # fmt: skip
def test_each_spelling_sets_the_option(
    field: str, value: object, spellings: list[list[str]]
) -> None:
    for arguments in spellings:
        assert value_of(field, *arguments) == value, arguments


@pytest.mark.parametrize(
    "arguments", [["--shared-dir=/a,b=c="], ["--shared-dir", "/a,b=c="], ["-osource=/a\\,b=c="]]
)
def test_a_path_may_have_the_separators_of_options(arguments: list[str]) -> None:
    assert parse(["--fd=3", *arguments]).shared_dir == "/a,b=c="


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--shraed-dir=/x"], "unknown option --shraed-dir; did you mean --shared-dir?"),
        (["-o", "sorce=/"], "unknown option -o sorce; did you mean -o source?"),
        (["-o", "no_xatr"], "unknown option -o no_xatr; did you mean -o no_xattr?"),
        (["--qqqq"], "unknown option --qqqq; see --help"),
        (["--xatrs"], "unknown option --xatrs; did you mean --xattr?"),
        (["--xattrmap=:map:user.:"], "--xattrmap: rule 1, column 12: the prefix does not end with"),
        (
            ["--xattrmap=:ok:all:::\n:no:all:::"],
            "--xattrmap: rule 2, line 2, column 2: the type 'no'",
        ),
        (
            ["--xattrmap=:ok:server:::"],
            "rule 2, column 14: a last rule is missing, for every other",
        ),
        (["-o", "xattrmap=,map,,user.,"], "-o xattrmap: "),
        (
            ["--xattrmap=:ok:all:::", "-o", "no_xattr"],
            "--xattrmap needs .* but -o no_xattr is given",
        ),
        (["-o", "security_label,no_xattr"], "-o security_label needs .* but -o no_xattr is given"),
        (["--shared-dir=/other"], "--shared-dir and --shared-dir name different paths"),
        (["-o", "source=/other"], "--shared-dir and -o source name different paths"),
        (["--fd=3"], "--fd and --socket-path exclude each other"),
        (["--connect=/run/vm"], "--connect and --socket-path exclude each other"),
        (
            ["--posix-acl", "-o", "no_xattr"],
            "--posix-acl needs extended attributes, but -o no_xatt",
        ),
        (["--cache"], "--cache needs a value"),
        (["-o"], "-o needs a value"),
        (["--cache=some"], "--cache: 'some' is not one of never, metadata, auto, always"),
        (["--xattr=yes"], "--xattr takes no value, but 'yes' was given"),
        (["/srv"], "unexpected argument '/srv'"),
        (["--thread-pool-size=many"], "--thread-pool-size: 'many' is not a whole number from 0 to"),
        (["--request-queues=65"], "--request-queues: '65' is not a whole number from 1 to 64"),
        (["--request-queues=0"], "--request-queues: '0' is not"),
        (["-o", "timeout=-1"], "-o timeout: '-1' is not a number of seconds"),
        (["--timeout=nan"], "'nan' is not a number of seconds"),
        (["--tag="], "--tag: '' is not 1 to 36 bytes long"),
        (["--tag=" + 37 * "x"], "is not 1 to 36 bytes long"),
        (["--modcaps=sys_admin"], r"--modcaps: 'sys_admin' is not a list like \+sys_admin:-chown"),
        (["--poll-us=-2"], "--poll-us: '-2' is not a whole number"),
        (["--shared-dir="], "--shared-dir: '' is not a path"),
        (["--translate-uid=map:0:1"], "--translate-uid: 'map:0:1' is not map:FROM:TO:COUNT"),
        (
            ["--translate-gid=map:0:9:5", "--translate-gid=guest:4:0:1"],
            "--translate-gid: 'map:0:9:5' and 'guest:4:0:1' overlap: both apply to guest id 4",
        ),
        (
            ["-o", "posix_acl", "--translate-gid=map:0:9:5"],
            "-o posix_acl and --translate-gid exclude each other, since ids inside ACLs are not",
        ),
        (["--migration-mode=copy"], "--migration-mode: 'copy' is not one of find-paths, file-"),
        (["--migration-on-error=hang"], "'hang' is not one of abort, guest-error"),
        (["--migration-verify-handles=1"], "--migration-verify-handles takes no value"),
        (
            ["--migration-mode=file-handles", "--migration-confirm-paths"],
            "--migration-confirm-paths is for paths, but --migration-mode says file-handles",
        ),
        (["--rlimit-nofile=1e6"], "--rlimit-nofile: '1e6' is not a whole number"),
    ],
)
def test_each_mistake_has_its_own_message(arguments: list[str], complaint: str) -> None:
    with pytest.raises(OperatorError, match=complaint) as caught:
        parse([*BASE, *arguments])
    assert caught.value.status == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "no directory to share; give --shared-dir=DIR or -o source=DIR"),
        (["--shared-dir=/x"], "no socket; give --socket-path=PATH, --fd=N or --connect=PATH"),
        (["--connect=/y", "--socket-group=kvm", "--shared-dir=/x"], "--connect and --socket-group"),
        (["--connect=/y", "--fd=3", "--shared-dir=/x"], "--connect and --fd exclude"),
        (["--fd=3", "--socket-group=kvm", "--shared-dir=/x"], "--fd and --socket-group exclude"),
    ],
)
def test_what_is_missing_is_named(arguments: list[str], complaint: str) -> None:
    with pytest.raises(OperatorError, match=complaint):
        parse(arguments)


@given(st.lists(st.text(max_size=20), max_size=5))
def test_any_command_line_is_options_or_one_line(arguments: list[str]) -> None:
    with contextlib.suppress(OperatorError):
        assert parse(arguments).given is not None


@pytest.mark.parametrize("mode", ["never", "metadata", "auto", "always"])
def test_the_cache_mode_decides_the_timeout_unless_one_is_given(mode: str) -> None:
    expected = {"never": 0.0, "metadata": 86400.0, "auto": 1.0, "always": 86400.0}[mode]
    assert cache_timeout(parse([*BASE, f"--cache={mode}"])) == expected
    assert cache_timeout(parse([*BASE, f"--cache={mode}", "--timeout=7"])) == 7.0


def test_libvirt_starts_it_both_ways() -> None:
    old = parse(["--fd=28", "-o", "source=/srv,cache=always,sandbox=chroot,xattr,flock,posix_lock"])
    assert (old.fd, old.cache, old.sandbox) == (28, "always", "chroot")
    assert (old.xattr, old.flock, old.posix_lock) == (True, True, True)
    new = parse(["--fd=28", "--shared-dir=/srv", "--thread-pool-size=4", "--log-level", "debug"])
    assert (new.shared_dir, new.thread_pool_size, new.log_level) == ("/srv", 4, "debug")


def test_every_row_sets_a_field_and_is_in_the_help() -> None:
    names = {field.name for field in fields(Options)} | {"config"}
    text = help_text()
    for row in OPTIONS:
        assert row.field in names
        for spelling in [*row.long, *(f"-o {name}" for name in row.short_o)]:
            assert spelling in text


def test_the_job_says_what_the_options_say() -> None:
    fs = filesystem(parse([*BASE, "-o", "cache=none,posix_acl,flock", "--readonly"]))
    assert fs.cache == "never"
    assert (fs.entry_timeout, fs.attr_timeout) == (0.0, 0.0)
    assert (fs.xattr, fs.posix_acl, fs.flock) == (True, "always", True)
    assert (fs.readonly, fs.readdirplus, fs.posix_lock) == (True, False, False)


def test_the_job_has_the_rules_of_ids() -> None:
    rules = ["map:0:1000:1", "forbid-guest:1:9"]
    options = parse([*BASE, "--no-posix-acl", *(f"--translate-uid={rule}" for rule in rules)])
    assert list(filesystem(options).translate_uid) == rules
    assert list(filesystem(options).translate_gid) == []


def test_a_backslash_quotes_as_it_does_for_the_c_virtiofsd() -> None:
    options = parse(["--fd=3", "-o", r"source=/a\,b\\c\040d,xattr"])
    assert (options.shared_dir, options.xattr) == (r"/a,b\c d", True)


def test_parts_of_the_timeout_win_over_it() -> None:
    fs = filesystem(parse([*BASE, "--timeout=7", "--attr-timeout=2"]))
    assert (fs.entry_timeout, fs.attr_timeout) == (7.0, 2.0)
    fs = filesystem(parse([*BASE, "--cache=always", "--entry-timeout=0"]))
    assert (fs.entry_timeout, fs.attr_timeout) == (0.0, 86400.0)


def test_every_row_differs_from_the_next() -> None:
    spelled = [name for row in OPTIONS for name, _ in spellings(row)]
    assert len(spelled) == len(set(spelled))
    assert all(row.key is None or row.help for row in OPTIONS)
    assert len({row.field for row in OPTIONS if row.key}) == len(KEYS)
