"""Other people's files: what is broken or hostile is refused in words, what is odd loads right, downloads are whole."""

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
import threading
from argparse import Namespace
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from families import FAMILIES
from hostile import WRITERS, Asks, in_a_new_zip

from mmvit.checkpoints import files
from mmvit.checkpoints.files import read_checkpoint
from mmvit.models.base import Backbone

WEIGHTS = {'a.weight': torch.arange(60.0).reshape(4, 15), 'b.bias': torch.tensor([7, 8])}


def is_weights(loaded) -> bool:
    return loaded.keys() == WEIGHTS.keys() and all(torch.equal(loaded[k], WEIGHTS[k]) for k in WEIGHTS)


def save(path: Path, weights=WEIGHTS) -> Path:
    """In safetensors' format, in torch's old one (for ``old.pth``) or in its new one."""
    if path.suffix == '.safetensors':
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=path.name != 'old.pth')
    return path


FORMATS = ('new.pth', 'old.pth', 'weights.safetensors')


@pytest.fixture(scope='module')
def official() -> dict[str, torch.Tensor]:
    return FAMILIES[0].official('tiny')


def initialised(path: Path | str, family=FAMILIES[0], **options) -> Backbone:
    """A backbone that starts from this file, as a config builds it."""
    weights = dict(type='mmvit.OfficialWeights', checkpoint=str(path), **options)
    model = family.cls(family.smallest, init_cfg=weights, **family.classification)
    model.init_weights()
    return model


def equal(model: Backbone, official: dict[str, torch.Tensor]) -> bool:
    """Whether a model has exactly these weights, rounded to its own types."""
    expected = model.official_layout.rename(model.official_layout.backbone_weights(official))
    loaded = model.state_dict()
    return loaded.keys() == expected.keys() and all(
        torch.equal(loaded[k], v.to(loaded[k].dtype)) for k, v in expected.items()
    )


# Hostile files.


SHELL = Asks(os.system, 'touch ran')
PYTHON = Asks(exec, "open('ran', 'w').close()")


@pytest.mark.parametrize('call', [SHELL, PYTHON], ids=['shell', 'python'])
@pytest.mark.parametrize(('write', 'unsafe'), WRITERS)
def test_code_in_a_file_does_not_run(call, write, unsafe, tmp_path, monkeypatch, official):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')  # whatever the user told torch
    hostile = tmp_path / 'hostile.pth'
    write({'model': {'stem.0.conv.weight': torch.ones(1)}, 'epoch': call}, hostile)
    with pytest.raises(RuntimeError, match='refused.*run code.*safetensors.*sandbox') as error:
        initialised(hostile)
    assert 'hostile.pth' in str(error.value)
    assert 'weights_only' not in str(error.value)  # torch's advice to load it all the same
    assert not Path('ran').exists()
    unsafe(hostile)
    assert Path('ran').exists()  # it is hostile indeed


def test_the_refused_function_is_named(tmp_path):
    in_a_new_zip(SHELL, tmp_path / 'hostile.pth')
    with pytest.raises(RuntimeError, match='posix.system'):
        read_checkpoint(str(tmp_path / 'hostile.pth'))


def test_a_pickled_model_is_refused(tmp_path):
    torch.save({'model': torch.nn.Linear(1, 1)}, tmp_path / 'model.pth')
    with pytest.raises(RuntimeError, match=r'refused.*torch\.nn\.modules\.linear\.Linear'):
        read_checkpoint(str(tmp_path / 'model.pth'))


def test_arguments_of_a_training_program_are_harmless(tmp_path, official):
    path = save(tmp_path / 'new.pth', {'model': official, 'args': Namespace(lr=0.1), 'epoch': 3})
    if torch.__version__ >= '2.5':
        assert equal(initialised(path), official)
    else:
        with pytest.raises(RuntimeError, match='reads safely since 2.5 .* upgrade PyTorch'):
            read_checkpoint(str(path))


# Broken files.


