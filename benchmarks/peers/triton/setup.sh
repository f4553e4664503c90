#!/bin/sh
# Triton Inference Server 2.51 in an environment of its own, made once: .build/peers/triton. Its binary comes in the
# nvidia-pytriton package; the Python backend needs the stub of this Python beside it.
#   setup.sh PYTHON
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv=$here/../../../.build/peers/triton
stamp=$venv/.$(sha256sum "$here/requirements.txt" | cut -c1-16)
[ -e "$stamp" ] && exit 0
echo "==> installing Triton (once; two minutes)"
rm -rf "$venv"
"$1" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
version=$("$venv/bin/python" -c 'import sys; print(f"{sys.version_info[0]}.{sys.version_info[1]}")')
server=$("$venv/bin/python" -c 'import pytriton, pathlib; print(pathlib.Path(pytriton.__file__).parent / "tritonserver")')
cp "$server/python_backend_stubs/$version/triton_python_backend_stub" "$server/backends/python/"
chmod +x "$server/bin/tritonserver" "$server/backends/python/triton_python_backend_stub"
ln -sfn "$server" "$venv/tritonserver"
touch "$stamp"
