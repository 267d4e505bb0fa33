#!/usr/bin/env bash
# Installs what the build (and, with `test`, the tests) need and this machine lacks.
# Debian and Ubuntu; elsewhere it names what is missing.
set -euo pipefail

what=${1:-build}
missing=()
need_command() { command -v "$1" >/dev/null || missing+=("$2"); }

need_command g++ g++
need_command make make
need_command cmake cmake
need_command python3 python3
python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
# The -dev package brings the names that the linker looks for.
[ -e /usr/lib/"$(uname -m)"-linux-gnu/libblas.so ] || ls /usr/lib*/libblas.so /usr/lib/*/libblas.so \
    >/dev/null 2>&1 || missing+=(libopenblas-dev)
# The Kafka client speaks TLS, SCRAM and OAuth by these two.
need_header() {
    { ls /usr/include/"$1" || ls /usr/include/*/"$1"; } >/dev/null 2>&1 || missing+=("$2")
}
need_command pkg-config pkg-config
need_header openssl/ssl.h libssl-dev
need_header curl/curl.h libcurl4-openssl-dev
if [ "$what" = test ]; then
    need_command java openjdk-17-jre-headless
    need_command mvn maven
    need_command curl curl
    need_command openssl openssl
    need_command runuser util-linux
    need_command strace strace
    need_command faketime faketime
    # Debian keeps the server's programs out of PATH.
    ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || need_command initdb postgresql
fi

if [ ${#missing[@]} -gt 0 ]; then
    if ! command -v apt-get >/dev/null; then
        echo "please install: ${missing[*]}" >&2
        exit 1
    fi
    sudo=""
    [ "$(id -u)" = 0 ] || sudo=sudo
    echo "installing ${missing[*]}"
    $sudo apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends \
        "${missing[@]}" >/dev/null
fi
command -v cargo >/dev/null || { echo "please install Rust: https://rustup.rs" >&2; exit 1; }
