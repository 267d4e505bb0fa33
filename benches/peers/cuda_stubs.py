"""Lets PyTorch's wheel from PyPI be imported without NVIDIA's libraries: 5 GB that a processor never calls.

    cuda_stubs.py FOLDER_OF_TORCH

The wheel's libraries are linked against CUDA's, and the loader wants each by its name and each symbol by its
version. This puts a library of every missing name beside them, in which each function returns 100: "no
device". The runtime itself, which PyTorch asks whether there is a GPU, is small and must be the real one. What
the processor computes is in the wheel, untouched.

Invariant: only missing names are made; a library that is there is never replaced.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

OF_NVIDIA = re.compile(r"NEEDED.*\[(lib(?:cu|nv|nccl)\S+)\]")
FUNCTION_OF_NVIDIA = re.compile(r"(_*cu[A-Za-z_]|nccl|nvsh)")


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def undefined_symbols(libraries):
    """Names by version; the version is "" where the library that has them gives none."""
    by_version = {}
    for library in libraries:
        for line in output("nm", "-D", "--undefined-only", library).splitlines():
            name, _, version = line.split()[-1].partition("@")
            by_version.setdefault(version.lstrip("@"), set()).add(name)
    return by_version


def write(path, version, names):
    """A shared library of functions that return 100."""
    with tempfile.TemporaryDirectory() as folder:
        code, versions = Path(folder, "stubs.c"), Path(folder, "stubs.map")
        code.write_text("".join(f"long {name}(void) {{ return 100; }}\n" for name in sorted(names)))
        options = ["-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{path.name}"]
        if version:
            versions.write_text(f"{version} {{ global: {'; '.join(sorted(names))}; }};\n")
            options.append(f"-Wl,--version-script,{versions}")
        output("cc", *options, "-o", path, code)


def main():
    folder = Path(sys.argv[1], "lib")
    libraries = sorted(folder.glob("*.so*"))
    needed = {name for it in libraries for name in OF_NVIDIA.findall(output("readelf", "-d", it))}
    symbols = undefined_symbols(libraries)
    plain = {name for name in symbols.get("", ()) if FUNCTION_OF_NVIDIA.match(name)}
    real = libraries + sorted(folder.parent.parent.glob("nvidia/*/lib/*.so*"))
    for name in sorted(needed - {it.name for it in real}):
        # CUDA's versions are the libraries' own names, but for this one.
        version = "NVSHMEM" if name.startswith("libnvshmem") else name
        if version in symbols:
            write(folder / name, version, symbols[version])
        else:
            write(folder / name, "", plain)


if __name__ == "__main__":
    main()
