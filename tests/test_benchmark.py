"""The benchmark tool: what it builds, counts and reports. That something is fast is no test's business."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import benchmark
import pytest
import torch
from benchmark import Ceilings, Footprint, Job, Result, Task
from commands import run
from torch import nn
from versions import needs_compiler, needs_torch

from mmvit.flops import Work
from mmvit.models import MPViT

SWIN = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'
DIGITS = 'configs/maskrcnn_mpvit_t_digits.py'
MIB = 2**20


def parse(monkeypatch, *words):
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *map(str, words)])
    return benchmark.parse_command()


class Greedy(nn.Module):
    """Fills 200 MiB on the way to a small output."""

    def forward(self, x):
        return torch.ones(200 * MIB // 4).sum() + x


class Fusing(nn.Module):
    def __init__(self):
        super().__init__()
        self.fused = False

    def fuse(self):
        fused = Fusing()
        fused.fused = True
        return fused

    def forward(self, x):
        return x


def test_options_and_defaults(monkeypatch):
    args, jobs = parse(
        monkeypatch, 'mpvit_tiny', 'mpvit_tiny@bf16', 'mpvit_tiny@fp32@compile+cp', 'timm:resnet18@fp16-amp+fuse',
        '--mode', 'eager', '--sizes', '32', '64x96', '--batch', 3,
    )  # fmt: skip
    assert args.sizes == [(32, 32), (64, 96)]
    assert [(j.name, j.dtype, j.mode, j.fuse, j.with_cp, j.batch) for j in jobs] == [
        ('mpvit_tiny', 'fp32', 'eager', False, False, 3),
        ('mpvit_tiny', 'bf16', 'eager', False, False, 3),
        ('mpvit_tiny', 'fp32', 'compile', False, True, 3),
        ('timm:resnet18', 'fp16-amp', 'eager', True, False, 3),
    ]
    assert [j.label for j in jobs] == [
        'mpvit_tiny', 'mpvit_tiny@bf16', 'mpvit_tiny@compile+cp', 'timm:resnet18@fp16-amp+fuse'
    ]  # fmt: skip
    _, (job, exception) = parse(monkeypatch, 'mpvit_tiny', 'mpvit_tiny@fp32', '--dtype', 'bf16')
    assert (job.label, exception.label) == ('mpvit_tiny@bf16', 'mpvit_tiny')


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['mpvit_smal'], 'regionvit_small_w14_peg'),  # the good names
        (['mpvit_tiny@fast'], '@bf16-amp'),
        (['mpvit_tiny@bf16@fp16'], 'contradicts'),
        (['mpvit_tiny@graph', '--device', 'cpu'], 'cuda'),
        (['mpvit_tiny', '--part', 'model'], 'needs a config'),
        (['timm:convnext_tinny'], 'convnext_tiny'),
        (['timm:resnet18+cp'], '+cp'),
        (['nowhere:model'], 'nowhere'),
        (['torch.nn:Nowhere'], 'Nowhere'),
        (['mmdet::swin/nowhere.py'], 'nowhere.py'),
        (['nowhere.py'], 'nowhere.py'),
        (['configs/_base_/schedules/adamw_1x.py'], 'no model'),
        (['mpvit_tiny', '--sizes', '64x'], '64x'),
        (['timm:resnet18', '--plot', 'x.png'], 'published AP'),
    ],
)
def test_errors_come_before_any_measurement(monkeypatch, capsys, words, message):
    with pytest.raises(SystemExit):
        parse(monkeypatch, *words)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ('name', 'widths'),
    [
        ('mpvit_tiny', [96, 176, 216, 216]),
        (DIGITS, [96, 176, 216, 216]),
        (SWIN, [96, 192, 384, 768]),
        ('timm:convnext_atto', [40, 80, 160, 320]),
    ],
)
def test_backbones_by_every_kind_of_name(name, widths):
    task = Task(Job(name, size=(64, 96)))
    (x,) = task.inputs
    assert x.shape == (1, 3, 64, 96)
    assert [out.shape[1] for out in task.model(x)] == widths
    assert not task.model.training


def test_importable_models_and_fuse():
    assert Task(Job('test_benchmark:Fusing', fuse=True)).model.fused
    assert not Task(Job('test_benchmark:Fusing')).model.fused
    with pytest.raises(ValueError, match=r'Greedy does not have'):
        Task(Job('test_benchmark:Greedy', fuse=True))


def test_fused_backbone_of_a_detector():
    model = Task(Job('configs/maskrcnn_mpvit_t.py', fuse=True, part='model', size=(64, 96))).model
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.backbone.modules())


def test_checkpointing_reaches_backbones():
    assert Task(Job('mpvit_tiny', with_cp=True)).model.stages[0].paths[0].blocks[0].with_cp
    assert Task(Job(SWIN, with_cp=True)).model.stages[0].blocks[0].with_cp
    assert not Task(Job('mpvit_tiny')).model.stages[0].paths[0].blocks[0].with_cp


@pytest.mark.parametrize(
    ('dtype', 'weights', 'output'),
    [
        ('fp32', torch.float32, torch.float32),
        ('bf16', torch.bfloat16, torch.bfloat16),
        ('bf16-amp', torch.float32, torch.bfloat16),
    ],
)
def test_dtypes(dtype, weights, output):
    task = Task(Job('test_benchmark:Linear', dtype=dtype, size=(8, 8)))
    seen = []
    task.model.register_forward_hook(lambda module, inputs, out: seen.append((inputs[0].dtype, out.dtype)))
    task.step()
    assert seen == [(weights, output)]
    assert task.model.weight.dtype == weights
    assert task.weights == (8 * 4 + 4) * weights.itemsize


def Linear():  # noqa: N802
    return nn.Linear(8, 4)


@pytest.mark.parametrize('part', ['backbone', 'model'])
def test_training_step_goes_forward_and_backward(part):
    task = Task(Job(DIGITS, size=(64, 96), batch=2, step='train', part=part))
    assert task.model.training
    reached = []
    for name, parameter in task.model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: reached.append(name))
    task.step()
    assert set(reached) == {name for name, _ in task.model.named_parameters()}
    assert all(p.grad is None for p in task.model.parameters())


def test_forward_step_keeps_no_graph():
    task = Task(Job('mpvit_tiny', size=(64, 64)))
    outs = []
    task.model.register_forward_hook(lambda module, inputs, out: outs.append(out[0]))
    task.step()
    assert not outs[0].requires_grad


def test_whole_segmentor(tmp_path):
    config = tmp_path / 'segmentor.py'
    config.write_text(
        "_base_ = 'mmseg::_base_/models/upernet_swin.py'\n"
        "default_scope = 'mmseg'\n"
        'model = dict(pretrained=None, decode_head=dict(channels=16), auxiliary_head=dict(channels=16))\n'
    )
    for step in ('forward', 'train'):
        Task(Job(str(config), size=(64, 64), batch=2, step=step, part='model')).step()


def test_whole_detector_reaches_its_mask_head():
    task = Task(Job(DIGITS, size=(64, 96), part='model'))
    shapes = []
    task.model.roi_head.mask_head.register_forward_hook(lambda module, inputs, out: shapes.append(out.shape))
    task.step()
    assert shapes
    assert 1 <= shapes[0][0] <= 100


def test_rounds_are_interleaved():
    calls = []
    values = benchmark.interleave([lambda i=i: calls.append(i) or len(calls) for i in range(3)], 20)
    rounds = [calls[i : i + 3] for i in range(0, 60, 3)]
    assert all(sorted(r) == [0, 1, 2] for r in rounds)
    assert len(set(map(tuple, rounds))) == 6  # all orders
    assert values == [[1 + i for i, call in enumerate(calls) if call == model] for model in range(3)]


def test_statistics():
    first, second = [1.0, 2.0, 4.0, 8.0], [2.0, 6.0, 8.0, 16.0]
    footprint = Footprint(weights=1, memory=2, work=Work(multiply_adds=30, traffic=70))
    result = Result(Job('x'), second, benchmark.ratios(second, first), footprint, Ceilings(gemm=100, copy=40))
    assert result.quartiles == [5.0, 7.0, 10.0]
    assert result.ratios == [2, 3, 2, 2]
    assert result.shares == pytest.approx((2 * 30 / 7 / 100, 70 / 7 / 40))
    data = result.as_dict()
    assert (data['ratio'], data['label'], data['times']) == (2, 'x', second)
    json.dumps(data)


class Failing(nn.Module):
    """Fails at the fourth forward pass; the first two are warm-up."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 4:
            raise RuntimeError('out of [luck]\nand more')
        return x


