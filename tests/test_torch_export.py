"""torch.export with open sizes, and AOTInductor."""

import pytest
import torch
from families import FAMILIES
from versions import needs_compiler, needs_torch

pytestmark = needs_torch('2.13', 'torch.export with open sizes')
# PyTorch 2.1 does not know it.
DYNAMIC = getattr(getattr(torch.export, 'Dim', None), 'DYNAMIC', None)
EXAMPLE = (480, 640)
SIZES = ((333, 501), (71, 1000))  # odd ones, which were not exported
OPTIONS = {  # one block a stage
    'mpvit': dict(
        arch=dict(embed_dims=(16, 16, 24, 24), num_layers=(1,) * 4, num_paths=(2, 1, 1, 1), mlp_ratio=1),
    ),
    'pyramid_tnt': dict(
        arch=dict(
            inner_dims=(4, 4, 8, 8),
            outer_dims=(16, 16, 32, 32),
            inner_heads=(1, 1, 2, 2),
            outer_heads=(2, 2, 4, 4),
            depths=(1,) * 4,
            img_size=64,
        ),
    ),
    # Four stages take minutes. Their program holds where the last one has at least two windows each way.
    'regionvit': dict(
        arch=next(family for family in FAMILIES if family.name == 'regionvit').shallow, out_indices=(0, 1)
    ),
}


@pytest.fixture(scope='module', params=FAMILIES, ids=lambda family: family.key)
def exported(request):
    """A backbone of each family, and its program with open height and width."""
    model = request.param.build(**OPTIONS[request.param.name]).eval().requires_grad_(False)
    program = torch.export.export(
        model,
        (torch.randn(1, 3, *EXAMPLE),),
        dynamic_shapes=({2: DYNAMIC, 3: DYNAMIC},),
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    return model, program


@pytest.mark.slow
def test_program_takes_other_sizes(exported):
    model, program = exported
    compare(program.module(), model)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize('exported', [FAMILIES[0]], ids=lambda family: family.key, indirect=True)
def test_program_compiles_ahead_of_time(exported, tmp_path):
    import torch._inductor  # noqa: PLC0415  PyTorch 2.1 lacks what is called here

    model, program = exported
    quick = {'aot_inductor.compile_wrapper_opt_level': 'O0'}  # the code around the kernels, which takes longest
    file = str(tmp_path / 'backbone.pt2')
    path = torch._inductor.aoti_compile_and_package(program, package_path=file, inductor_configs=quick)
    compare(torch._inductor.aoti_load_package(path), model)


def compare(program, model):
    """A program gives what the model gives, at other sizes than that of the example."""
    for size in SIZES:
        x = torch.randn(1, 3, *size)
        for found, expected in zip(program(x), model(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
