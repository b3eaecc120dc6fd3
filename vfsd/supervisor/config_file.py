# SPDX-License-Identifier: Apache-2.0
"""--config FILE: options in a TOML file, each by its long name.

    shared-dir = "/srv/vm001"
    cache = "always"
    xattr = true
    workers = 4
    uid-map = [":0:1000:1:", ":1:100000:65536:"]

The value of a switch is true or false. For an option like posix-acl, true has the meaning of the
option without a value (--posix-acl), and false that of --no-posix-acl. An unknown key is an error,
as an unknown option is.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from vfsd.supervisor.options import KEYS, Bare, Option
from vfsd.supervisor.settings import Setting, closest, read_value, usage

_MISSING: Final = object()


def read_config(path: str, option: str) -> list[Setting]:
    """The settings in the file that `option` names, or an OperatorError."""
    import tomllib  # noqa: PLC0415 - saves memory if there is no file

    what = f"{option}: '{path}'"
    try:
        content = tomllib.loads(Path(path).read_bytes().decode())
    except OSError as error:
        raise usage(f"{what}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise usage(f"{what} is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise usage(f"{what} is not TOML: {error}") from None
    return [setting for key, value in content.items() for setting in _settings(path, key, value)]


def _settings(path: str, key: str, value: Any) -> Iterator[Setting]:
    spelling = f"{key} in {path}"
    row = KEYS.get(key)
    if row is None:
        raise usage(f"{path}: unknown option {key}; {_hint(key)}")
    if isinstance(value, list) and row.repeatable:
        for item in value:
            yield Setting(row, spelling, _value(row, spelling, item))
    else:
        yield Setting(row, spelling, _value(row, spelling, value))


def _value(row: Option, spelling: str, value: Any) -> Any:
    fixed = row.long[f"--{row.key}"]
    if type(value) is bool:
        found = _alone(row, value)
        if found is _MISSING:
            raise usage(f"{spelling} needs a value, not true or false")
        return found
    if fixed is not None and not isinstance(fixed, Bare):
        raise usage(f"{spelling} must be true or false")
    if type(value) not in (str, int, float):
        many = " or a list of them" if row.repeatable else ""
        raise usage(f"{spelling} must be text or a number{many}")
    return read_value(row, spelling, str(value))


def _alone(row: Option, value: bool) -> Any:
    """The value of the option when it is given without a value (True) or as --no-… (False)."""
    fixed = row.long.get(f"--{row.key}" if value else f"--no-{row.key}")
    if fixed is None:
        return _MISSING
    return fixed.value if isinstance(fixed, Bare) else fixed


def _hint(key: str) -> str:
    positive = key.removeprefix("no-")
    if positive in KEYS and positive != key:
        return f"write {positive} = false"
    meant = closest(key.lstrip("-").replace("_", "-"), KEYS)
    return f"did you mean {meant}?" if meant else "see --help for the long names"
