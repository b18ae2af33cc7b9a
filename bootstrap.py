"""Set up .venv with the pinned packages, mmcv's compiled ops and this checkout. Standard library only.

    python3.11 bootstrap.py [VENV]

Every version stands in requirements.txt. mmcv is published as source only, so its wheel is built once per machine and
kept in the user's cache folder, keyed by mmcv, torch and Python version; other checkouts take it from there.
"""

import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent
REQUIREMENTS = ROOT / 'requirements.txt'
PYTHON = (3, 11)
FREE_GB = 8  # the environment takes 5.3, mmcv's build under one
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')


def main():
    venv = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / '.venv').resolve()
    check_machine(venv)
    install_pinned(venv)
    install(venv, '--no-build-isolation', '--editable', str(ROOT))
    check_environment(venv)


def check_machine(venv):
    """Stop unless this machine can build and hold the environment."""
    if sys.platform != 'linux':
        stop(f'mmvit is set up for Linux only; this is {sys.platform}.')
    if sys.version_info[:2] != PYTHON:
        stop(f'mmvit needs Python 3.11, not {platform.python_version()}: run `make PYTHON=/path/to/python3.11`.')
    if not find_spec('ensurepip'):
        stop('this Python cannot make virtual environments: install its venv module (Debian: python3.11-venv).')
    if not Path(sysconfig.get_path('include'), 'Python.h').is_file():
        stop('the headers of this Python are missing: install them (Debian: python3.11-dev).')
    if not shutil.which(os.environ.get('CXX', 'g++')):
        stop('no C++ compiler found: install g++ (it builds mmcv).')
    CACHE.mkdir(parents=True, exist_ok=True)
    if not (venv / 'bin' / 'mim').exists():
        for folder in (venv.parent, CACHE):
            free = shutil.disk_usage(folder).free / 1e9
            if free < FREE_GB:
                stop(f'{folder} has {free:.1f} GB free; the set-up needs {FREE_GB} GB there.')


def install_pinned(venv):
    """Make the environment, install every pinned package, and build mmcv unless its wheel is at hand."""
    pins = read_pins()
    if not (venv / 'bin' / 'uv').exists():
        say(f'making {venv}')
        run(sys.executable, '-m', 'venv', '--clear', venv)
        run(venv / 'bin' / 'python', '-m', 'pip', 'install', '--quiet', 'uv==' + pins['uv'])
    say(f'installing {len(pins)} pinned packages')
    with tempfile.NamedTemporaryFile('w', suffix='.txt') as listing:
        listing.writelines(f'{name}=={version}\n' for name, version in pins.items() if name != 'mmcv')
        listing.flush()
        install(venv, '--requirement', listing.name)
    install(venv, mmcv_wheel(venv, pins['mmcv']))


def mmcv_wheel(venv, version):
    """Path of an mmcv wheel with ops for this environment's torch, built if the cache has none."""
    torch, gpu = output(venv, 'import torch; print(torch.__version__, torch.cuda.is_available())').split()
    target = 'cpu'
    if gpu == 'True' or os.environ.get('FORCE_CUDA') == '1':  # FORCE_CUDA: for GPUs that this machine does not have
        target = re.sub(r'[^\w.+]+', '-', 'cuda ' + os.environ.get('TORCH_CUDA_ARCH_LIST', '')).strip('-')
    key = f'mmcv-{version}_torch-{torch}_{target}_cp{PYTHON[0]}{PYTHON[1]}_{platform.machine()}'
    shelf = CACHE / 'mmvit' / key
    shelf.mkdir(parents=True, exist_ok=True)
    with open(shelf / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second checkout waits for the first one's build
        if not list(shelf.glob('*.whl')):
            build_mmcv(venv, version, shelf)
    return next(shelf.glob('*.whl'))


def build_mmcv(venv, version, shelf):
    log = shelf / 'build.log'
    say(f"building mmcv's ops, once per machine: about 12 minutes on 2 cores; the log is {log}")
    # --no-build-isolation: an isolated build sees no torch and silently leaves the ops out.
    command = [
        venv / 'bin' / 'python', '-m', 'pip', 'wheel', '--verbose', '--no-build-isolation', '--no-deps',
        '--no-cache-dir', '--no-binary', 'mmcv', 'mmcv==' + version, '--wheel-dir',
    ]  # fmt: skip
    env = {**os.environ, 'MMCV_WITH_OPS': '1', 'PATH': f'{venv / "bin"}{os.pathsep}{os.environ["PATH"]}'}
    with tempfile.TemporaryDirectory(dir=shelf) as folder, open(log, 'w') as sink:
        build = subprocess.Popen(
            [*command, folder], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace'
        )
        for line in build.stdout or ():
            sink.write(line)
            if step := re.match(r'\s*(\[\d+/\d+\])', line):
                print('\r  compiled ' + step[1], end='', flush=True)
        print()
        if build.wait() != 0:
            stop(f'mmcv did not build; the reason stands at the end of {log}')
        wheel = next(Path(folder).glob('*.whl'))
        if not any(name.startswith('mmcv/_ext') for name in zipfile.ZipFile(wheel).namelist()):
            stop(f'mmcv was built without its compiled ops; {log} tells more')
        wheel.rename(shelf / wheel.name)


def check_environment(venv):
    """Stop unless mmcv has its ops and every pin is met."""
    try:
        output(venv, 'import mmcv._ext')
    except subprocess.CalledProcessError:
        stop(f'mmcv has no compiled ops in {venv}: delete {venv} and {CACHE / "mmvit"} and set up again.')
    listing = output(venv, 'from importlib.metadata import distributions as d\nfor i in d(): print(i.name, i.version)')
    installed = {normal(name): version for name, version in (line.split() for line in listing.splitlines())}
    unmet = [f'{n}=={v} (found {installed.get(n, "none")})' for n, v in read_pins().items() if installed.get(n) != v]
    if unmet:
        stop(f'these pins of requirements.txt are not met: {", ".join(unmet)}. Delete {venv} and set up again.')
    say(f'{venv} is ready')


def read_pins():
    """{normalised name: version} of requirements.txt."""
    return dict(re.findall(r'^([\w.-]+)==([^\s;]+)', REQUIREMENTS.read_text(), re.MULTILINE))


def install(venv, *what):
    run(venv / 'bin' / 'uv', 'pip', 'install', '--quiet', '--python', venv / 'bin' / 'python', '--no-deps', *what)


def output(venv, code):
    return subprocess.run(
        [venv / 'bin' / 'python', '-W', 'ignore', '-c', code], check=True, capture_output=True, text=True
    ).stdout.strip()


def run(*command):
    if subprocess.run(command, check=False).returncode != 0:
        stop('this command failed, see above: ' + ' '.join(map(str, command)))


def normal(name):
    return re.sub(r'[-_.]+', '-', name).lower()


def say(text):
    print('set-up: ' + text, flush=True)


def stop(sentence):
    sys.exit('set-up stopped: ' + sentence)


if __name__ == '__main__':
    main()
