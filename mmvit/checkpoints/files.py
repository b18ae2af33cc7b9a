"""Reading checkpoint files of other people: download, check of the sha256, and loading without running their code."""

from __future__ import annotations

import pickletools
import re
import tarfile
import zipfile
from argparse import Namespace
from codecs import getincrementaldecoder
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
    """The first 8 digits of the sha256 at the end of a name, as mmengine writes them, and no date."""
    match = re.search(r'-(?!20\d\d[01]\d[0-3]\d)([0-9a-f]{8})\.\w+(\?.*)?$', source)
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
        _check_sums(path)
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


def _check_sums(path: Path) -> None:
    """Raise an error if a part of a zip is not what its checksum says. PyTorch does not look at the checksums."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        part = archive.testzip()
    if part:
        raise _BadFileError(f'is damaged ({part} does not have the checksum that it should have): fetch it again.')


def _diagnosis(path: Path, error: Exception) -> str:
    """Why a file does not load. torch's own message is cut short, because it recommends to load the file unsafely."""
    refused = _refused_object(path, error)
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
    if what := other_format(path):
        return what
    return f'is not a whole checkpoint ({type(error).__name__}: {str(error).split(". ")[0]}): fetch it again.'


def other_format(path: Path) -> str:
    """What a file is, and what to do, if it is one that people take for a checkpoint; empty if none was recognised."""
    with path.open('rb') as file:
        start = file.read(1024)
    if start[8:9] == b'{' and int.from_bytes(start[:8], 'little') < 2**32:  # the length of a header, and the header
        return '' if path.suffix == '.safetensors' else 'is a safetensors file: let its name end in .safetensors.'
    text = start.lstrip()
    if not text:
        return 'is empty: fetch it again.'
    if text.startswith(b'<'):
        return (
            'is a web page and not a checkpoint: its address is dead or asks for a password. Open the address in a '
            'browser, download the file and give its path.'
        )
    if text.startswith(b'version https://git-lfs'):
        return 'is a pointer of Git LFS and not the file that it stands for: run `git lfs pull`.'
    if start.startswith(b'\x93NUMPY') or _is_numpy_archive(path):
        return 'is a file of NumPy arrays and not a checkpoint: give a file that torch.save or safetensors wrote.'
    if _is_text(text) and not b'PK'.startswith(text[:2]):  # PK: an archive, cut short
        line = text.decode(errors='replace').splitlines()[0][:60]
        return f'is a text file and not a checkpoint, and begins with {line!r}: give the file of the weights.'
    return ''


def _is_numpy_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # it is no archive, or a damaged one, which raises errors of many types
        return False
    return bool(names) and all(name.endswith('.npy') for name in names)


def _is_text(start: bytes) -> bool:
    try:
        words = getincrementaldecoder('utf-8')().decode(start).split()  # the last letter may be cut
    except UnicodeDecodeError:
        return False
    return bool(words) and all(word.isprintable() for word in words)


def _refused_object(path: Path, error: Exception) -> str | None:
    """The object in a pickle that is refused; None if the file is not a pickle."""
    message = str(error)
    if isinstance(error, RefusedPickleError):
        return message
    if not isinstance(error, UnpicklingError) or 'unexpected EOF' in message:
        return None
    if function := re.search(r'(?:GLOBAL|Unsupported class) ([\w.]+)', message):
        return function[1]
    other = re.search(r'error:\s*(.+)', message)
    return other[1] if other and (zipfile.is_zipfile(path) or _is_pickle(path)) else None


def _is_pickle(path: Path) -> bool:
    """Whether a file begins with a complete pickle. The pickle is parsed, not run."""
    with path.open('rb') as file:
        try:
            return all(pickletools.genops(file))
        except (ValueError, MemoryError, OverflowError):  # impossible lengths raise the last two
            return False
