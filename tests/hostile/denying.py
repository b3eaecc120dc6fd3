# SPDX-License-Identifier: Apache-2.0
"""`python denying.py COMMAND...`: run a command in a container that denies to change capabilities.

The seccomp filter of such a container answers capset(2), and prctl(2) for the bounding set, with
EPERM.
"""

import ctypes
import errno
import os
import struct
import sys

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
PR_CAPBSET_DROP = 24
NUMBERS = {"x86_64": (126, 157), "aarch64": (91, 167)}  # capset, prctl
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # opcodes of BPF: load a word of seccomp_data; jeq; ret
NUMBER_AT, ARGUMENT_AT = 0, 16
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM


def program() -> bytes:
    capset, prctl = NUMBERS[os.uname().machine]
    rows = [
        (LOAD, 0, 0, NUMBER_AT),
        (EQUAL, 3, 0, capset),  # jump to REFUSE
        (EQUAL, 0, 3, prctl),  # otherwise jump to ALLOW
        (LOAD, 0, 0, ARGUMENT_AT),
        (EQUAL, 0, 1, PR_CAPBSET_DROP),
        (RETURN, 0, 0, REFUSE),
        (RETURN, 0, 0, ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *row) for row in rows)


def deny() -> None:
    code = ctypes.create_string_buffer(program())
    fprog = struct.pack("@HP", len(program()) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, fprog, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


if __name__ == "__main__":
    deny()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - no shell is the point
