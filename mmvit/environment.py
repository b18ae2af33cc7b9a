"""What mmvit finds installed beside it: a page to paste into an issue, and one sentence for each fault.

``python -m mmvit`` prints the page. Importing mmvit raises an error where mmvit cannot work, and warns of other faults.
This module needs nothing but the standard library, so that it works in a broken environment.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from mmvit.quota import limited_cpus

# Distributions that own the same files: one of each row may be installed.
SAME_FILES = (
    ('mmcv', 'mmcv-lite', 'onedl-mmcv'),
    ('mmengine', 'mmengine-lite', 'onedl-mmengine'),
    ('mmdet', 'onedl-mmdetection'),
    ('mmsegmentation', 'onedl-mmsegmentation'),
)
REPORTED = (
    'mmvit', 'torch', 'torchvision', 'timm', 'numpy', 'opencv-python', 'opencv-python-headless',
    *(name for row in SAME_FILES for name in row), 'openmim', 'setuptools',
)  # fmt: skip

USE_LITE = "`pip uninstall --yes mmcv mmcv-lite onedl-mmcv`, then `pip install 'mmcv-lite>=2.1,<2.2'`"
RUNS_PICKLES = (
    'can run code that somebody put into a checkpoint when it loads one (load_from, resume, --checkpoint, Pretrained; '
    'mmvit.OfficialWeights is safe): load only files that you trust'
)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with an environment.

    Args:
        sentence: What is wrong, and the command that cures it.
        is_fatal: mmvit cannot be imported.
    """

    sentence: str
    is_fatal: bool = False


def check_environment() -> None:
    """Raise for a fatal fault, and warn of each other one.

    Raises:
        RuntimeError: mmvit cannot be imported here. (mmengine would swallow an ImportError while it looks a name up.)
    """
    for fault in find_faults():
        if fault.is_fatal:
            raise RuntimeError(fault.sentence)
        warnings.warn(fault.sentence, stacklevel=3)


def report() -> str:
    """The page: versions, operators, devices and faults."""
    faults = [fault.sentence for fault in find_faults()] or ['none found']
    return '\n'.join(
        [
            f'Python      {platform.python_version()} on {platform.platform()}',
            'packages    ' + ', '.join(f'{name} {number}' for name, number in installed_versions().items()),
            f'operators   {describe_operators()}',
            f'devices     {describe_devices()}',
            *(f'fault       {fault}' for fault in faults),
        ]
    )


def installed_versions() -> dict[str, str]:
    """{distribution: version} of what matters to mmvit."""
    return {name: number for name in REPORTED if (number := installed_version(name))}


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def find_faults() -> Iterator[Fault]:
    """The faults of this environment, those that explain others first."""
    yield from _find_double_packages()
    yield from _find_torch_faults()
    yield from _find_missing_packages()
    yield from _find_mmcv_faults()


def describe_operators() -> str:
    """Which operators ``mmcv.ops`` has."""
    if find_spec('mmcv') is None:
        return 'none (no mmcv)'
    if file := compiled_operators():
        return f'compiled, of mmcv: {file}'
    return 'of mmvit, on torchvision (mmcv has no compiled ones)'


def compiled_operators() -> Path | None:
    """The file of mmcv's compiled operators, if it is there; it may not load."""
    mmcv = find_spec('mmcv')
    folders = (mmcv and mmcv.submodule_search_locations) or []
    files = (Path(folder, f'_ext{suffix}') for folder in folders for suffix in EXTENSION_SUFFIXES)
    return next(filter(Path.is_file, files), None)


def describe_devices() -> str:
    """The CPU's threads and the GPUs that PyTorch sees."""
    try:
        import torch  # noqa: PLC0415  it may be what is broken
    except Exception as error:
        return f'unknown, for PyTorch does not load ({_first_line(error)})'
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    quota = f', quota {cpus}' if (cpus := limited_cpus()) else ''
    cpu = f'CPU ({torch.get_num_threads()} threads of {os.cpu_count()}{quota})'
    return f'{", ".join([cpu, *gpus])}; PyTorch is built for CUDA {torch.version.cuda}'


def _find_double_packages() -> Iterator[Fault]:
    for row in SAME_FILES:
        found = [name for name in row if installed_version(name)]
        if len(found) > 1:
            yield Fault(
                f"{' and '.join(found)} are both installed and overwrite each other's files: run `pip uninstall --yes "
                f'{" ".join(found)}`, then install the one that you want.'
            )


