"""Reading checkpoint files of other people: download, check of the sha256, and loading without running their code."""

from __future__ import annotations

import pickletools
import re
import tarfile
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import mmengine
import pooch
import safetensors.torch
import torch
from pooch.utils import unique_file_name

from mmvit.checkpoints.array_pickles import RefusedPickleError, read_array_pickle
from mmvit.compat import safe_globals

TIMEOUT = 30  # seconds that a server may take to answer, or to send more data
RETRIES = 2
CONFIGS = Path(__file__).parents[1] / '.mim/configs'  # in an installed package
if not CONFIGS.is_dir():
    CONFIGS = Path(__file__).parents[2] / 'configs'  # in a checkout


def read_checkpoint(source: str, sha256: str | None = None) -> Mapping[str, Any]:
    """Load a file on the CPU. Only tensors, NumPy arrays and plain containers are accepted.

    Args:
        source: Path or http(s) address of a ``.safetensors`` file, of detectron2's ``.pkl`` with NumPy arrays, or of a
            file of any name that ``torch.save`` wrote. Downloads are kept in the folder of torch.hub (set
            ``TORCH_HOME`` to move it), one file per address.
        sha256: Expected sha256 of the file. The default is the one that a metafile gives for the address, or else the
            first 8 digits if the file's name ends in them (``name-0123abcd.pth``).

    Raises:
        FileNotFoundError: There is no such file.
        RuntimeError: The download failed, the sha256 is another one, or the file is damaged or not safe to load.
    """
    is_address = source.startswith(('http://', 'https://'))
    if is_address:
        sha256 = sha256 or known_hashes().get(source)
        path = _downloaded(source, sha256)
    else:
        path = _existing(source)
    try:
        _check_hash(path, sha256 or _hash_in_name(source))
        return _loaded(path)
    except _BadFileError as error:
        if is_address:
            path.unlink(missing_ok=True)  # the next run downloads it again
        raise RuntimeError(f'{source} {error}') from None


@cache
def known_hashes() -> dict[str, str]:
    """{address: sha256} of the official files whose sha256 the metafiles give."""
    models = [model for file in CONFIGS.glob('metafile_*.yml') for model in mmengine.load(file)['Models']]
    return {
        model.get('Weights') or model['Metadata']['Detectron2 Weights']: model['Metadata']['Weights SHA256']
        for model in models
        if 'Weights SHA256' in model['Metadata']
    }


class _BadFileError(Exception):
    """A file cannot be used. The message continues a sentence that begins with the file's name."""


def _existing(source: str) -> Path:
    path = Path(source).expanduser()
    if not path.is_file():
        found = 'that is a folder' if path.is_dir() else 'nothing is there'
        raise FileNotFoundError(f'no checkpoint at {source} ({found}): give the path of a downloaded file')
    return path


def _downloaded(address: str, sha256: str | None) -> Path:
    """Download a file into the cache, unless it is there, and return its path. Incomplete downloads are errors."""
    name = unique_file_name(address)
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    downloads = pooch.create(
        folder, base_url='', registry={name: sha256}, urls={name: address}, retry_if_failed=RETRIES
    )
    get = pooch.HTTPDownloader(progressbar=True, chunk_size=2**20, timeout=TIMEOUT)
    try:
        return Path(downloads.fetch(name, downloader=get))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError: another hash
        raise RuntimeError(
            f'cannot fetch {address} ({error}). Download it by other means and give the path of the file, '
            f'or drop init_cfg to train from random weights.'
        ) from error


def _hash_in_name(source: str) -> str | None:
    """The first 8 digits of the sha256 at the end of a name, as mmengine writes them. 8 decimal digits are a date."""
    match = re.search(r'-(?!\d{8})([0-9a-f]{8})\.\w+(\?.*)?$', source)
    return match and match[1]


def _check_hash(path: Path, beginning: str | None) -> None:
    if beginning and not (actual := pooch.file_hash(str(path))).startswith(beginning.lower()):
        raise _BadFileError(
            f'is not the file that it should be: its sha256 is {actual}, not {beginning}. It is damaged or another '
            f'one: fetch it again.'
        )


def _loaded(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == '.safetensors':
            return safetensors.torch.load_file(path)
        _refuse_programs(path)
        if path.suffix == '.pkl' and not zipfile.is_zipfile(path):
            checkpoint = read_array_pickle(path)
        else:
            with safe_globals([Namespace]):  # training programs store their arguments in one
                checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except _BadFileError:
        raise
    except Exception as error:  # broken files raise errors of many types
        raise _BadFileError(_diagnosis(path, error)) from None
    if not isinstance(checkpoint, Mapping):
        raise _BadFileError(f'holds a {type(checkpoint).__name__}, not a mapping of weights')
    return checkpoint


def _refuse_programs(path: Path) -> None:
    """Raise an error for two formats whose code PyTorch below 2.6 runs even with ``weights_only=True``."""
    is_torchscript = zipfile.is_zipfile(path) and any(
        name.endswith('/constants.pkl') for name in zipfile.ZipFile(path).namelist()
    )
    if is_torchscript or tarfile.is_tarfile(path):
        raise _BadFileError(
            f'is refused: it is a {"TorchScript program" if is_torchscript else "tar archive"}, which could run code. '
            f'Ask its author for a safetensors file or a plain state_dict.'
        )


def _diagnosis(path: Path, error: Exception) -> str:
    """Why a file does not load. torch's own message is cut short, because it recommends to load the file unsafely."""
    with path.open('rb') as file:
        start = file.read(1024).lstrip()
    if not start:
        return 'is empty: fetch it again.'
    if start.startswith(b'<'):
        return (
            'is a web page and not a checkpoint: its address is dead or asks for a password. Open the address in a '
            'browser, download the file and give its path.'
        )
    refused = _refused_object(path, start, error)
    if refused == 'argparse.Namespace':
        return (
            f"holds its training program's arguments (argparse.Namespace), which PyTorch reads safely since 2.5 and "
            f'this one, {torch.__version__}, does not: upgrade PyTorch.'
        )
    if refused:
        return (
            f'is refused, for loading it could run code that somebody put in: its pickle holds more than weights '
            f'({refused}). Ask its author for a safetensors file or a plain state_dict; or load it in a sandbox and '
            f"save there what is needed: torch.save({{'state_dict': ...}}, file)."
        )
    return f'is not a whole checkpoint ({type(error).__name__}: {str(error).split(". ")[0]}): fetch it again.'


def _refused_object(path: Path, start: bytes, error: Exception) -> str | None:
    """The object in a pickle that is refused; None if the file is not a pickle."""
    message = str(error)
    if isinstance(error, RefusedPickleError):
        return message
    if not isinstance(error, UnpicklingError) or 'unexpected EOF' in message:
        return None
    if function := re.search(r'(?:GLOBAL|Unsupported class) ([\w.]+)', message):
        return function[1]
    other = re.search(r'error:\s*(.+)', message)
    return other[1] if other and (start.startswith(b'PK') or _is_pickle(path)) else None


def _is_pickle(path: Path) -> bool:
    """Whether a file begins with a complete pickle. The pickle is parsed, not run."""
    with path.open('rb') as file:
        try:
            return all(pickletools.genops(file))
        except (ValueError, MemoryError, OverflowError):  # impossible lengths raise the last two
            return False
