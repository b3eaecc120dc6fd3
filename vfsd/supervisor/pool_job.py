# SPDX-License-Identifier: Apache-2.0
"""From the checked options to the job of a pool (transport/job.py)."""

from dataclasses import fields, replace

from vfsd.supervisor.option_values import FOR_EVER
from vfsd.supervisor.options import Options, cache_timeout
from vfsd.supervisor.segments import FILE_CAPACITY
from vfsd.transport.job import Filesystem, Job, encode
from vfsd.transport.native import lib
from vfsd.transport.option_types import Switches
from vfsd.transport.shared_memory import create_blob


def create_job(name: str, options: Options, supervisor: int, root: int) -> int:
    """Make the job of the pools that share the directory behind the fd `root`; returns the fd of
    the segment with the job. `supervisor` is the user id of the supervisor."""
    assert options.shared_dir is not None
    job = Job(
        name=name,
        shared_dir=options.shared_dir,
        sandbox=options.sandbox,
        seccomp=options.seccomp,
        slots=options.workers,
        log_level=options.log_level,
        poll_us=options.poll_us,
        thread_pool_size=options.thread_pool_size,
        modcaps=options.modcaps,
        worker_faults=options.worker_faults,
        userns=options.userns,
        supervisor=supervisor,
        uid_map=options.uid_map,
        gid_map=options.gid_map,
        queue_cpus=options.queue_cpus,
        inode_capacity=options.inode_limit + 1,
        file_capacity=FILE_CAPACITY,
        fs=replace(filesystem(options), idmapped_mounts=_has_idmapped_mounts(options, root)),
    )
    return create_blob("vfsd-job", encode(job))


def _has_idmapped_mounts(options: Options, root: int) -> bool:
    """Are idmapped mounts offered? Unless the operator insists, they are not offered for a file
    system whose server judges users: with idmapped mounts a guest does not report its users."""
    if "idmapped_mounts" in options.given:
        return options.idmapped_mounts
    return not lib.file_system_facts(root) & lib.FS_JUDGES_USERS


def filesystem(options: Options) -> Filesystem:
    """The part of the job about the file system: what the guest may do, and what it may cache."""
    timeout = cache_timeout(options)
    entry, attr = options.entry_timeout, options.attr_timeout
    return Filesystem(
        **{switch.name: getattr(options, switch.name) for switch in fields(Switches)},
        cache=options.cache,
        entry_timeout=timeout if entry is None else entry,
        attr_timeout=timeout if attr is None else attr,
        negative_timeout=options.negative_timeout,
        lock_wait=None if options.lock_wait == FOR_EVER else options.lock_wait,
        inode_file_handles=options.inode_file_handles,
        xattr=bool(options.xattr),
        posix_acl=options.posix_acl,
        security_label=options.security_label,
        readdirplus=bool(options.readdirplus),
        killpriv_v2_asked="killpriv_v2" in options.given,
        translate_uid=options.translate_uid,
        translate_gid=options.translate_gid,
        xattrmap=options.xattrmap,
    )
