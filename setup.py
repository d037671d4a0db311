"""The list of native modules and their build switches; all other metadata is in pyproject.toml."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

MODULES = [
    "core_ext._batch",
    "core_ext._counters",
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
    "core_ext._sink",
    "core_ext._straight",
    "core_ext._wheel",
    "bench.load._client",
    "bench.load._platform",
]

ONLY = os.environ.get("TRONCAL_ONLY")  # a developer's incremental build of a few modules
TRACE = os.environ.get("TRONCAL_TRACE") == "1"  # coverage build, slow
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
macros = [("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1")] if TRACE else []

modules = [m for m in MODULES if not ONLY or m.rpartition(".")[2] in ONLY.split(",")]

setup(
    ext_modules=cythonize(
        [
            Extension(
                name,
                [name.replace(".", "/") + ".pyx"],
                extra_compile_args=cflags,
                extra_link_args=["-fsanitize=address,undefined"] if SANITIZE else [],
                define_macros=macros,
                libraries=["pthread", "dl"],
            )
            for name in modules
        ],
        nthreads=os.cpu_count() or 1,
        # The coverage plugin wants the generated C beside its source.
        build_dir=None if TRACE else "build/cython",
        compiler_directives={
            "language_level": 3,
            "boundscheck": True,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "embedsignature": False,
            "auto_pickle": False,
            "autotestdict": False,
            "linetrace": TRACE,
        },
    ),
    options={"build_ext": {"parallel": os.cpu_count()}},
)