def run_main(monkeypatch, *words):
    options = ('--sizes', '8', '--threads', 1, '--device', 'cpu', '--time-only', '--min-time', 0.001, '--rounds', 3)
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *map(str, [*words, *options])])
    benchmark.main()


def test_a_failure_is_a_row_and_the_others_go_on(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit, match='1 of 2 measurements failed'):
        run_main(monkeypatch, 'test_benchmark:Fusing', 'test_benchmark:Failing', '--json', tmp_path / 'x.json')
    good, bad = json.loads((tmp_path / 'x.json').read_text())['results']
    assert (good['label'], len(good['times']), good['ratio']) == ('test_benchmark:Fusing', 3, 1)
    assert (bad['label'], bad['reason']) == ('test_benchmark:Failing', 'RuntimeError: out of [luck]')
    out = capsys.readouterr().out
    assert 'test_benchmark:Failing at 8x8 failed: RuntimeError: out of [luck]' in out
    assert [line.split('|')[-2].strip() for line in out.splitlines()[-3:-1]] == ['', 'RuntimeError: out of [luck]']


def test_without_the_first_model_there_are_no_ratios(monkeypatch, tmp_path):
    with pytest.raises(SystemExit):
        run_main(monkeypatch, 'test_benchmark:Failing', 'test_benchmark:Fusing', '--json', tmp_path / 'x.json')
    assert json.loads((tmp_path / 'x.json').read_text())['results'][1]['ratio'] is None


