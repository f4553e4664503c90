#!/bin/sh
# Debian packages, by what needs them: `serve` (the native transport's headers), `dev` (tests and benchmarks: wrk and h2load
# beside our load generator, a browser, Redis, Node), `check` (fuzzers and sanitizers).
missing=""
have() { command -v "$1" >/dev/null; }
[ -e /usr/include/nghttp2/nghttp2.h ] || missing="$missing libnghttp2-dev"
[ -e /usr/include/openssl/ssl.h ] || missing="$missing libssl-dev"
[ -e /usr/include/zlib.h ] || missing="$missing zlib1g-dev"
have "${CXX:-g++}" || have clang++ || missing="$missing g++"
if [ "$1" = dev ]; then
  have wrk || missing="$missing wrk"
  have h2load || missing="$missing nghttp2-client"
  have redis-server || missing="$missing redis-server"
  have chromium || missing="$missing chromium"
  have openssl || missing="$missing openssl"
  have curl || missing="$missing curl"
  have npm || missing="$missing npm"
fi
if [ "$1" = check ]; then
  have clang++ || missing="$missing clang"
  have h2load || missing="$missing nghttp2-client"
fi
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && have apt-get; then
  echo "==> installing Debian packages:$missing"
  apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null && exit 0
fi
echo "==> not installed, so what needs them is left out:$missing (apt-get install$missing)"
