# SPDX-License-Identifier: Apache-2.0
"""A target in Python under atheris: python -m tests.fuzz.python_fuzzer TARGET PROGRAM FLAG...

PROGRAM is the file that libFuzzer's own children must run to come back here; FLAG... are
libFuzzer's.
"""

import importlib
import sys


def main() -> None:
    """Run libFuzzer, which exits: this function does not return."""
    atheris = importlib.import_module("atheris")  # atheris has no types
    name, *argv = sys.argv[1:]
    with atheris.instrument_imports(include=["vfsd", f"tests.fuzz.{name}"]):
        module = importlib.import_module(f"tests.fuzz.{name}")
    atheris.Setup(argv, module.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
