# SPDX-License-Identifier: Apache-2.0
"""The options of virtiofsd: one table, from which command line, file, help and manual are made.

QEMU's C virtiofsd takes most options as `-o name=value,name,no_name`, the Rust one as `--name
value`. A row of OPTIONS has both, so either command line starts this daemon (command_line.py); the
first long spelling of a row is its key in a --config file (config_file.py). What is not in the
table is refused. No option is read and then ignored, except for the options of migration: tools
pass these options with every share, and no VMM is offered a migration.

To add an option, write a row of OPTIONS, a field, and the code that acts upon the option. The field
is one of Switches (transport/option_types.py) for a switch that workers act upon, and one of
Options otherwise. docs/hacking.md has the complete list. `scripts/docs.py` writes the documents.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from vfsd.supervisor import option_values as read
from vfsd.transport.option_types import (
    CACHE_MODES,
    FAULTS_MAX,
    HANDLE_MODES,
    INODES_MAX,
    NEGOTIATION_MODES,
    POLL_AUTO,
    REQUEST_QUEUES_MAX,
    SANDBOXES,
    SECCOMP_ACTIONS,
    THREADS_MAX,
    IdRange,
    Switches,
)

MAX_FILES: Final = 1 << 30
RLIMIT_DEFAULT: Final = -1
DEATHS_MAX: Final = 1000
LOCK_WAIT_SECONDS: Final = 3600.0
NO_MIGRATION: Final = "accepted because tools pass it; there is no migration yet"
MIGRATION: Final = (
    "migration_mode", "migration_on_error", "migration_verify_handles", "migration_confirm_paths",
)  # fmt: skip


@dataclass(frozen=True)
class Options(Switches):
    """The checked options. None: the option is not given, and its default depends on other options
    or on the machine. The inherited Switches are passed on to the workers unchanged."""

    shared_dir: str | None = None
    socket_path: str | None = None
    fd: int | None = None
    connect: str | None = None
    socket_group: str | None = None
    tag: str | None = None
    keep_listening: bool = False
    keep_state: str = ""  # "": nowhere
    daemonize: bool = False
    request_queues: int = 0  # 0: default_request_queues()
    workers: int = 0  # 0: one per request queue
    queue_cpus: tuple[int, ...] = ()
    poll_us: int = POLL_AUTO
    thread_pool_size: int = 16
    rlimit_nofile: int = RLIMIT_DEFAULT  # 0: leave the limit as it is
    strict: bool = False
    inode_limit: int = 0  # 0: what memory allows (inode_limit.py)
    sandbox: str = "namespace"
    seccomp: str = "kill"
    modcaps: str = ""
    userns: bool = False
    worker_faults: int = 10
    give_up_after: int = 0  # 0: never
    uid_map: tuple[IdRange, ...] = ()
    gid_map: tuple[IdRange, ...] = ()
    log_level: str = "info"
    syslog: bool | None = None
    cache: str = "auto"
    timeout: float | None = None
    entry_timeout: float | None = None
    attr_timeout: float | None = None
    negative_timeout: float = 0.0
    lock_wait: float = LOCK_WAIT_SECONDS
    xattr: bool | None = None
    xattrmap: str = ""  # the text of the rules; "": no rules
    posix_acl: str = "never"
    security_label: str = "never"
    readdirplus: bool | None = None
    inode_file_handles: str = "auto"
    translate_uid: tuple[str, ...] = ()
    translate_gid: tuple[str, ...] = ()
    migration_mode: str = "find-paths"
    migration_on_error: str = "abort"
    migration_verify_handles: bool = False
    migration_confirm_paths: bool = False
    action: str = "serve"  # or "help", "version", "capabilities"
    given: dict[str, str] = field(default_factory=dict, compare=False)  # field -> its spelling


@dataclass(frozen=True)
class Bare:
    """The value of a spelling that is given without "=VALUE", if it may also have "=VALUE"."""

    value: Any


@dataclass(frozen=True)
class Option:
    """One option.

    `long`, `short_o`: each spelling with the value that it sets; None if the spelling needs a
    value, Bare if it may have a value. `help`: one line. `default`: the default in the operator's
    words. `hazard`: what can go wrong with the option, or what else an operator must know.
    """

    field: str
    long: dict[str, Any]
    short_o: dict[str, Any]
    help: str
    metavar: str = ""
    read: Callable[[str], Any] = str
    default: str = ""
    hazard: str = ""
    repeatable: bool = False

    @property
    def key(self) -> str | None:
        """The name of the option in a --config file; None if no file may have the option."""
        name = next(iter(self.long))
        if self.field in ("action", "config") or not name.startswith("--"):
            return None
        return name[2:]


def _long_switch(name: str, help_text: str, hazard: str = "", default: str = "off") -> Option:
    """An on-off option that has no -o form."""
    long = {f"--{name}": True, f"--no-{name}": False}
    return Option(name.replace("-", "_"), long, {}, help_text, default=default, hazard=hazard)


def _switch(name: str, help_text: str, default: str = "off", hazard: str = "") -> Option:
    """An on-off option with four spellings: --name, --no-name, -o name and -o no_name."""
    row = _long_switch(name, help_text, hazard, default)
    return replace(row, short_o={row.field: True, f"no_{row.field}": False})


def _seconds(name: str, help_text: str, default: str, hazard: str = "") -> Option:
    o = name.replace("-", "_")
    return Option(
        o, {f"--{name}": None}, {o: None}, help_text, "SECONDS", read.seconds, default, hazard
    )


OPTIONS: Final = (
    Option("shared_dir", {"--shared-dir": None}, {"source": None},
           "directory to share", "DIR", read.path, "required",
           "a file is refused; so is a symbolic link, unless a / follows its name"),
    Option("socket_path", {"--socket-path": None, "--socket": None}, {},
           "unix socket to listen on for the VMM", "PATH", read.path,
           "required, or --fd or --connect",
           "a socket file without a listener is replaced; PATH.pid beside it has the pid of the"
           " daemon, and a lock that the daemon holds, as with the Rust virtiofsd; both files are"
           " removed at the end"),
    Option("fd", {"--fd": None}, {},
           "inherited unix socket, listening or connected, in the place of --socket-path", "N",
           read.number(0, 1 << 20),
           hazard="not together with --socket-path, --socket-group or --connect"),
    Option("connect", {"--connect": None}, {},
           "unix socket of a VMM that listens, in the place of --socket-path", "PATH", read.path,
           hazard="the daemon tries again until the VMM is there, also after the VMM went away if"
                  " --keep-listening is given; there is no pid file"),
    Option("socket_group", {"--socket-group": None}, {},
           "group that may connect to the socket", "GROUP", default="nobody but the owner",
           hazard="a process that may connect can act as the guest"),
    Option("tag", {"--tag": None}, {},
           "tag of the share, for a VMM that reads it from its back-end", "TAG", read.tag,
           "the VMM's", "needed by crosvm; QEMU sets the tag itself, and QEMU 7.1 to 8.0 crash if"
                        " it is also given here"),
    _long_switch("keep-listening", "accept the next VMM when one goes away",
                 "without it the daemon ends with its VMM, as both peers do and as tools expect;"
                 " Cloud Hypervisor disconnects at each reboot of the guest, so its guest loses"
                 " the share then"),
    Option("keep_state", {"--keep-state": None}, {},
           "keep the VM's connection and the share's state outside of the daemon, so that the VM"
           " goes on when the daemon is started again: `systemd`, or a folder",
           "WHERE", read.state_place, "off",
           "with `systemd` the unit needs FileDescriptorStoreMax= and NotifyAccess=all; with a"
           " folder, a small process keeps the state, and has its sockets there"),
    Option("daemonize", {"--daemonize": True, "--no-daemonize": False, "-f": False}, {},
           "go to the background once the socket listens; -f: stay in the foreground",
           default="off",
           hazard="the log then goes to syslog; with --no-syslog it goes to stderr, which"
                  " otherwise becomes /dev/null"),
    Option("config", {"--config": None}, {},
           "read options from a TOML file", "FILE", read.path,
           hazard="the command line wins over the file"),
    Option("request_queues", {"--request-queues": None}, {},
           "request queues offered to the VMM", "N", read.number(1, REQUEST_QUEUES_MAX),
           "the larger of 8 and the CPUs, at most 64"),
    Option("workers", {"--workers": None}, {},
           "maximum number of worker processes", "N", read.number(1, REQUEST_QUEUES_MAX),
           "one per request queue that the VMM enables",
           "with fewer workers than queues, a worker serves several queues"),
    Option("queue_cpus", {"--queue-cpus": None}, {},
           "worker i runs on the i-th of these CPUs", "LIST", read.cpus, "anywhere",
           "a list like 0-3,8; with more workers than CPUs the list begins again; a vCPU that"
           " needs the same CPU has to share it"),
    Option("poll_us", {"--poll-us": None}, {},
           "microseconds for which an idle worker polls its queues before it sleeps", "auto|N",
           read.poll, "auto", "a worker yields the CPU between polls; with a number it polls for"
                              " that long even when polling does not pay; 0: never poll"),
    Option("thread_pool_size", {"--thread-pool-size": None}, {},
           "requests that may wait for storage at the same time, in each worker", "N",
           read.number(0, THREADS_MAX), "16",
           "reads with O_DIRECT need no thread; with 0 a request that blocks stalls its whole"
           " queue, which is the default of both peers"),
    Option("rlimit_nofile", {"--rlimit-nofile": None}, {},
           "maximum number of open files", "N", read.number(0, MAX_FILES),
           "100000, or what is allowed",
           "every file that the guest knows is an open file with --inode-file-handles=never,"
           " --userns or --sandbox=none, for a daemon that is not root, or on a file system without"
           " lasting handles (FUSE), so the default is 1000000 there;"
           " the default leaves 16384 of the host's fs.file-max to others; a number beyond the"
           " hard limit becomes that limit, with a warning; 0: leave the limit as it is"),
    Option("inode_limit", {"--inode-limit": None}, {},
           "maximum number of files that the guest may know at a time", "N",
           read.number(0, INODES_MAX), "0: what memory allows",
           "the limits of control groups also bound this number, and so does the memory of the"
           " host: without the option a quarter of that memory, with it all of it; at the limit"
           " the guest gets ENFILE for files that it does not know yet"),
    _long_switch("strict", "refuse to start if --rlimit-nofile is more than the hard limit allows"),
    Option("sandbox", {"--sandbox": None}, {"sandbox": None},
           "how the workers are confined: namespace, chroot or none", "MODE",
           read.choice(*SANDBOXES), "namespace",
           "the mode chroot needs CAP_SYS_ADMIN and Landlock (Linux 5.19); with none, a worker that"
           " was taken over has much of what the daemon's user has on the host: see"
           " SANDBOX in virtiofsd(1)"),
    Option("seccomp", {"--seccomp": None}, {},
           "what a forbidden system call does: kill, log, trap; none: no filter", "ACTION",
           read.choice(*SECCOMP_ACTIONS), "kill",
           "also for keeper and supervisor; with log or none, no call is stopped"),
    Option("modcaps", {"--modcaps": None}, {"modcaps": None},
           "capabilities of the workers to add and remove", "+NAME:-NAME", read.modcaps,
           hazard="an attacker who has taken over a worker has each capability that is added"),
    _long_switch("userns", "give the sandbox its own user namespace also if root starts the"
                           " daemon",
                 "needs --sandbox=namespace; then there are no device nodes, file handles,"
                 " trusted.* xattrs and host-wide file capabilities", "off; on if not root"),
    Option("worker_faults", {"--worker-faults": None}, {},
           "faults of workers within an hour after which a new worker is created; 0: any number",
           "N", read.number(0, FAULTS_MAX), "10",
           "a fault is a death by SIGSEGV or a similar signal; after more faults, or after a"
           " forbidden system call, the queues of that worker stop until the VMM connects again"),
    Option("give_up_after", {"--give-up-after": None}, {},
           "deaths of the supervisor, deaths of a pool without a VMM, or failed attempts to replace"
           " a lost sandbox, within 10 seconds after which the daemon ends", "N",
           read.number(1, DEATHS_MAX), "never",
           "without it the daemon starts them again for ever, with pauses of up to 2 seconds;"
           " give it where a service manager does better, for example on another host"),
    Option("uid_map", {"--uid-map": None}, {},
           "users of the host that exist in the sandbox",
           ":INSIDE:OUTSIDE:COUNT:", read.id_range, "our own, as 0; with root, all",
           "needs --sandbox=namespace and a range for INSIDE 0; implies --userns; if not started"
           " by root, needs newuidmap (package uidmap) and subuid(5)",
           repeatable=True),
    Option("gid_map", {"--gid-map": None}, {},
           "groups of the host that exist in the sandbox", ":INSIDE:OUTSIDE:COUNT:", read.id_range,
           "our own, as 0; with root, all",
           "as for --uid-map, with newgidmap and subgid(5)", repeatable=True),
    Option("log_level", {"--log-level": None, "-d": "debug"},
           {"log_level": None, "loglevel": None, "debug": "debug"},
           "how much to log: error, warn, info or debug; off: nothing; -d: debug", "LEVEL",
           read.choice("off", "error", "warn", "info", "debug", err="error", warning="warn",
                       trace="debug"),
           "info", "other names are err, warning, and trace for debug; RUST_LOG has no effect."
                   " Lines that repeat are left out and counted: a guest can write a few KiB a"
                   " minute, thirty times as much at debug"),
    _long_switch("syslog", "log to syslog instead of stderr",
                "lines are lost while there is no syslog daemon", "off; on with --daemonize"),
    Option("cache", {"--cache": None}, {"cache": None},
           "what the guest may cache: never (or none), metadata, auto, always", "MODE",
           read.choice(*CACHE_MODES, none="never"), "auto",
           "with metadata and always, the guest may see changes of the host or of another guest a"
           " day late; with never and metadata, shared mmap needs --allow-mmap"),
    _seconds("timeout", "how long the guest may trust names and attributes",
             "never: 0, auto: 1, metadata and always: 86400"),
    _seconds("entry-timeout", "how long the guest may trust names", "--timeout"),
    _seconds("attr-timeout", "how long the guest may trust attributes", "--timeout"),
    _seconds("negative-timeout", "how long the guest may trust that a name does not exist", "0",
             "files that the host or another guest creates may appear with that delay"),
    Option("inode_file_handles", {"--inode-file-handles": None}, {"inode_file_handles": None},
           "hold inodes by file handles if there are too few fds: auto, never, signed, prefer (or"
           " fallback), mandatory",
           "MODE",
           read.choice(*HANDLE_MODES, fallback="prefer"), "auto",
           "with prefer and mandatory, an attacker who has taken over a worker can open every"
           " file of the same file system; see FILE HANDLES in virtiofsd(1)"),
    _switch("xattr", "serve extended attributes", "off; on with the next three"),
    Option("xattrmap", {"--xattrmap": None}, {"xattrmap": None},
           "names on the host of the guest's extended attributes", "RULES", read.xattrmap,
           "the same", "see EXTENDED ATTRIBUTES in virtiofsd(1)"),
    Option("posix_acl",
           {"--posix-acl": Bare("always"), "--no-posix-acl": "never"},
           {"posix_acl": "always", "no_posix_acl": "never"},
           "POSIX ACLs: never, auto (if the guest supports them) or always; --posix-acl alone is"
           " always",
           "MODE", read.choice(*NEGOTIATION_MODES), "never",
           "turns --xattr on; with always, a guest that does not support ACLs cannot mount; with"
           " never, the attributes are hidden"),
    Option("security_label",
           {"--security-label": Bare("always"), "--no-security-label": "never"},
           {"security_label": "always", "no_security_label": "never"},
           "new files have the guest's security label from the beginning: never, auto (if the"
           " guest sends labels) or always", "MODE", read.choice(*NEGOTIATION_MODES),
           "never",
           "needs --modcaps=+sys_admin unless --xattrmap renames the attribute; with always, a"
           " guest that does not send labels cannot mount"),
    _switch("readdirplus", "list names and attributes in one request", "on; off with --cache=never",
            "guests other than Linux, such as UEFI firmware, have it even if it is off"),
    _switch("writeback", "the guest may delay writes (write-back cache)", "off",
            "what others write into the same files may be lost or stay unseen; so may writes that"
            " the guest delays. The guest cannot ask where files have holes, and every file has"
            " at least one block"),
    _switch("allow-direct-io", "pass O_DIRECT on to the host file system", "off",
            "a file system without O_DIRECT then fails to open files"),
    _switch("allow-mmap", "allow shared mmap of files that the guest does not cache", "off",
            "for --cache=never and metadata; needs Linux 6.6 in the guest"),
    _switch("announce-submounts", "show mount points in the share as mount points in the guest",
            "on",
            "if off, or if the guest does not support them, files of other mounts have inode"
            " numbers that the daemon makes"),
    _switch("killpriv-v2", "let the host clear set-id bits and capabilities when a file is"
                           " written",
            "on, if the guest can",
            "if off, with --xattr, the guest asks for a capability before each write"),
    _long_switch("idmapped-mounts", "let the guest mount the share with mapped ids",
                "Linux 6.12 and later then do not name the user who changes a file: see SET-ID"
                " BITS in virtiofsd(1)",
                "on, if the guest can; off for a share on NFS, FUSE, 9p or CIFS"),
    _switch("flock", "flock() locks hold also on the host and for other guests", "off",
            "a process that waits for a lock cannot be interrupted, see --lock-wait"),
    _switch("posix-lock", "fcntl() locks hold also on the host and for other guests", "off",
            "as for --flock"),
    Option("lock_wait", {"--lock-wait": None}, {},
           "how long a process may wait for such a lock; none: without a limit", "SECONDS|none",
           read.seconds_or_none, "3600", "after that time the process gets EDEADLK; see LOCKS in"
                                         " virtiofsd(1)"),
    _switch("readonly", "refuse every change with EROFS", "off", "reading a file still sets its"
                                                              " access time"),
    _long_switch("forbid-symlinks", "refuse to create symbolic links (EPERM)",
                "for shares in which programs of the host follow links; links that are there"
                " already are served, and the guest may rename them"),
    _long_switch("allow-project-ids", "let the guest change project ids of files (chattr -p, +P)",
                "the guest can then take files out of the project whose quota limits it"),
    _long_switch("preserve-noatime", "pass O_NOATIME on to the host file system",
                "a daemon that is not root may use O_NOATIME on its own files only, and gets"
                " EPERM for others"),
    Option("translate_uid", {"--translate-uid": None}, {},
           "translate user ids between guest and host", "RULE", read.id_rule, "the same",
           "guest:G:H:N, host:H:G:N, map:G:H:N (both ways), squash-guest:G:H:N, squash-host:H:G:N"
           " or forbid-guest:G:N; not with --posix-acl; see IDS in virtiofsd(1)", repeatable=True),
    Option("translate_gid", {"--translate-gid": None}, {},
           "translate group ids between guest and host", "RULE", read.id_rule, "the same",
           "as for --translate-uid",
           repeatable=True),
    Option("migration_mode", {"--migration-mode": None}, {},
           "how a migration would describe inodes: find-paths or file-handles", "MODE",
           read.choice("find-paths", "file-handles"), "find-paths", NO_MIGRATION),
    Option("migration_on_error", {"--migration-on-error": None}, {},
           "what a migration would do where an inode is lost: abort or guest-error", "ACTION",
           read.choice("abort", "guest-error"), "abort", NO_MIGRATION),
    _long_switch("migration-verify-handles", "whether a migration would compare file handles",
                 NO_MIGRATION),
    _long_switch("migration-confirm-paths", "whether a migration would look at paths again",
                 NO_MIGRATION),
    Option("action", {"--print-capabilities": "capabilities"}, {},
           "print what this program can do as JSON, for libvirt"),
    Option("action", {"-h": "help", "--help": "help"}, {}, "print this text"),
    Option("action", {"-V": "version", "--version": "version"}, {}, "print the version"),
)  # fmt: skip

NEED_XATTR: Final = ("posix_acl", "security_label", "xattrmap")  # these turn xattr on
KEYS: Final = {row.key: row for row in OPTIONS if row.key is not None}


def default_request_queues() -> int:
    return min(REQUEST_QUEUES_MAX, max(8, os.cpu_count() or 1))


CACHE_SECONDS: Final = {"never": 0.0, "auto": 1.0, "metadata": 86400.0, "always": 86400.0}


def cache_timeout(options: Options) -> float:
    """Seconds for which the guest may trust names and attributes."""
    return CACHE_SECONDS[options.cache] if options.timeout is None else options.timeout