@pytest.mark.parametrize('name', FORMATS)
def test_a_file_cut_anywhere_is_no_file(name, tmp_path):
    path = save(tmp_path / name)
    whole = path.read_bytes()
    assert is_weights(read_checkpoint(str(path)))
    for length in [*range(64), *range(64, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        # Cut in the name of a function, an old file seems to ask for another one.
        with pytest.raises(RuntimeError, match=f'{name} is (not a whole checkpoint|empty|refused.*torch)'):
            read_checkpoint(str(path))


@pytest.mark.parametrize('name', FORMATS)
def test_half_an_official_file_changes_nothing(name, tmp_path, official):
    path = save(tmp_path / name, official)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    model = FAMILIES[0].cls('tiny')
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError, match='not a whole checkpoint'):
        model.load_official(str(path))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def entry(start: int, end: int, shape: list[int] | None = None) -> dict:
    return {'dtype': 'F32', 'shape': shape or [(end - start) // 4], 'data_offsets': [start, end]}


def safetensors_file(header: dict | str, data: bytes, length: int | None = None) -> bytes:
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, 'little') + text + data


BROKEN_SAFETENSORS = {
    'absurd length': safetensors_file({'a': entry(0, 8)}, bytes(8), length=2**63),
    'huge length': safetensors_file({'a': entry(0, 8)}, bytes(8), length=10**12),
    'length beyond the end': safetensors_file({'a': entry(0, 8)}, bytes(8), length=10**6),
    'overlap': safetensors_file({'a': entry(0, 8), 'b': entry(4, 12)}, bytes(12)),
    'same bytes': safetensors_file({'a': entry(0, 8), 'b': entry(0, 8)}, bytes(8)),
    'one name twice': safetensors_file(
        f'{{"a": {json.dumps(entry(0, 8))}, "a": {json.dumps(entry(8, 16))}}}', bytes(16)
    ),
    'too large': safetensors_file({'a': entry(0, 2**42, shape=[2**40])}, bytes(16)),
    'overflow': safetensors_file({'a': entry(0, 8, shape=[2**62, 4])}, bytes(8)),
    'surplus': safetensors_file({'a': entry(0, 8)}, bytes(16)),
    'no mapping': safetensors_file('[]', b''),
    'pickle': pickle.dumps({'x': SHELL}),
}


@pytest.mark.parametrize('content', BROKEN_SAFETENSORS.values(), ids=BROKEN_SAFETENSORS)
def test_broken_safetensors(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('broken.safetensors').write_bytes(content)
    with pytest.raises(RuntimeError, match='not a whole checkpoint'):
        initialised('broken.safetensors')
    assert not Path('ran').exists()


def test_a_header_whose_length_looks_like_a_web_page(tmp_path):
    header = json.dumps({'a': entry(0, 8)}).ljust(0x3C20)
    (tmp_path / 'odd.safetensors').write_bytes(safetensors_file(header, bytes(8)))
    assert (tmp_path / 'odd.safetensors').read_bytes().startswith(b' <')
    assert read_checkpoint(str(tmp_path / 'odd.safetensors')).keys() == {'a'}
    assert files.other_format(tmp_path / 'odd.safetensors') == ''


@pytest.mark.parametrize('name', ['page.pth', 'page.safetensors'])
def test_a_web_page_is_recognised(name, tmp_path):
    (tmp_path / name).write_text('\n<!DOCTYPE html>\n<html><body>This link is no more.</body></html>')
    with pytest.raises(RuntimeError, match=f'{name} is a web page.*dead.*browser'):
        initialised(tmp_path / name)


def numpy_archive(path):
    with path.open('wb') as file:  # savez would add its ending to the name
        np.savez(file, weight=np.ones(3))


OTHER_FORMATS = {
    'is empty': lambda path: path.write_bytes(b'\n'),
    "is a text file .* begins with 'Zurück in 5 Minuten'": lambda path: path.write_text('Zurück in 5 Minuten\n' * 99),
    'is a pointer of Git LFS': lambda path: path.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:1'),
    'is a file of NumPy arrays': numpy_archive,
    'is a file of NumPy arrays and': lambda path: np.save(path.open('wb'), np.ones(3)),
    'is a safetensors file: let its name end': lambda path: path.write_bytes(safetensors.torch.save(WEIGHTS)),
}


@pytest.mark.parametrize('what', OTHER_FORMATS)
def test_other_formats_are_recognised(what, tmp_path):
    OTHER_FORMATS[what](tmp_path / 'weights.pth')
    with pytest.raises(RuntimeError, match=f'weights.pth {what}'):
        initialised(tmp_path / 'weights.pth')


def test_not_a_checkpoint(tmp_path):
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(RuntimeError, match='list.pth holds a list, not a mapping'):
        read_checkpoint(str(tmp_path / 'list.pth'))


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.pth .nothing is there.*give the path'):
        initialised(tmp_path / 'nowhere.pth')
    with pytest.raises(FileNotFoundError, match='a folder'):
        initialised(tmp_path)


# Odd files.


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_load_as_the_models(family, dtype, tmp_path):
    official = family.official(family.smallest)
    converted = {k: v.to(dtype) if v.is_floating_point() else v for k, v in official.items()}
    model = initialised(save(tmp_path / 'weights.safetensors', converted), family)
    assert {v.dtype for v in model.parameters()} == {torch.float32}
    assert equal(model, converted)


def test_quantised_weights_are_refused(tmp_path, official):
    key = next(k for k in official if k.endswith('fc1.weight'))
    path = save(tmp_path / 'new.pth', {**official, key: official[key].to(torch.int8)})
    with pytest.raises(ValueError, match='whole numbers.*fc1.weight'):
        initialised(path)


@pytest.mark.parametrize('name', FORMATS[:2])
def test_strides_and_shared_storage_do_not_matter(name, tmp_path, official):
    odd = {k: v.transpose(0, 1).contiguous().transpose(0, 1) if v.ndim == 4 else v for k, v in official.items()}
    twins = [k for k, v in odd.items() if k.endswith('running_mean') and len(v) == 64][:2]
    odd |= zip(twins, torch.arange(128.0).chunk(2), strict=True)
    assert odd[twins[0]].untyped_storage().data_ptr() == odd[twins[1]].untyped_storage().data_ptr()
    assert not all(v.is_contiguous() for v in odd.values())
    model = initialised(save(tmp_path / name, {'model': odd}))
    assert equal(model, odd)
    pointers = [v.untyped_storage().data_ptr() for v in model.state_dict().values()]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize('name', FORMATS[:2])
def test_files_saved_on_a_gpu(name, tmp_path, official, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, 'location_tag', lambda storage: 'cuda:0')
        path = save(tmp_path / name, {'model': official})
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, UnpicklingError), match='CUDA'):
            torch.load(path, weights_only=True)
    assert {v.device.type for v in read_checkpoint(str(path))['model'].values()} == {'cpu'}
    assert equal(initialised(path), official)


def test_formats_that_can_hold_a_program_are_refused(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / 'program.pth')
    with pytest.raises(RuntimeError, match='program.pth is refused: it is a TorchScript program'):
        read_checkpoint(str(tmp_path / 'program.pth'))
    with tarfile.open(tmp_path / 'old.pth', 'w') as archive:
        archive.add(__file__, 'storages')
    with pytest.raises(RuntimeError, match='old.pth is refused: it is a tar archive'):
        read_checkpoint(str(tmp_path / 'old.pth'))


# The sha256 of a file.


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_sha256_of_a_local_file(tmp_path, official):
    path = save(tmp_path / 'new.pth', official)
    right = sha256_of(path.read_bytes())
    assert equal(initialised(path, sha256=right), official)
    assert equal(initialised(path, sha256=right.upper()), official)
    with pytest.raises(RuntimeError, match=f'new.pth is not the file.*{right}, not {"0" * 64}'):
        initialised(path, sha256='0' * 64)


def test_hash_at_the_end_of_a_name(tmp_path):
    path = save(tmp_path / 'new.pth')
    digits = sha256_of(path.read_bytes())[:8]
    for name, fits in [
        (digits, True),
        ('0badcafe', False),
        ('20220318', True),
        ('83533544', False),
        ('0badcafe0', True),
    ]:
        named = path.rename(tmp_path / f'mpvit-{name}.pth')
        if fits:
            assert is_weights(read_checkpoint(str(named)))
        else:
            with pytest.raises(RuntimeError, match=f'is not the file that it should be.*not {name}'):
                read_checkpoint(str(named))
        path = named


# Downloads. An answer takes the server's handler of one request; these write a status, headers and a body.


class Server:
    """Gives the n-th request the n-th of its answers, and all further ones the last."""

    def __init__(self, *answers: Callable):
        self.requests: list[str] = []
        self.half_sent = threading.Event()
        self.released = threading.Event()  # ends what stalls
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.requests.append(self.path)
                answers[min(len(server.requests), len(answers)) - 1](self, server)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.address = f'http://127.0.0.1:{self.http.server_port}/weights.pth'
        threading.Thread(target=self.http.serve_forever, args=[0.01], daemon=True).start()

    def close(self):
        self.released.set()
        self.http.shutdown()
        self.http.server_close()


def respond(handler, body: bytes, length: int | None = None, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    if length is not None:
        handler.send_header('Content-Length', str(length))
    handler.end_headers()
    handler.wfile.write(body)
    handler.wfile.flush()


def whole(data: bytes) -> Callable:
    return lambda handler, server: respond(handler, data, len(data))


def cut(data: bytes) -> Callable:
    return lambda handler, server: respond(handler, data[: len(data) // 2], len(data))


def cut_without_a_length(data: bytes) -> Callable:
    return lambda handler, server: respond(handler, data[: len(data) // 2])


def said_too_short(data: bytes) -> Callable:
    return lambda handler, server: respond(handler, data, len(data) // 2)


def said_too_long(data: bytes) -> Callable:
    return lambda handler, server: respond(handler, data, len(data) + 1)


def stalled(data: bytes) -> Callable:
    def answer(handler, server):
        cut(data)(handler, server)
        server.half_sent.set()
        server.released.wait(60)

    return answer


def silent(data: bytes) -> Callable:
    return lambda handler, server: server.released.wait(60)


def web_page(data: bytes) -> Callable:
    return whole(b'<!doctype html><html>Sign in to download</html>')


def error(status: int) -> Callable:
    return lambda handler, server: respond(handler, b'', 0, status)


@pytest.fixture
def torch_home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch_home'))
    return tmp_path / 'torch_home'


@pytest.fixture
def cache(torch_home, monkeypatch) -> Path:
    """The folder of downloads. Nobody waits long."""
    monkeypatch.setattr(files, 'TIMEOUT', 0.3)
    monkeypatch.setattr('pooch.core.time', SimpleNamespace(sleep=lambda seconds: None))
    return torch_home / 'hub/checkpoints'


@pytest.fixture
def serve(request):
    def start(*answers: Callable) -> Server:
        server = Server(*answers)
        request.addfinalizer(server.close)
        return server

    return start


@pytest.fixture
def data(tmp_path) -> bytes:
    return save(tmp_path / 'new.pth').read_bytes()


def test_a_download_is_kept(serve, data, cache):
    server = serve(whole(data))
    assert is_weights(read_checkpoint(server.address))
    assert is_weights(read_checkpoint(server.address))
    assert server.requests == ['/weights.pth']
    (kept,) = cache.iterdir()
    assert kept.name.endswith('-weights.pth')
    assert kept.read_bytes() == data


def test_an_official_file_comes_from_its_address(serve, cache, tmp_path, official):
    data = save(tmp_path / 'weights.safetensors', official).read_bytes()
    server = serve(whole(data))
    address = server.address.replace('.pth', '.safetensors?download=true')
    assert equal(initialised(address, sha256=sha256_of(data)), official)


def test_equal_names_at_two_addresses(serve, data, cache, tmp_path):
    other = save(tmp_path / 'old.pth', {'x': torch.ones(1)}).read_bytes()
    first, second = serve(whole(data)), serve(whole(other))
    for _ in range(2):
        assert is_weights(read_checkpoint(first.address))
        assert read_checkpoint(second.address).keys() == {'x'}
    third = first.address.replace('weights.pth', 'elsewhere/weights.pth')
    assert is_weights(read_checkpoint(third))
    assert first.requests == ['/weights.pth', '/elsewhere/weights.pth']


@pytest.mark.parametrize(
    ('answer', 'message'),
    [
        (cut, 'cannot fetch.*give the path of the file'),
        (said_too_long, 'cannot fetch'),
        (stalled, 'cannot fetch.*timed out'),
        (silent, 'cannot fetch.*timed out'),
        (cut_without_a_length, 'not a whole checkpoint'),
        (said_too_short, 'not a whole checkpoint'),
        (web_page, 'is a web page'),
    ],
)
def test_a_failed_download_is_told_and_forgotten(answer, message, serve, data, cache):
    bad, good = [answer(data)] * (1 + files.RETRIES), whole(data)
    server = serve(*(bad if message.startswith('cannot') else bad[:1]), good)
    with pytest.raises(RuntimeError, match=message) as raised:
        read_checkpoint(server.address)
    assert server.address in str(raised.value)
    assert list(cache.iterdir()) == []
    assert is_weights(read_checkpoint(server.address))


def test_a_download_is_tried_again(serve, data, cache):
    server = serve(error(503), cut(data), whole(data))
    assert is_weights(read_checkpoint(server.address))
    assert len(server.requests) == 3


def test_an_address_without_a_file(serve, cache):
    with pytest.raises(RuntimeError, match='cannot fetch.*404'):
        read_checkpoint(serve(error(404)).address)
    with pytest.raises(RuntimeError, match='cannot fetch.*refused'):
        read_checkpoint('http://127.0.0.1:9/weights.pth')  # where nobody listens


def test_redirects_are_followed(serve, data, cache):
    other = serve(whole(data))
    server = serve(lambda handler, _: respond(handler, b'', 0, 302, Location=other.address))
    assert is_weights(read_checkpoint(server.address))
    endless = serve(lambda handler, server: respond(handler, b'', 0, 302, Location=server.address))
    with pytest.raises(RuntimeError, match='cannot fetch.*redirects'):
        read_checkpoint(endless.address)


def test_other_bytes_than_the_sha256_says(serve, data, cache):
    other = data.replace(b'bias', b'mean')
    assert other != data
    server = serve(whole(other))
    with pytest.raises(RuntimeError, match=f'cannot fetch.*expected {sha256_of(data)} but got {sha256_of(other)}'):
        initialised(server.address, sha256=sha256_of(data))
    assert len(server.requests) == 1 + files.RETRIES
    assert list(cache.iterdir()) == []
    assert is_weights(read_checkpoint(serve(whole(other), whole(data)).address, sha256_of(data)))


def test_a_kept_file_of_another_sha256_is_replaced(serve, data, cache, tmp_path):
    old = save(tmp_path / 'old.pth', {'x': torch.ones(1)}).read_bytes()
    server = serve(whole(old), whole(data))
    assert read_checkpoint(server.address).keys() == {'x'}
    assert is_weights(read_checkpoint(server.address, sha256_of(data)))


def test_other_bytes_than_the_name_says(serve, data, cache):
    address = serve(whole(data)).address
    with pytest.raises(RuntimeError, match='is not the file that it should be.*not 0badcafe'):
        read_checkpoint(address.replace('.pth', '-0badcafe.pth?dl=1'))
    assert list(cache.iterdir()) == []
    assert is_weights(read_checkpoint(address.replace('.pth', f'-{sha256_of(data)[:8]}.pth')))


@pytest.fixture
def metafile(tmp_path, monkeypatch):
    """Writes the only metafile that there is."""

    def write(*models: dict) -> None:
        (tmp_path / 'metafile_mine.yml').write_text(yaml.safe_dump({'Models': models}))

    monkeypatch.setattr(files, 'CONFIGS', tmp_path)
    files.known_hashes.cache_clear()
    yield write
    files.known_hashes.cache_clear()


def test_sha256_of_a_metafile(serve, data, cache, metafile):
    right, wrong = serve(whole(data)), serve(whole(data))
    metafile(
        {'Name': 'right', 'Metadata': {'Weights SHA256': sha256_of(data)}, 'Weights': right.address},
        {'Name': 'wrong', 'Metadata': {'Weights SHA256': '0' * 64, 'Detectron2 Weights': wrong.address}},
    )
    assert is_weights(read_checkpoint(right.address))
    with pytest.raises(RuntimeError, match='does not match'):
        read_checkpoint(wrong.address)
    assert is_weights(read_checkpoint(wrong.address, sha256_of(data)))  # what you say counts


def test_addresses_and_licences_in_the_metafiles():
    texts = [yaml.safe_load(path.read_text()) for path in files.CONFIGS.glob('metafile_*.yml')]
    assert len(texts) == len(FAMILIES)
    assert all('Weights License' in text['Collections'][0]['Metadata'] for text in texts)
    entries = [model for text in texts for model in text['Models']]
    classifiers = [entry for entry in entries if 'Config' not in entry]
    assert all('Weights' in entry or 'Weights Status' in entry['Metadata'] for entry in classifiers)
    addresses = [entry.get('Weights') or entry['Metadata'].get('Detectron2 Weights') for entry in entries]
    found = [address for address in addresses if address]
    assert len(found) == len(set(found)) == 4 + 3 + 2 * 2 * 7  # MPViT's, RegionViT's, RegionViT's detectors
    assert all(address.startswith('https://') for address in found)
    hashes = files.known_hashes()
    assert hashes.keys() <= set(found)
    assert all(re.fullmatch('[0-9a-f]{64}', digits) for digits in hashes.values())


def reader(address: str) -> subprocess.Popen:
    """Another process, begun, which reads this address."""
    # Not a fork: it would share the progress bar's lock, which a killed process never gives back.
    code = 'import sys; from mmvit.checkpoints.files import read_checkpoint; read_checkpoint(sys.argv[1])'
    return subprocess.Popen([sys.executable, '-c', code, address])


def test_a_killed_download_is_not_taken_for_whole(serve, data, torch_home):
    server = serve(stalled(data), whole(data))
    with reader(server.address) as process:
        assert server.half_sent.wait(120)
        process.kill()
    assert is_weights(read_checkpoint(server.address))
    assert len(server.requests) == 2


def test_two_processes_download_at_once(serve, data, torch_home):
    both = threading.Barrier(2, timeout=120)  # each has asked before any is answered
    asked = threading.Event()

    def answer(handler, server):
        asked.set()
        both.wait()
        whole(data)(handler, server)

    server = serve(answer)
    with reader(server.address) as other:
        assert asked.wait(120)
        assert is_weights(read_checkpoint(server.address))
    assert other.returncode == 0
    (kept,) = (torch_home / 'hub/checkpoints').iterdir()
    assert kept.read_bytes() == data


def test_a_length_that_no_file_has(tmp_path):
    path = tmp_path / 'weights.pth'
    path.write_bytes(b'\x8e' + (2**40).to_bytes(8, 'little'))  # pickle's opcode for so many bytes
    with pytest.raises(RuntimeError, match='is not a whole checkpoint'):
        read_checkpoint(str(path))
