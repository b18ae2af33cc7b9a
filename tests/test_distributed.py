"""Two processes on one CPU: the same training as in one, plain and sharded, from the entry that users start."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import ENV, data_options, run, scalars

pytestmark = pytest.mark.slow

TORCHRUN = (sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', 2)
PRELUDE = """
import sys
sys.path.insert(0, 'tests')
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
torch.set_num_threads(1)
dist.init_process_group('gloo')
rank = dist.get_rank()
"""


def in_two_processes(script: str, folder: Path) -> str:
    path = folder / 'script.py'
    path.write_text(PRELUDE + script)
    return run(*TORCHRUN, path)


BACKBONES = """
from families import FAMILIES
for family in FAMILIES:
    for out_indices in ((0, 1, 2, 3), (0, 1), (1,)):
        model = DistributedDataParallel(family.build(out_indices=out_indices, drop_path_rate=0.1).train())
        for step in range(2):  # a parameter without a gradient fails at the second step
            torch.manual_seed(rank + step)
            sum(out.sum() for out in model(torch.randn(2, 3, 64, 65))).backward()
        total = torch.stack([p.grad.norm() for p in model.parameters()]).sum()
        both = [torch.zeros(()), torch.zeros(())]
        dist.all_gather(both, total)
        assert torch.allclose(both[0], both[1]), both
print('agreed')
"""


def test_no_backbone_leaves_a_parameter_unused(tmp_path):
    assert in_two_processes(BACKBONES, tmp_path).count('agreed') == 2


# RegionViT has no batch statistics and RetinaNet draws no samples; both images have the same box, for the loss counts
# the boxes of its own process only.
DETECTOR = """
import copy
from families import FAMILIES
from mmdet.registry import MODELS
from mmengine.config import Config
from mmdet.utils import register_all_modules
from samples import sample
register_all_modules()
arch = next(family for family in FAMILIES if family.name == 'regionvit').small
config = Config.fromfile('configs/retinanet_regionvit_s.py').model
config.backbone.update(arch=arch, drop_path_rate=0.0)
config.neck.in_channels = list(arch['embed_dims'][1:])
torch.manual_seed(0)
model = MODELS.build(config).train()
size = (97, 128)
images = torch.randint(256, (2, 3, *size), dtype=torch.uint8)

def step(net, images):
    data = dict(inputs=list(images), data_samples=[sample(size) for _ in images])
    losses = net(**model.data_preprocessor(data, True), mode='loss')
    loss, parts = model.parse_losses(losses)
    loss.backward()
    return torch.stack([value.detach() for value in parts.values()])

alone = copy.deepcopy(model)
expected = step(alone, images)
distributed = DistributedDataParallel(model)
found = step(distributed, images[rank : rank + 1])
dist.all_reduce(found)
torch.testing.assert_close(found / 2, expected)
for (name, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
    assert p.grad is not None, name
    scale = q.grad.abs().max().item()
    torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5 * scale + 1e-8, msg=lambda m: f'{name}: {m}')
print('agreed')
"""


def test_two_processes_equal_one_with_the_same_batch(tmp_path):
    assert in_two_processes(DETECTOR, tmp_path).count('agreed') == 2


SHARDED = """
import copy
from families import FAMILIES
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODEL_WRAPPERS
from torch.distributed.fsdp import FullyShardedDataParallel

class Toy(BaseModel):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs, data_samples=None, mode='loss'):
        return dict(loss=sum(out.square().mean() for out in self.backbone(inputs)))

wrapper = Config.fromfile('configs/maskrcnn_mpvit_b_fsdp.py').strategy.model_wrapper
for family in FAMILIES:
    model = Toy(family.build(**(dict(norm_eval=True) if family.has_batch_norm else {}))).train()
    blocks = sum(isinstance(module, family.cls.block_class) for module in model.modules())
    alone = copy.deepcopy(model)
    sharded = MODEL_WRAPPERS.build(
        copy.deepcopy(wrapper),
        default_args=dict(type='MMFullyShardedDataParallel', module=model, device_id=torch.device('cpu')),
    )
    units = sum(isinstance(module, FullyShardedDataParallel) for module in sharded.modules())
    assert units == blocks + 1 > 4, (units, blocks)
    torch.manual_seed(1)
    x = torch.randn(2, 3, 64, 97)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (alone, sharded)]
    for _ in range(2):
        one, two = alone(x)['loss'], sharded(x[rank : rank + 1])['loss']
        for loss, optimizer in zip((one, two), optimizers):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    two = two.detach() / 2
    dist.all_reduce(two)
    torch.testing.assert_close(two, one.detach(), rtol=1e-4, atol=1e-6)
    with FullyShardedDataParallel.summon_full_params(sharded):
        for p, q in zip(sharded.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)
print('agreed')
"""


def test_sharded_blocks_equal_one_process(tmp_path):
    assert in_two_processes(SHARDED, tmp_path).count('agreed') == 2


def training(digits, work_dir: Path, epochs: int) -> list[str]:
    options = [*data_options(digits), f'train_cfg.max_epochs={epochs}', 'train_dataloader.batch_size=2']
    config = 'configs/maskrcnn_regionvit_t_digits.py'
    command = [*TORCHRUN, 'tools/train.py', config, '--launcher', 'pytorch', '--work-dir', work_dir, *options]
    return list(map(str, command))


def test_two_processes_train_a_detector(digits, tmp_path):
    run(*training(digits, tmp_path, epochs=1))
    assert len(scalars(tmp_path, 'loss')) == 8  # 32 images, 4 a step
    assert (tmp_path / 'epoch_1.pth').exists()


def test_a_killed_process_ends_the_run(digits, tmp_path):
    with open(tmp_path / 'output.txt', 'w') as output:
        process = subprocess.Popen(
            training(digits, tmp_path, epochs=100),
            env=ENV,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 300
        while not scalars(tmp_path, 'loss') and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
        workers = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
        assert len(workers) == 2, (tmp_path / 'output.txt').read_text()[-3000:]
        os.kill(int(workers[1]), signal.SIGKILL)
        assert process.wait(timeout=120) != 0
        assert not any(Path(f'/proc/{worker}').exists() for worker in workers)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
