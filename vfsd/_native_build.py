# SPDX-License-Identifier: Apache-2.0
"""Build `vfsd._native`: one cffi API-mode extension from every .c below a csrc folder.

No layout is declared twice. The public headers (`*.h` beside the sources, except those marked
PRIVATE) are run through the C preprocessor, and cffi gets the result unchanged; the same `#include`
lines are the extension's source, so the compiler checks every declaration against itself.
`<linux/fuse.h>` is included in the same way. A typed stub of the result is written to
`vfsd/_native.pyi`.

Environment: VFSD_SANITIZE=address,undefined builds with those sanitizers.
"""

import hashlib
import os
import re
import shlex
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CSRC = ("transport", "worker", "frontend", "bench")
LIBRARIES = ("seccomp",)
WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wvla", "-Wconversion", "-Wno-unused-parameter")
# The code that cffi generates after our headers has conversions that are not ours to mend.
GENERATED = '#pragma GCC diagnostic ignored "-Wconversion"\n'
# A header with this text on a line of its own is not shown to Python: it has inline functions,
# attributes, or system headers that cffi cannot parse.
PRIVATE = "/* PRIVATE: C only */"
# INIT and FOPEN flags and other numbers of <linux/fuse.h>.
FUSE_MACRO = re.compile(
    r"^#define ((?:FUSE|FOPEN)_\w+) (?:\d+|\(1(?:ULL)? << \d+\))$", re.MULTILINE
)

# What lies in segments that outlive a daemon (--keep-state), and what these structs are made of.
KEPT_FILES = (
    "transport/csrc/inflight.*", "transport/csrc/device_state.h", "transport/csrc/split_ring.h",
    "worker/csrc/tables/*", "worker/csrc/loop/records.*", "worker/csrc/request/intent.*",
)  # fmt: skip
LAYOUT_MACRO = "VFSD_TABLES_LAYOUT"
# The part of it that another version must share to take over a VM that is connected.
RECORD_FILES = (
    "transport/csrc/inflight.*", "transport/csrc/device_state.h", "worker/csrc/loop/records.*",
    "worker/csrc/request/intent.*",
)  # fmt: skip
RECORDS_MACRO = "VFSD_RECORDS_LAYOUT"
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
# A definition of a type at the beginning of a line, up to the brace that ends it, or a macro.
DEFINITION = re.compile(
    r"^(?:struct|union|enum)\b[^;()]*?\{.*?^\}|^#define .*?$", re.MULTILINE | re.DOTALL
)


def sources() -> list[Path]:
    return [path for part in CSRC for path in sorted((ROOT / part / "csrc").rglob("*.c"))]


def public_headers() -> list[Path]:
    headers = [path for part in CSRC for path in sorted((ROOT / part / "csrc").rglob("*.h"))]
    return [path for path in headers if PRIVATE not in path.read_text()]


def stub() -> str:
    """The `#include` lines that are both the cdef (preprocessed) and the source."""
    return "".join(f'#include "{path.relative_to(ROOT)}"\n' for path in public_headers())


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


def preprocess(text: str, *options: str) -> str:
    command = [
        compiler()[0],
        "-E",
        *options,
        "-P",
        "-DVFSD_CDEF",
        "-D_GNU_SOURCE",
        "-I",
        str(ROOT),
        "-x",
        "c",
        "-",
    ]
    return subprocess.run(command, input=text, check=True, capture_output=True, text=True).stdout


def macros() -> str:
    """The constants that are macros, those of the FUSE protocol and LAYOUT_MACRO, as lines of the
    cdef. Preprocessing drops macros; the compiler fills in their values."""
    names = FUSE_MACRO.findall(preprocess(stub(), "-dM"))
    return "".join(
        f"#define {name} ...\n" for name in [*sorted(names), LAYOUT_MACRO, RECORDS_MACRO]
    )


def tables_layout(root: Path = ROOT, files: tuple[str, ...] = KEPT_FILES) -> int:
    """A number that differs if the layout of the tables that outlive a daemon does. It is made from
    the definitions of the types and macros in `files`, without comments and spaces."""
    paths = sorted(path for pattern in files for path in root.glob(pattern))
    texts = (COMMENT.sub("", path.read_text()) for path in paths if path.suffix in {".c", ".h"})
    found = [" ".join(text.split()) for part in texts for text in DEFINITION.findall(part)]
    return int.from_bytes(hashlib.sha256("\n".join(found).encode()).digest()[:7], "big")


