"""Writes a trained model as one folder: weights, config, card, metafile, and the backbone for timm."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from mmvit.checkpoints.files import read_checkpoint
from mmvit.checkpoints.loading import describe_mismatch
from mmvit.checkpoints.trained import build_model
from mmvit.checkpoints.writing import write_checkpoint
from mmvit.publishing.backbone import why_not_in_timm, write_backbone
from mmvit.publishing.card import write_card
from mmvit.publishing.licences import check_licence
from mmvit.publishing.metafile import write_metafile
from mmvit.publishing.records import read_record
from mmvit.publishing.settings import for_others


def publish(
    config: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    licence: str | None = None,
    url: str | None = None,
    results: str | Path | None = None,
) -> Path:
    """Write a trained detector or segmenter as a folder. Nothing in the checkpoint is run.

    The folder's name is the model's name. Absolute paths in the config are cut to their last part.

    Args:
        config: Path of the config that the model was trained with.
        checkpoint: Path or address of the trained model.
        out: The folder. It must not exist, or be empty.
        licence: Of the weights: an SPDX identifier such as 'CC-BY-4.0', or 'LicenseRef-NAME' for terms of your own.
        url: Address of the server's folder that will hold this folder. None: metafile.yml has relative paths.
        results: A .json file with metrics, as ``mim test`` leaves it. None: those that the training's log has for the
            checkpoint.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: There is no such file.
        FileExistsError: There is something in the folder already.
        ValueError: The licence is not known, ``url`` is no address, the config has no model or names a class that is
            not registered, or ``results`` are no metrics.
        RuntimeError: The checkpoint is damaged, not safe, or does not fit the config.
    """
    folder = Path(out).expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f'there is something in {folder} already: name a new folder with --out')
    licence = check_licence(licence)
    if url and not url.startswith(('http://', 'https://')):
        raise ValueError(f'--url {url} is no address: it begins with http:// or https://')
    trained = Config.fromfile(config)
    if 'model' not in trained:
        raise ValueError(f'{config} has no model: give the config that the model was trained with')
    loaded = read_checkpoint(str(checkpoint))
    measured = Path(results).expanduser() if results else None
    with naming_imports(config):
        model = fill(trained, loaded, f'{checkpoint} does not fit {config}')
        record = read_record(trained, loaded, Path(checkpoint).expanduser(), model, measured)
    with whole_folder(folder) as part:
        loadable = for_others(trained)
        loadable.dump(part / 'config.py')
        meta = {**record.meta, 'dataset_meta': record.dataset_meta, 'cfg': loadable.pretty_text}
        weights = write_checkpoint({'meta': meta, 'state_dict': model.state_dict()}, part / f'{folder.name}.pth')
        if not (reason := why_not_in_timm(model)):
            write_backbone(model, trained, part)
        write_metafile(part, folder.name, weights, record, licence, url)
        write_card(part, folder.name, Path(config).stem, weights, record, licence, reason)
    return folder


@contextmanager
def naming_imports(config: str | Path) -> Iterator[None]:
    """Let mmengine's KeyError of a class that is not registered say what to do."""
    try:
        yield
    except KeyError as error:
        if not (fault := re.search(r'[\w.]+ is not in the \S+ registry', str(error))):
            raise
        raise ValueError(
            f'{config}: {fault[0]}. Mend the name, or let the config import the module that has the class: '
            f"custom_imports = dict(imports=['MODULE'])"
        ) from None


def fill(config: Config, loaded: Mapping[str, Any], fault: str) -> nn.Module:
    """A config's model with the weights of a file. ``fault`` begins the message of the error if they do not fit."""
    model = build_model(config)
    weights = loaded.get('state_dict', loaded)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        is_list = str(error).startswith('Error(s) in loading')  # of all keys; a backbone says whose weights they are
        why = describe_mismatch(weights, model.state_dict()) if is_list else error
        raise RuntimeError(f'{fault}: {why}') from None
    return model


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name once it is complete. An error leaves nothing."""
    part = folder.with_name(f'{folder.name}.{os.getpid()}.part')
    part.mkdir(parents=True)
    try:
        yield part
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
