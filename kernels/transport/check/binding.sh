#!/bin/sh
# The extension module with AddressSanitizer and UBSan, in a copy of the tree, under the transport's own tests.
#   binding.sh PYTHON
set -eu
root=$(cd "$(dirname "$0")/../../.." && pwd)
copy=$root/.build/transport-check/tree
rm -rf "$copy"
mkdir -p "$copy"
cd "$root"
cp -r kernels serve tests benchmarks protos clients pyproject.toml "$copy"
rm -f "$copy"/kernels/transport/_transport.*so
cd "$copy"
"$1" -c 'from kernels.transport.build import build; build(("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1"))'
tests=tests/integration/transport
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)" \
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
  "$1" -m pytest $tests/test_interop.py $tests/test_hostile.py $tests/test_hostile_cheaply.py $tests/test_tls.py
