"""The benchmarks time what they say: every engine trains, and the straightforward way is honest code."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from benchmarks import engines, executors, gpu, memory

from ddlib import Split, accuracy, load_dataset, predict
from ddlib.cost.training_time import Setting
from ddlib.networks.backbones import build


@pytest.mark.parametrize("engine", engines.ENGINES)
def test_every_engine_trains(engine):
    nets, epoch = engines.epoch_of(Setting(shape=(8, 8), width=4, images=32, batch_size=16), engine)
    before = [p.detach().clone() for net in nets for p in net.parameters()]
    epoch()
    after = [p for net in nets for p in net.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True) if a.ndim > 1)


def test_the_straightforward_way_learns():
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(64) % 2
    images[labels == 0] //= 5
    half = torch.full((3,), 0.5)
    split = Split(images, labels, mean=half, std=half, flip_axes=(1,))
    torch.manual_seed(0)
    net = build("vgg9", 3, 2, 4)
    for _ in range(6):
        engines.straightforward([net], [(slice(None), slice(None))], split, 16)
    assert accuracy(predict(net, split), labels) > 0.9


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_benchmark_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "a GPU with CUDA is needed" in capsys.readouterr().err


def test_memory_reads_and_trains_in_both_ways(tmp_path, monkeypatch):
    monkeypatch.setattr(memory.files, "SHARE", memory.files.SHARE)  # set back afterwards
    read = memory.reading(tmp_path, 8, 16)
    assert list(read["reading"]) == ["first", "from the cache"] * 2
    trained = memory.training(tmp_path, 128, 160)
    assert list(trained["way"]) == ["memory", "files"]
    assert (trained["images/s"] > 0).all()


def test_tasks_by_name_carry_no_images():
    data, sizes = load_dataset("digits"), []
    for by_name in (True, False):
        with ThreadPoolExecutor(1) as pool:
            counting = executors.Counting(pool, pickle.dumps)
            executors.train(counting, data, by_name, per_task=1, width=4, epochs=1)
        sizes.append(max(counting.bytes))
    assert len(counting.bytes) == 4
    assert sizes[1] - sizes[0] > data.train.images.nbytes > sizes[0]
