# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import asdict
from typing import Any

import pytest

from tests.worker.pool_process import FS, job_content
from vfsd.transport.job import JobError, JobFds, decode, encode


def encoded(**changes: Any) -> bytes:
    return json.dumps(job_content(**changes)).encode()


def test_a_whole_job() -> None:
    job = decode(encoded())
    assert job.slots == 2
    assert job.fs.attr_timeout == 1.0
    assert job.fs.killpriv_v2 is True


def test_the_fds_of_a_pool_have_names() -> None:
    fds = JobFds.of(3, range(9, 19), 2)
    assert (fds.root, fds.key, fds.channel, fds.stderr) == (3, 9, 10, 11)
    assert fds.kept() == (10, 12, 13, 14, 15, 16, 17, 18)
    assert fds.listeners == (17, 18)
    assert (fds.before, fds.former, fds.consumed()) == ((), None, (3, 9))
    after = JobFds.of(3, range(9, 22), 2)
    assert (after.before, after.former) == ((19, 20, 21), None)
    assert after.consumed() == (3, 9, 19, 20, 21)
    heir = JobFds.of(3, range(9, 20), 2)
    assert (heir.before, heir.former, heir.consumed()) == ((), 19, (3, 9, 19))
    assert [one.takes_over for one in (fds, after, heir)] == [False, True, True]


@pytest.mark.parametrize("count", [0, 1, 9, 12, 14])
def test_another_number_of_fds_is_refused(count: int) -> None:
    with pytest.raises(JobError, match=f"a pool of 2 slots was given {count} fds"):
        JobFds.of(3, range(9, 9 + count), 2)


def test_what_is_encoded_is_decoded() -> None:
    ranges = [[0, 1000, 1], [1, 100000, 65536]]
    fs = FS | {"translate_uid": ["map:0:1000:1"], "xattrmap": ":map::user.:", "flock": True}
    job = decode(encoded(uid_map=ranges, queue_cpus=[1, 0], fs=fs))
    assert job.uid_map[1].outside == 100000
    assert asdict(decode(encode(job))) == asdict(job)


def test_a_path_that_is_not_utf8_survives() -> None:
    assert decode(encoded(shared_dir="/srv/\udcff")).shared_dir == "/srv/\udcff"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": 1}, "job: name is not text"),
        ({"name": "a\0b"}, "job: name is not text"),
        ({"shared_dir": "srv"}, "job: shared_dir is not an absolute path"),
        ({"sandbox": "jail"}, "job: sandbox is not one of namespace, chroot, none"),
        ({"seccomp": True}, "job: seccomp is not one of kill, log, trap, none"),
        ({"slots": 0}, "job: slots is not a whole number from 1 to 64"),
        ({"slots": True}, "job: slots is not a whole number from 1 to 64"),
        ({"poll_us": -2}, "job: poll_us is not a whole number from -1 to 1000000"),
        ({"log_level": "loud"}, "job: log_level is not one of off, error, warn, info, debug"),
        ({"inode_capacity": 1 << 40}, "job: inode_capacity is not a whole number"),
        ({"fs": FS | {"xattr": 1}}, "job: fs.xattr is not true or false"),
        ({"fs": FS | {"entry_timeout": -1}}, "job: fs.entry_timeout is not a number of seconds"),
        ({"fs": FS | {"entry_timeout": float("nan")}}, "fs.entry_timeout is not a number"),
        ({"fs": FS | {"negative_timeout": "1"}}, "job: fs.negative_timeout is not a number of sec"),
        ({"fs": FS | {"lock_wait": -1}}, "job: fs.lock_wait is not a number of seconds"),
        ({"fs": FS | {"posix_acl": True}}, "job: fs.posix_acl is not one of never, auto, always"),
        ({"uid_map": [[0, 1]]}, "job: uid_map has an item that is not [inside, outside, count]"),
        ({"gid_map": [[0, 1, -1]]}, "job: gid_map has an item that is not"),
        ({"uid_map": {}}, "job: uid_map is not a list of up to 340 ranges"),
        ({"queue_cpus": [-1]}, "job: queue_cpus is not a whole number"),
        ({"queue_cpus": 1}, "job: queue_cpus is not a list"),
        ({"fs": FS | {"tag": "x"}}, "job: fs.tag is unknown"),
        ({"fs": []}, "job: fs is not an object"),
        ({"fs": FS | {"translate_uid": "x"}}, "job: fs.translate_uid is not a list"),
        ({"fs": FS | {"translate_uid": [1]}}, "job: fs.translate_uid is not text"),
        ({"fs": FS | {"translate_gid": ["map:1:2"]}}, "job: fs.translate_gid is not map:FROM"),
        (
            {"fs": FS | {"translate_gid": ["map:1:2:1", "map:1:3:1"]}},
            "job: fs.translate_gid 'map:1:2:1' and 'map:1:3:1' overlap",
        ),
        ({"fs": FS | {"xattrmap": 1}}, "job: fs.xattrmap is not text"),
        ({"fs": FS | {"xattrmap": ":no:"}}, "job: fs.xattrmap rule 1, column 2: the type 'no' is"),
        ({"extra": 1}, "job: extra is unknown"),
        ({"fds": {}}, "job: fds is unknown"),
    ],
)
def test_a_wrong_value_is_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(JobError) as wrong:
        decode(encoded(**changes))
    assert text in str(wrong.value)
    assert "\n" not in str(wrong.value)


@pytest.mark.parametrize("name", sorted(job_content()))
def test_a_missing_value_is_named(name: str) -> None:
    content = job_content()
    del content[name]
    with pytest.raises(JobError, match=f"^job: {name} is missing$"):
        decode(json.dumps(content).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 100000])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(JobError):
        decode(data)
