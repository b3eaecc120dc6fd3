# SPDX-License-Identifier: Apache-2.0
"""A target in Python under atheris: python -m tests.fuzz.python_fuzzer TARGET PROGRAM FLAG...

PROGRAM is the file to run to get here again, for libFuzzer's own children; FLAG... are libFuzzer's.
"""

import importlib
import sys


def main() -> None:
    """Does not return: libFuzzer exits."""
    atheris = importlib.import_module("atheris")  # which has no types
    name, *argv = sys.argv[1:]
    with atheris.instrument_imports(include=["vfsd", f"tests.fuzz.{name}"]):
        module = importlib.import_module(f"tests.fuzz.{name}")
    atheris.Setup(argv, module.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
