"""Gather what tools/gpu_report.sh needs on a machine that has PyTorch and a GPU but no network.

    python tools/gpu_bundle.py 3.12 2.11.0  # the versions of Python and PyTorch there

The wheels are for Linux on x86-64. They come as one archive in parts, which are easier to carry. PyTorch and NVIDIA's
packages are not among them.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

LARGEST_PART = 60_000_000  # bytes
OF_TORCH = re.compile(r'(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==')
GLIBC = range(28, 16, -1)  # 2.28 and older: what the wheels may be built for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('python', help='version of Python')
    parser.add_argument('torch', help='version of PyTorch')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/gpu/bundle'), help='default: %(default)s')
    args = parser.parse_args()
    with TemporaryDirectory() as wheels:
        download(pins(args.python, args.torch), args.python, wheels)
        for part in pack(Path(wheels), args.out):
            print(f'{part}: {part.stat().st_size / 1e6:.1f} MB')


def pins(python: str, torch: str) -> list[str]:
    """Each package as 'name==version', as they go together with this PyTorch."""
    packages = ('--extra', 'det', '--extra', 'seg', '--group', 'gpu')
    machine = ('--python-version', python, '--python-platform', f'x86_64-manylinux_2_{GLIBC.start}')
    command = (sys.executable, '-m', 'uv', 'pip', 'compile', '-', 'pyproject.toml', *packages, *machine)
    options = ('--quiet', '--no-header', '--no-annotate', '--no-emit-index-url')
    found = subprocess.run([*command, *options], input=f'torch=={torch}', stdout=subprocess.PIPE, text=True, check=True)
    return [line for line in found.stdout.splitlines() if '==' in line and not OF_TORCH.match(line)]


def download(pins: list[str], python: str, folder: str) -> None:
    platforms = [f'manylinux_2_{version}_x86_64' for version in GLIBC] + ['manylinux2014_x86_64']
    machine = ['--python-version', python, *(f'--platform={platform}' for platform in platforms)]
    options = ['--quiet', '--no-deps', '--only-binary', ':all:', '--dest', folder]
    subprocess.run([sys.executable, '-m', 'pip', 'download', *options, *machine, *pins], check=True)


def pack(folder: Path, out: Path) -> list[Path]:
    """The files of a folder as one archive in parts, so that ``cat part* | tar -x`` unpacks them."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode='w') as archive:
            for file in sorted(folder.iterdir()):
                archive.add(file, file.name)
        whole.seek(0)
        for number, part in enumerate(iter(lambda: whole.read(LARGEST_PART), b'')):
            (out / f'part{number:02}').write_bytes(part)
    return sorted(out.iterdir())


if __name__ == '__main__':
    main()
