"""The list of native modules and their build switches; all other metadata is in pyproject.toml."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

MODULES = [
    "core_ext._batch",
    "core_ext._breaks",
    "core_ext._counters",
    "core_ext._deposit",
    "core_ext._desk",
    "core_ext._frames",
    "core_ext._iso8583",
    "core_ext._issuer",
    "core_ext._journal",
    "core_ext._lanes",
    "core_ext._ledger",
    "core_ext._ledger_snapshot",
    "core_ext._mac",
    "core_ext._pages",
    "core_ext._pending",
    "core_ext._records",
    "core_ext._relay",
    "core_ext._sink",
    "core_ext._straight",
    "core_ext._wheel",
    "bench.load._client",
    "bench.load._platform",
]

ONLY = os.environ.get("TRONCAL_ONLY")  # a developer's incremental build of a few modules
TRACE = os.environ.get("TRONCAL_TRACE") == "1"  # counts lines and branches (gcov), slow
SANITIZE = os.environ.get("TRONCAL_SANITIZE") == "1"  # AddressSanitizer and UBSan

cflags = [
    "-O2",
    "-g1",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
    "-Wno-missing-field-initializers",
    "-fno-strict-aliasing",
]
if SANITIZE:
    cflags = [
        "-O1",
        "-g",
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
    ]
if TRACE:
    cflags = ["-O0", "-g1", "-fno-strict-aliasing", "--coverage", "-fprofile-update=atomic"]
link = ["-fsanitize=address,undefined"] if SANITIZE else ["--coverage"] if TRACE else []

modules = [m for m in MODULES if not ONLY or m.rpartition(".")[2] in ONLY.split(",")]

setup(
    ext_modules=cythonize(
        [
            Extension(
                name,
                [name.replace(".", "/") + ".pyx"],
                extra_compile_args=cflags,
                extra_link_args=link,
                libraries=["pthread", "dl"],
            )
            for name in modules
        ],
        nthreads=os.cpu_count() or 1,
        build_dir="build/cython",
        compiler_directives={
            "language_level": 3,
            "boundscheck": True,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "embedsignature": False,
            "auto_pickle": False,
            "autotestdict": False,
        },
    ),
    options={"build_ext": {"parallel": os.cpu_count()}},
)
