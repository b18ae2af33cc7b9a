"""Other people's checkpoint files: fetched whole, compared with their sha256, read without running what is in them."""

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

from mmvit.compat import safe_globals

TIMEOUT = 30  # seconds that a server may take to answer, or to send anything more
RETRIES = 2
CONFIGS = Path(__file__).parent / '.mim/configs'  # in an installed package
if not CONFIGS.is_dir():
    CONFIGS = Path(__file__).parents[1] / 'configs'  # in a checkout


def read_checkpoint(source: str, sha256: str | None = None) -> Mapping[str, Any]:
    """Load a file on the CPU, taking nothing from it but tensors and plain containers.

    Args:
        source: Path or http(s) address of a ``.safetensors`` file, or of one that ``torch.save`` wrote (of any name).
            What comes from an address is kept in torch hub's folder (``TORCH_HOME`` moves it), one file per address.
        sha256: What the file's must be. By default, what a metafile gives for the address, or else the first digits
            that the file's name ends in (``name-0123abcd.pth``), if it does.

    Raises:
        FileNotFoundError: There is no such file.
        RuntimeError: The address does not answer, or the file is another than it should be, or not a whole checkpoint,
            or not one that is safe to load.
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
            path.unlink(missing_ok=True)  # so that the next run fetches it anew
        raise RuntimeError(f'{source} {error}') from None


@cache
def known_hashes() -> dict[str, str]:
    """{address: sha256} of the released files for which the metafiles give one."""
    models = [model for file in CONFIGS.glob('metafile_*.yml') for model in mmengine.load(file)['Models']]
    return {
        model.get('Weights') or model['Metadata']['Detectron2 Weights']: model['Metadata']['Weights SHA256']
        for model in models
        if 'Weights SHA256' in model['Metadata']
    }


class _BadFileError(Exception):
    """What is wrong with a file, in words that follow its name."""


def _existing(source: str) -> Path:
    path = Path(source).expanduser()
    if not path.is_file():
        found = 'that is a folder' if path.is_dir() else 'nothing is there'
        raise FileNotFoundError(f'no checkpoint at {source} ({found}): give the path of a downloaded file')
    return path


def _downloaded(address: str, sha256: str | None) -> Path:
    """The file of an address in the cache. It gets there as a whole, as far as its server tells, and of that hash."""
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
    """The first 8 digits of the sha256 as in mmengine's file names; 8 decimal ones are taken for a date."""
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
        with safe_globals([Namespace]):  # training programs keep their arguments in it
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except _BadFileError:
        raise
    except Exception as error:  # broken files raise errors of many types, unexpected ones too
        raise _BadFileError(_diagnosis(path, error)) from None
    if not isinstance(checkpoint, Mapping):
        raise _BadFileError(f'holds a {type(checkpoint).__name__}, not a mapping of weights')
    return checkpoint


def _refuse_programs(path: Path) -> None:
    """Raise for the two formats from which PyTorch below 2.6 runs code even where it is asked for weights only."""
    is_torchscript = zipfile.is_zipfile(path) and any(
        name.endswith('/constants.pkl') for name in zipfile.ZipFile(path).namelist()
    )
    if is_torchscript or tarfile.is_tarfile(path):
        raise _BadFileError(
            f'is refused: it is a {"TorchScript program" if is_torchscript else "tar archive"}, which could run code. '
            f'Ask its author for a safetensors file or a plain state_dict.'
        )


def _diagnosis(path: Path, error: Exception) -> str:
    """Why a file does not load. torch's own words are cut short: they recommend to load it unsafely."""
    with path.open('rb') as file:
        start = file.read(1024).lstrip()
    if not start:
        return 'is empty: fetch it again.'
    if start.startswith(b'<'):
        return (
            'is a web page and not a checkpoint: its address is dead or asks for a password. Open the address in a '
            'browser, download the file and give its path.'
        )
    asked = _asked_for(path, start, str(error)) if isinstance(error, UnpicklingError) else None
    if asked == 'argparse.Namespace':
        return (
            f"holds its training program's arguments (argparse.Namespace), which PyTorch reads safely since 2.5 and "
            f'this one, {torch.__version__}, does not: upgrade PyTorch.'
        )
    if asked:
        return (
            f'is refused, for loading it could run code that somebody put in: its pickle holds more than weights '
            f'({asked}). Ask its author for a safetensors file or a plain state_dict; or load it in a sandbox and '
            f"save there what is needed: torch.save({{'state_dict': ...}}, file)."
        )
    return f'is not a whole checkpoint ({type(error).__name__}: {str(error).split(". ")[0]}): fetch it again.'


def _asked_for(path: Path, start: bytes, message: str) -> str | None:
    """What torch met in a pickle and does not allow; None if the file is no pickle."""
    if 'unexpected EOF' in message:
        return None
    if function := re.search(r'(?:GLOBAL|Unsupported class) ([\w.]+)', message):
        return function[1]
    other = re.search(r'error:\s*(.+)', message)
    return other[1] if other and (start.startswith(b'PK') or _is_pickle(path)) else None


def _is_pickle(path: Path) -> bool:
    """Whether a file begins with a whole pickle, which is looked at and not run."""
    with path.open('rb') as file:
        try:
            return all(pickletools.genops(file))
        except (ValueError, MemoryError, OverflowError):  # the latter from lengths that no file has
            return False