def emit(path: Path) -> None:
    """Write the generated C of the extension to `path`."""
    import cffi  # noqa: PLC0415 - only a build needs cffi

    ffi = cffi.FFI()
    ffi.cdef(preprocess(stub()) + macros())
    ffi.set_source("vfsd._native", stub() + GENERATED, py_limited_api=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    ffi.emit_c_code(str(path))


class BuildExt(build_ext):
    """setuptools' build_ext. The C files and the flags are found, not listed a second time."""

    def run(self) -> None:
        generated = Path(self.build_temp) / "_native.c"
        emit(generated)
        for extension in self.extensions:
            extension.sources = [str(generated), *(str(p) for p in sources())]
            extension.depends = [str(p) for p in ROOT.glob("*/csrc/**/*.h")]
            extension.include_dirs = [str(ROOT)]
            extension.libraries = list(LIBRARIES)
            extension.define_macros = [
                ("_GNU_SOURCE", None),
                (LAYOUT_MACRO, f"{tables_layout()}ULL"),
                (RECORDS_MACRO, f"{tables_layout(files=RECORD_FILES)}ULL"),
            ]
            extension.extra_compile_args, extension.extra_link_args = flags()
        super().run()
        if self.inplace:
            write_pyi(ROOT / "_native.pyi")


class BuildPy(build_py):
    """setuptools' build_py, without this file: an installed package builds nothing."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)  # type: ignore[no-untyped-call]
        return [row for row in found if row[1] != __name__.rpartition(".")[2]]


@dataclass(frozen=True)
class Hardening:
    """One defence that the compiler or the linker adds. The first of `choices` that the compiler
    knows is used. `is_code`: the option changes generated code, so the link-time optimizer is also
    given it."""

    choices: tuple[tuple[str, ...], ...]
    why: str
    is_code: bool = True


# The cost of each defence was measured in user-space instructions of a request; instructions in the
# kernel are not counted.
HARDENING = (
    Hardening((("-fstack-protector-strong",),),
              "an overrun of a local array ends the worker before its function returns"),
    Hardening((("-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"),
               ("-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2")),
              "an overrun by memcpy, read, snprintf, … of an object of known size does the same"),
    Hardening((("-fstack-clash-protection",),), "a large frame cannot step over the guard page"),
    # Without branch tracking: Linux has none in user space, and its marks cost 1 to 3 %.
    Hardening((("-fcf-protection=return", "-Wl,-z,shstk"),),
              "code is marked as fit for a CPU's shadow stack, which can then be turned on (x86)"),
    Hardening((("-Wl,-z,relro", "-Wl,-z,now"),),
              "tables of function addresses are read-only after the start", is_code=False),
    Hardening((("-Wl,-z,noexecstack",),), "the stack is data", is_code=False),
)  # fmt: skip


def is_known(options: tuple[str, ...]) -> bool:
    """Does the compiler take these options without a warning?"""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.c"
        source.write_text("#include <string.h>\nint probe(void) { return 0; }\n")
        command = [*compiler(), "-O2", "-Werror", "-shared", "-fPIC", *options, str(source)]
        done = subprocess.run(
            [*command, "-o", f"{folder}/probe.so"], capture_output=True, check=False
        )
    return done.returncode == 0


def hardening() -> tuple[list[str], list[str]]:
    """The rows of HARDENING that this compiler knows: its options for compiling, and for
    linking."""
    compiling: list[str] = []
    linking: list[str] = []
    for row in HARDENING:
        known = next((options for options in row.choices if is_known(options)), ())
        code = [option for option in known if not option.startswith("-Wl,")]
        compiling += code
        linking += known if row.is_code else [option for option in known if option not in code]
    return compiling, linking


def flags() -> tuple[list[str], list[str]]:
    """Options for compiling, and for linking. A build with a sanitizer has no hardening: a
    sanitizer finds what FORTIFY lets through."""
    sanitize = os.environ.get("VFSD_SANITIZE")
    common = ["-std=gnu11", "-g", "-fvisibility=hidden", "-fno-strict-aliasing", *WARNINGS]
    if sanitize:
        return [*common, "-O1", f"-fsanitize={sanitize}", "-fno-omit-frame-pointer"], [
            f"-fsanitize={sanitize}"
        ]
    compiling, linking = hardening()
    return [*common, "-O2", "-flto=auto", *compiling], ["-flto=auto", "-O2", *linking]


def python_type(kind: Any) -> str:
    """The type a C argument or result has in Python."""
    if kind.kind == "void":
        return "None"
    if kind.kind == "primitive":
        return {"_Bool": "bool", "double": "float"}.get(kind.cname, "int")
    if kind.kind == "enum":
        return "int"
    return "FFI.CData"


def write_pyi(path: Path) -> None:
    """A stub of the built extension: `lib`'s functions with their types, and its constants."""
    command = [
        os.environ.get("PYTHON", "") or os.sys.executable,  # type: ignore[attr-defined]
        "-c",
        (
            "import sys; sys.path.insert(0, sys.argv[1]);"
            "from vfsd._native_build import pyi_text; sys.stdout.write(pyi_text())"
        ),
        str(ROOT.parent),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:  # a sanitized build cannot be imported without its preload
        path.write_text(done.stdout)


def pyi_text() -> str:
    from vfsd import _native  # noqa: PLC0415 - this file builds the module

    ffi, lib = _native.ffi, _native.lib
    lines = ["from cffi import FFI", "", "ffi: FFI", "", "class _Lib:"]
    for name in sorted(dir(lib)):
        member = getattr(lib, name)
        if isinstance(member, int):
            lines.append(f"    {name}: int")
            continue
        kind = ffi.typeof(member)
        if kind.kind == "pointer":
            kind = kind.item
        if kind.kind != "function":
            lines.append(f"    {name}: FFI.CData")
            continue
        arguments = "".join(f", a{i}: {argument_type(a)}" for i, a in enumerate(kind.args))
        lines.append(f"    def {name}(self{arguments}, /) -> {python_type(kind.result)}: ...")
    return re.sub(r"\bclass _Lib:$", "class _Lib:\n    pass", "\n".join(lines)) + "\n\nlib: _Lib\n"


def argument_type(kind: Any) -> str:
    """As python_type(), but a `char *` argument also takes bytes."""
    if kind.kind == "pointer" and kind.item.cname in ("char", "unsigned char", "uint8_t", "void"):
        return "FFI.CData | bytes"
    return python_type(kind)
