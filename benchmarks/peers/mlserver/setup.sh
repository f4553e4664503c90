#!/bin/sh
# MLServer in an environment of its own, made once: .build/peers/mlserver. Pinned, resolved; xgboost-cpu stands for xgboost,
# which is the same library with 350 MB for GPUs.
#   setup.sh PYTHON
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv=$here/../../../.build/peers/mlserver
stamp=$venv/.$(sha256sum "$here/requirements.txt" | cut -c1-16)
[ -e "$stamp" ] && exit 0
echo "==> installing MLServer (once; about a minute)"
rm -rf "$venv"
"$1" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$here/requirements.txt"
touch "$stamp"
