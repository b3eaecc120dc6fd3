# SPDX-License-Identifier: Apache-2.0
"""The text of --help, made from the table of options; documents use its parts."""

from typing import Any

from vfsd.supervisor.options import OPTIONS, Bare, Option


def spellings(row: Option) -> list[tuple[str, str]]:
    """Each spelling of an option, with the form of its value ("=DIR", "[=MODE]", "")."""
    found = [*row.long.items(), *((f"-o {name}", value) for name, value in row.short_o.items())]
    return [(name, _suffix(row, value)) for name, value in found]


def _suffix(row: Option, value: Any) -> str:
    if value is None:
        return f"={row.metavar}"
    return f"[={row.metavar}]" if isinstance(value, Bare) else ""


def default_text(row: Option) -> str:
    """The text about the default, which follows the help."""
    return row.default if row.default.startswith("required") else f"default: {row.default}"


def help_text() -> str:
    """The text of --help, made from the table."""
    lines = [
        "Usage: virtiofsd --socket-path=PATH --shared-dir=DIR [OPTION]...",
        "       virtiofsd --socket-path=PATH -o source=DIR[,OPTION]...",
        "Share a directory with a virtual machine (virtio-fs over vhost-user).",
        "",
    ]
    for row in OPTIONS:
        default = f" ({default_text(row)})" if row.default else ""
        lines.append("  " + ", ".join(name + suffix for name, suffix in spellings(row)))
        lines.append(f"        {row.help}{default}")
    lines += ["", "virtiofsd(1) says more of each."]
    return "\n".join(lines) + "\n"
