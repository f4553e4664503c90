#!/bin/sh
# Stock Ray Serve needs nothing of its own: the project's environment has the same Ray. Fails where it has another.
#   setup.sh PYTHON_OF_THE_PROJECT
set -eu
wanted=$(sed -n 's/^ray\[serve\]==//p' "$(dirname "$0")/requirements.txt")
"$1" -c "import ray, sys; sys.exit(0 if ray.__version__ == '$wanted' else f'Ray is {ray.__version__}; wanted $wanted')"
