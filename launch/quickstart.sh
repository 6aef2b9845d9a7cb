#!/usr/bin/env bash
# From nothing to answers, on a laptop's CPU: makes a virtual environment, trains the dense
# question-guided model on the built-in catalogue, upcycles it to a sparse mixture and trains only
# the experts, evaluates both, and takes sources away to show that each one is used.
#
#   bash launch/quickstart.sh [WORKDIR]      (default: runs/quickstart)
#
# Running it again goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
use_environment .venv requirements.txt

runs="${1:-runs/quickstart}"
python -m launch.train --config=configs/quickstart.py:dense --workdir="$runs/dense"
python -m launch.evaluate --workdir="$runs/dense"
python -m launch.train --config=configs/quickstart.py:moe --workdir="$runs/moe" \
  --config.init.work_dir="$runs/dense"
python -m launch.evaluate --workdir="$runs/moe"
python -m launch.evaluate --workdir="$runs/moe" --remove_sources=image
python -m launch.evaluate --workdir="$runs/moe" --remove_sources=text
python -m launch.summary "$runs/dense" "$runs/moe"