def _find_torch_faults() -> Iterator[Fault]:
    if error := _import_error('torch'):
        yield Fault(
            f'PyTorch does not load ({error}): run `pip install --force-reinstall --no-deps torch`.', is_fatal=True
        )
        return
    import numpy as np  # noqa: PLC0415  the standard library was enough until here
    import torch  # noqa: PLC0415

    torch_version = torch.__version__.partition('+')[0]  # no index has what stands behind the +
    if find_spec('torchvision') is None:
        yield Fault(
            f'torchvision is missing: run `pip install torch=={torch_version} torchvision`.',
            is_fatal=True,
        )
        return
    if error := _import_error('torchvision'):
        yield Fault(
            f'torchvision {installed_version("torchvision")} does not match PyTorch {torch_version} ({error}): run '
            f'`pip uninstall --yes torchvision`, then `pip install torch=={torch_version} torchvision`.',
            is_fatal=True,
        )
        return
    opencv = 'opencv-python-headless' if installed_version('opencv-python-headless') else 'opencv-python'
    try:
        torch.from_numpy(np.zeros(1))
    except RuntimeError:
        yield Fault(
            f'PyTorch {torch_version} was built for NumPy 1 and cannot use NumPy {np.__version__}: run `pip install '
            f"'numpy<2' '{opencv}<4.12'`."
        )
    if torch.__version__ < '2.6':
        yield Fault(
            f'mmengine on PyTorch {torch_version} {RUNS_PICKLES}, or run `pip install --upgrade torch torchvision`.'
        )
    elif installed_version('onedl-mmengine'):
        yield Fault(f"onedl-mmengine {RUNS_PICKLES}, or use OpenMMLab's own packages.")
    cpus, threads = limited_cpus(), torch.get_num_threads()
    if cpus and threads > cpus:
        yield Fault(
            f'PyTorch uses {threads} threads, but the CPU quota of this container is {cpus}, so that threads wait for '
            f'one another: set OMP_NUM_THREADS={cpus} before Python starts.'
        )


def _find_missing_packages() -> Iterator[Fault]:
    if (error := _import_error('cv2')) and find_spec('cv2'):
        yield Fault(
            f'OpenCV does not load ({error}): run `pip uninstall --yes opencv-python opencv-python-headless`, then '
            f'`pip install opencv-python-headless`, which needs neither libGL nor glib.',
            is_fatal=True,
        )
    for module in ('mmengine', 'mmcv'):
        if find_spec(module) is None:
            yield Fault(
                f"{module} is missing: run `pip install 'mmvit[det]'` for detection, 'mmvit[seg]' for segmentation or "
                f"'mmvit[lite]' for the backbones alone.",
                is_fatal=True,
            )


def _find_mmcv_faults() -> Iterator[Fault]:
    mmcv, number = next(((name, found) for name in SAME_FILES[0] if (found := installed_version(name))), ('mmcv', '0'))
    for name in ('mmdet', 'mmsegmentation'):
        toolbox = installed_version(name)
        if toolbox and _numbers(number) >= (2, 2):
            yield Fault(f'{name} {toolbox} refuses {mmcv} {number}: run {USE_LITE}.')
    if compiled_operators() and (error := _import_error('mmcv._ext')):
        yield Fault(
            f"{mmcv}'s compiled operators do not load ({error}), for they were built for another PyTorch: build {mmcv} "
            f"anew, or use mmvit's: run {USE_LITE}."
        )


def _import_error(module: str) -> str | None:
    """Why a module cannot be imported, in one line, or None."""
    try:
        import_module(module)
    except Exception as error:  # broken binaries raise errors of many types
        return _first_line(error)
    return None


def _first_line(error: Exception) -> str:
    return f'{type(error).__name__}: {error}'.splitlines()[0]


def _numbers(number: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(map(int, re.findall(r'\d+', number)[:2]))


def is_page_asked_for() -> bool:
    """Whether ``python -m mmvit`` imports mmvit: then Python has put '-m' for the program's name."""
    return sys.argv[:1] == ['-m'] and sys.orig_argv[-len(sys.argv)].removeprefix('-m') == 'mmvit'
