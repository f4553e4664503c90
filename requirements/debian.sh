#!/bin/sh
# Debian packages of the tests and benchmarks: the load generator's HTTP/2, wrk and h2load to compare it with, a browser, Redis.
missing=""
[ -e /usr/include/nghttp2/nghttp2.h ] || missing="$missing libnghttp2-dev"
command -v wrk >/dev/null || missing="$missing wrk"
command -v h2load >/dev/null || missing="$missing nghttp2-client"
command -v redis-server >/dev/null || missing="$missing redis-server"
command -v chromium >/dev/null || missing="$missing chromium"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "==> installing Debian packages:$missing"
  apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null && exit 0
fi
echo "==> not installed, so what needs them is skipped:$missing (apt-get install$missing)"
