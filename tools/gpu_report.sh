#!/usr/bin/env bash
# What a GPU shows of mmvit, on a machine with PyTorch and without a network.
#
#     bash tools/gpu_report.sh [--rehearse] [--profile] [--only PATTERN] [--out FOLDER]
#
# PYTHON names the Python that has PyTorch (python3). The wheels that `make gpu-bundle` gathered in work_dirs/gpu/bundle
# are put into work_dirs/gpu/packages, which only this command sees. Without them the environment is taken as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
folder=work_dirs/gpu

if [ -e $folder/bundle/part00 ] && [ ! -e $folder/packages ]; then
    rm -rf $folder/wheels $folder/new
    mkdir $folder/wheels
    cat $folder/bundle/part* | tar --extract --directory $folder/wheels
    pip=$(echo $folder/wheels/pip-*.whl)/pip  # the machine's Python may have none
    "$python" "$pip" install --quiet --no-index --no-deps --target $folder/new $folder/wheels/*.whl
    mv $folder/new $folder/packages
fi
export PYTHONPATH=$PWD/$folder/packages:$PWD:$PWD/tests PYTHONWARNINGS=ignore
exec "$python" tools/gpu_report.py "$@"
