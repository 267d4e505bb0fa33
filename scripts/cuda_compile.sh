#!/usr/bin/env bash
# Compiles the CUDA kernels with the real compiler and keeps the result beside them.
#
#   scripts/cuda_compile.sh           writes kernels/cuda/device/kernels.fatbin and kernels.manifest
#   scripts/cuda_compile.sh --check   writes nothing; fails where the ones that stand there differ
#
# No GPU and no CUDA toolkit is needed: the compiler comes as Python packages of one version, into
# target/. The binary has code for compute capability 8.0 (which 8.x runs) and 9.0a, and PTX for later ones.
# Refused are kernels that spill registers or keep arrays in local memory, and products without
# tensor-core instructions.
set -euo pipefail
cd "$(dirname "$0")/.."

compiler=13.0.88
# The programs that read binaries have no 13.0; they read those of older compilers.
reader=13.2.78
toolkit=target/cuda-toolkit-$compiler
device=kernels/cuda/device
flags=(-std=c++17 -O3 --compress-mode=size
    -gencode arch=compute_80,code=sm_80
    -gencode arch=compute_80,code=compute_80
    -gencode arch=compute_90a,code=sm_90a)
architectures=(sm_80 sm_90a)
products=(attention_32 attention_64 linear_64 linear_128 linear_gelu_64 linear_gelu_128
    linear_residual_64 linear_residual_128 nearest_rows)

if [ ! -e "$toolkit/complete" ]; then
    echo "installing the compiler, version $compiler"
    rm -rf "$toolkit"
    python3 -m pip install --quiet --root-user-action=ignore --no-deps --target "$toolkit" \
        nvidia-cuda-nvcc==$compiler nvidia-cuda-crt==$compiler nvidia-nvvm==$compiler \
        nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 nvidia-cuda-cuobjdump==$reader \
        nvidia-cuda-nvdisasm==$reader
    chmod +x "$toolkit"/nvidia/cu13/bin/* "$toolkit"/nvidia/cu13/nvvm/bin/*
    touch "$toolkit/complete"
fi
bin=$PWD/$toolkit/nvidia/cu13/bin
export PATH=$bin:$PATH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Written under its final name: the binary has it inside.
"$bin/nvcc" "${flags[@]}" -Xptxas -v -fatbin -o "$work/kernels.fatbin" $device/kernels.cu \
    2>"$work/assembler.log" || { cat "$work/assembler.log" >&2; exit 1; }

# A line for each kernel and architecture: name, architecture, registers.
awk '/Compiling entry function/ { split($0, part, "\047"); name = part[2]; architecture = part[4] }
    /bytes stack frame/ && ($1 + $5 + $9 > 0) { print name " spills on " architecture ": " $0 >"/dev/stderr"; bad = 1 }
    /Used [0-9]+ registers/ { for (i = 1; i <= NF; i++) if ($i == "Used") print name, architecture, $(i + 1) }
    END { exit bad }' "$work/assembler.log" | sort >"$work/kernels"

for architecture in "${architectures[@]}"; do
    "$bin/cuobjdump" -sass -arch "$architecture" "$work/kernels.fatbin" |
        awk '/Function :/ { name = $3 } /HMMA\.16816\.F32/ { count[name]++ }
            END { for (name in count) print name }' | sort >"$work/tensor"
    for product in "${products[@]}"; do
        grep -qx "$product" "$work/tensor" ||
            { echo "$product has no tensor-core instruction on $architecture" >&2; exit 1; }
    done
done

{
    echo "compiler $compiler"
    echo "flags ${flags[*]}"
    (cd $device && sha256sum -- *.cu *.cuh | awk '{ print "source", $2, $1 }')
    sha256sum "$work/kernels.fatbin" | awk '{ print "binary", $1 }'
    sed 's/^/kernel /' "$work/kernels"
} >"$work/kernels.manifest"

if [ "${1:-}" = --check ]; then
    cmp "$work/kernels.manifest" $device/kernels.manifest
    cmp "$work/kernels.fatbin" $device/kernels.fatbin
    echo "$device/kernels.fatbin is what its sources compile to"
else
    cp "$work/kernels.fatbin" "$work/kernels.manifest" $device/
    wc -c $device/kernels.fatbin
fi