def test_each_round_is_printed_and_saved_when_it_ends(monkeypatch, capsys, tmp_path):
    def measure(*args):
        assert len(rounds) < 3
        path = tmp_path / 'x.json'
        rounds.append(json.loads(path.read_text())['results'][0]['times'] if path.exists() else [])
        assert capsys.readouterr().out.count(', round ') == (len(rounds) > 1)
        return 0.5

    rounds: list = []
    monkeypatch.setattr(benchmark, 'measure_seconds', measure)
    run_main(monkeypatch, 'test_benchmark:Fusing', '--json', tmp_path / 'x.json')
    assert rounds == [[], [0.5], [0.5, 0.5]]


def test_threads_fit_the_cpus_that_others_leave(monkeypatch):
    seen = []
    monkeypatch.setattr(benchmark.FittingThreads, 'fit', lambda self: 5)
    monkeypatch.setattr(benchmark, 'measure_seconds', lambda run, threads, _: seen.append(threads) or 0.5)
    run_main(monkeypatch, 'test_benchmark:Fusing', 'test_benchmark:Fusing+fit', '--threads', 1, '--time-only')
    assert sorted(seen) == [1] * (len(seen) // 2) + [5] * (len(seen) // 2)
    assert seen


@pytest.mark.parametrize('step', ['forward', 'train'])
def test_swin_in_bfloat16(step):
    Task(Job(SWIN, dtype='bf16', size=(64, 96), step=step)).step()


def test_memory_of_a_known_allocation():
    assert 199 * MIB < benchmark.peak_memory(Task(Job('test_benchmark:Greedy', size=(8, 8))).step, 'cpu') < 220 * MIB


def test_a_peak_of_the_past_does_not_count():
    torch.ones(200 * MIB // 4)
    assert benchmark.peak_memory(lambda: None, 'cpu') < 20 * MIB


@pytest.mark.slow
def test_footprints_in_fresh_processes():
    greedy, backbone = (
        benchmark.in_fresh_process(benchmark.measure_footprint, Job(name, size=(64, 64)))
        for name in ('test_benchmark:Greedy', 'mpvit_tiny')
    )
    assert 199 * MIB < greedy.memory < 230 * MIB
    assert greedy.weights == 0
    assert backbone.weights == sum(t.nbytes for t in MPViT('tiny').state_dict().values())
    assert backbone.work.multiply_adds == pytest.approx(1.64e9 * (64 / 224) ** 2, rel=0.05)


def test_seconds_are_of_one_call():
    calls = []
    seconds = benchmark.measure_seconds(lambda: calls.append(torch.ones(1000)), 1, 0.01)
    assert 0 < seconds < 0.01
    assert len(calls) >= 2


def test_profile_names_the_operators():
    table = benchmark.profile_table(Task(Job('mpvit_tiny', size=(64, 64))).step, 'cpu')
    assert 'aten::addmm' in table
    assert 'Self CPU' in table
    assert '# of Calls' in table


@pytest.fixture
def results():
    jobs = [Job('mpvit_small'), Job('mpvit_small', dtype='bf16'), Job(SWIN), Job('timm:resnet18')]
    return [
        Result(
            replace(job, size=size), [i + 1.0, i + 1.5, i + 2.0], [1.0] * 3,
            Footprint(MIB, (i + 1) * MIB, Work(10**9, 10**9)), Ceilings(1e9, 1e9),
        )
        for size in ((64, 64), (128, 128)) for i, job in enumerate(jobs)
    ]  # fmt: skip


def test_plot_against_published_ap(results):
    (axes,) = benchmark.plot_ap(results[:4], 'title').axes
    points = {c.get_label(): c[0].get_xydata()[0].tolist() for c in axes.containers}
    assert points == {
        'mpvit_small': [1500, 46.4],
        'mpvit_small@bf16': [2500, 46.4],
        'mask-rcnn_swin-t-p4-w7_fpn_1x_coco': [3500, 42.7],
    }


def test_plot_without_what_failed(results):
    time, _ = benchmark.plot_area(results[:5], 'title').axes  # of the second size, only the first model
    assert [len(line.get_xdata()) for line in time.lines] == [2, 1, 1, 1]


def test_plot_against_area(results):
    time, memory = benchmark.plot_area(results, 'title').axes
    assert [line.get_label() for line in time.lines] == [result.job.label for result in results[:4]]
    assert time.lines[1].get_xydata().tolist() == [[64 * 64, 2500], [128 * 128, 2500]]
    assert memory.lines[3].get_ydata().tolist() == [4, 4]


def test_table(results, capsys):
    benchmark.print_table(results[:2])
    *_, row, _ = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in row.split('|')[1:-1]]
    assert cells == ['mpvit_small@bf16', '64x64', '2500.0', '2250.0 - 2750.0', '1.00', '2', '1', '1.0', '80%', '40%']


@pytest.mark.slow
def test_command(tmp_path):
    out = run(
        sys.executable, 'tools/benchmark.py', 'mpvit_tiny', 'mpvit_tiny@bf16', '--sizes', '64', '64x96',
        '--rounds', 2, '--min-time', 0.01, '--threads', 1, '--profile', '--device', 'cpu',
        '--json', tmp_path / 'x.json', '--plot', tmp_path / 'x.png',
    )  # fmt: skip
    assert 'GFLOP/s' in out
    assert 'aten::addmm' in out
    data = json.loads((tmp_path / 'x.json').read_text())
    assert data['environment']['torch'] == torch.__version__
    assert [(r['label'], r['job']['size']) for r in data['results']] == [
        (label, size) for size in ([64, 64], [64, 96]) for label in ('mpvit_tiny', 'mpvit_tiny@bf16')
    ]
    assert all(len(r['times']) == 2 and r['footprint']['work']['multiply_adds'] > 1e8 for r in data['results'])
    assert data['results'][0]['ratios'] == [1, 1]
    plain, half = data['results'][:2]
    assert half['footprint']['weights'] < 0.6 * plain['footprint']['weights']
    assert (tmp_path / 'x.png').stat().st_size > 10_000


@needs_compiler
@needs_torch('2.6', '@compile')
@pytest.mark.slow
def test_compiled_model_is_compiled_and_still_counted():
    job = Job('test_benchmark:Linear', mode='compile', size=(8, 8))
    torch._dynamo.utils.counters.clear()
    Task(job).step()
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == 1
    assert benchmark.in_fresh_process(benchmark.measure_footprint, job).work.multiply_adds == 3 * 8 * 8 * 4


@pytest.mark.slow
def test_only_the_backbone_of_a_detector_is_compiled():
    torch.compiler.reset()
    task = Task(Job(DIGITS, mode='compile', size=(64, 64), part='model'))
    assert isinstance(task.model.backbone, torch._dynamo.OptimizedModule)
    assert not isinstance(task.model.rpn_head, torch._dynamo.OptimizedModule)


def test_neighbours_are_busy_and_end():
    with benchmark.neighbours(2) as processes:
        deadline = time.monotonic() + 60
        while any(cpu_ticks(process.pid) == 0 for process in processes):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert all(process.returncode is not None for process in processes)


def cpu_ticks(pid):
    """Ticks that a process has computed."""
    fields = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()
    return int(fields[11])
