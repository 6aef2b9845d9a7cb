#!/usr/bin/env bash
# Makes a virtual environment with the test requirements and runs the checks and the tests.
#
#   bash launch/test.sh [PYTEST ARGUMENTS]       -m slow  runs the full-size ones instead
#
# VENV chooses the folder of the environment (default: .venv-test).
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
use_environment "${VENV:-.venv-test}" requirements-test.txt

ruff check .
ruff format --check .
# As many processes as there are cores: most of the time goes into compilers, which use one each.
python -m pytest -n auto --dist worksteal "$@"
