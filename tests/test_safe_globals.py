"""mmengine's own checkpoints load with torch's safe loading on, and code in a checkpoint still does not run."""

import os
from pickle import UnpicklingError

import numpy as np
import pytest
import torch
from hostile import Asks
from mmengine.logging import HistoryBuffer, MessageHub
from versions import needs_torch

import mmvit  # noqa: F401  (puts mmengine's classes on the allow-list)
from mmvit.environment import installed_version


@needs_torch('2.6', 'an allow-list of functions')
@pytest.mark.skipif(
    bool(installed_version('onedl-mmengine')), reason='onedl-mmengine takes its classes off the list after each load'
)
def test_message_hub_survives(tmp_path):
    hub = MessageHub.get_instance('safe-globals-test')
    hub.update_scalar('train/loss', 1.5)
    hub.update_scalar('train/loss', 2.5)
    hub.update_info('epoch', 3)
    best = [np.float64(0.5), np.float32(0.5)]  # metrics of a validation are NumPy scalars: mmdet's and mmseg's
    hub.update_info('best', best)
    torch.save({'message_hub': hub.state_dict(), 'weights': torch.ones(2)}, tmp_path / 'epoch_1.pth')
    loaded = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    buffer = loaded['message_hub']['log_scalars']['train/loss']
    assert isinstance(buffer, HistoryBuffer)
    assert (buffer.mean(), buffer.min(), buffer.current()) == (2.0, 1.5, 2.5)
    assert buffer.statistics('max') == 2.5
    assert loaded['message_hub']['runtime_info']['best'] == best


@pytest.mark.parametrize(
    'call',
    [
        Asks(getattr, HistoryBuffer, 'update'),
        Asks(getattr, HistoryBuffer, '__init__'),
        Asks(getattr, torch.Tensor, 'mean'),
        Asks(os.system, 'touch ran'),
        Asks(eval, '1'),
    ],
)
def test_everything_else_stays_refused(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'x': call}, tmp_path / 'hostile.pth')
    with pytest.raises(UnpicklingError):
        torch.load(tmp_path / 'hostile.pth', weights_only=True)
    assert not (tmp_path / 'ran').exists()
