# SPDX-License-Identifier: Apache-2.0
"""Who is below a process: found when somebody is to be killed, never before."""


def descendants(pid: int) -> list[int]:
    """The pids of everything below a process; none if it is gone."""
    # Not at the top: it takes 1 MiB in keeper and supervisor, and only an end needs it.
    import psutil  # noqa: PLC0415

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []
