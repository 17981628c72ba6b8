"""Training: matching and losses against hand-made values, learning on two scenes, exact resumption, what is saved."""

import copy
import itertools
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, CLIPTokenizer, Sam3Config, Sam3Model

from sam3lab.cli import main
from sam3lab.errors import UserError
from sam3lab.model.checkpoint import load_model
from sam3lab.model.tokenizer import load_tokenizer
from sam3lab.prompts import load as load_prompts
from sam3lab.scenes import grammar
from sam3lab.train import batches, curve, learner, log, loop, losses, matching, validate, vocabulary
from sam3lab.train.architecture import build, nano, spread
from sam3lab.train.learner import Learner, Settings
from sam3lab.train.publish import publish

from .conftest import SMALL

CELLS = 24
WORD_IDS = vocabulary.word_ids()
QUICK = Settings(
    steps=60, batch=2, learning_rate=2e-3, warmup=5, clip=5.0, average=0.9, precision="fp32", resolution=84
)


@pytest.fixture(scope="module")
def raw():
    content = copy.deepcopy(SMALL)
    content["text_config"] |= {"vocab_size": vocabulary.SIZE, "bos_token_id": 1022, "eos_token_id": 1023}
    return content


@pytest.fixture(scope="module")
def batch():
    return batches.upload(batches.draw(range(10, 12), WORD_IDS), "cpu", 84, CELLS, keep_masks=True)


# --- the tokenizer


@pytest.fixture(scope="module")
def tokenizer_files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    vocabulary.write(directory)
    return directory


def test_every_word_of_the_grammar_is_one_token(tokenizer_files):
    tokenizer = load_tokenizer(tokenizer_files)
    for word in grammar.WORDS:
        assert tokenizer.count(word) == 3
    assert json.loads((tokenizer_files / "tokenizer_config.json").read_text())["tokenizer_class"] == "CLIPTokenizer"


def test_training_encodes_prompts_as_the_tokenizer_does(tokenizer_files):
    prompts = [grammar.parse(t) for t in ("circle", "large striped blue star", "red heart, small dotted shape, ring")]
    for ours, theirs in zip(
        batches.encode(prompts, WORD_IDS),
        load_tokenizer(tokenizer_files).encode([grammar.text(prompt) for prompt in prompts]),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_any_text_has_tokens_and_transformers_agrees(tokenizer_files):
    ours = load_tokenizer(tokenizer_files)
    texts = ["A Cat's 3 naïve cups…", "日本", "🎉 ok", "x\ty  z", *(prompt.text for prompt in load_prompts())]
    for reader in (CLIPTokenizer, AutoTokenizer):
        theirs = reader.from_pretrained(tokenizer_files)
        assert len(theirs) == vocabulary.SIZE
        for text in texts:
            ids, mask = ours.encode([text])
            assert ids[0][mask[0]].tolist() == theirs(text).input_ids
            assert ids.max() < vocabulary.SIZE


def test_merges_are_learnt_by_count():
    assert vocabulary.merges({"aab": 3, "ab": 1, "b": 9}, 10) == [("a", "b</w>"), ("a", "ab</w>")]


# --- batches


def test_cells_average_their_pixels():
    area = batches.shares(7, 2)
    torch.testing.assert_close(area[0], torch.tensor([2, 2, 2, 1, 0, 0, 0]) / 7)
    torch.testing.assert_close(area.sum(1), torch.ones(2))


def test_a_batch_says_what_each_prompt_should_find(batch):
    assert batch.pixels.shape == (2, 3, 84, 84) and batch.ids.shape == (8, 32)
    assert batch.image_index.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    seen = batch.masks.any((2, 3))
    assert batch.relevant.any() and not (batch.relevant & ~seen[batch.image_index]).any()
    torch.testing.assert_close(batch.coverage.sum((2, 3)), batch.masks.float().sum((2, 3)) / (84 / CELLS) ** 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_come_in_order_whoever_draws_them(workers):
    stream = batches.stream(3, 2, WORD_IDS, workers)
    seeds = [next(stream)["seed"].tolist() for _ in range(3)]
    stream.close()
    assert seeds == [[6, 7], [8, 9], [10, 11]]


# --- matching


def test_giou_by_hand():
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    b = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [3.0, 0.0, 4.0, 2.0]])
    torch.testing.assert_close(matching.giou(a, b), torch.tensor([1.0, 2 / 6, -2 / 8]))


def test_matching_is_the_cheapest_of_all():
    rng = np.random.default_rng(0)
    cost, relevant = rng.normal(size=(2, 3, 5, 4)).astype(np.float32), rng.random((3, 4)) < 0.6
    relevant[0], relevant[1] = [1, 1, 1, 0], 0
    pair, slot, query = matching.assign(cost, relevant)
    assert np.array_equal(np.stack([pair, slot]), np.stack(np.nonzero(relevant)))
    for layer, row in itertools.product(range(2), range(3)):
        objects = np.flatnonzero(relevant[row])
        best = min(
            itertools.permutations(range(5), len(objects)),
            key=lambda p, layer=layer, row=row, objects=objects: cost[layer, row, list(p), objects].sum(),
        )
        assert query[layer, pair == row].tolist() == list(best)


def test_costs_prefer_the_right_box_and_the_sure_query():
    boxes = torch.tensor([[[[0.1, 0.1, 0.3, 0.3], [0.6, 0.6, 0.8, 0.8], [0.6, 0.6, 0.8, 0.8]]]])
    logits = torch.tensor([[[0.0, -3.0, 3.0]]])
    cost = matching.costs(logits, boxes, torch.tensor([[[0.6, 0.6, 0.8, 0.8]]]))
    assert cost.shape == (1, 1, 3, 1)
    assert cost.flatten().argsort().tolist() == [2, 1, 0]


def test_divergence_is_reported():
    with pytest.raises(UserError, match="diverged"):
        matching.assign(np.full((1, 1, 2, 2), np.nan, dtype=np.float32), np.ones((1, 2), dtype=bool))


# --- losses


def test_focal_by_hand():
    logits, target = torch.tensor([0.0, 0.0, 100.0]), torch.tensor([1.0, 0.5, 1.0])
    torch.testing.assert_close(losses.focal(logits, target), torch.tensor([0.25 * math.log(2), 0.0, 0.0]))
    # with a target between 0 and 1 it is least at the target
    p = torch.linspace(0.01, 0.99, 99)
    assert abs(p[losses.focal(p.logit(), torch.full_like(p, 0.3)).argmin()] - 0.3) < 0.011


def test_dice_by_hand():
    logits = torch.tensor([[50.0, -50.0, 50.0], [-50.0, -50.0, -50.0]])
    target = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(losses.dice(logits, target), torch.tensor([1 - 3 / 5, 0.0]))
    p = torch.linspace(0.01, 0.99, 99)[:, None]
    soft = losses.dice(p.logit().expand(-1, 500), torch.full((500,), 0.3))
    assert abs(p[soft.argmin(), 0] - 0.3) < 0.011


def test_terms_by_hand():
    """One image, one object, two prompts: the first asks for it, the second for nothing there."""
    target = torch.tensor([0.2, 0.2, 0.6, 0.6])
    coverage = torch.zeros(1, 1, 4, 4)
    coverage[0, 0, :2] = 1.0
    batch = batches.Batch(
        pixels=torch.zeros(1, 3, 1, 1),
        ids=torch.zeros(2, 32),
        mask=torch.zeros(2, 32),
        image_index=torch.tensor([0, 0]),
        boxes=target[None, None],
        coverage=coverage,
        relevant=torch.tensor([[True], [False]]),
    )
    boxes = torch.rand(1, 2, 3, 4)
    boxes[0, 0, 1] = target + torch.tensor([0.0, 0.0, 0.4, 0.0])  # wider: GIoU 1/2, centre 0.2 and width 0.4 off
    masks = torch.full((1, 2, 3, 4, 4), 7.0)
    masks[0, 0, 1] = 0.0
    outputs = {
        "logits": torch.zeros(1, 2, 3),
        "presence": torch.tensor([[0.0, 50.0]]),
        "boxes": boxes,
        "masks": masks,
        "semantic": torch.zeros(2, 4, 4),
    }
    terms = losses.terms(outputs, (torch.tensor([0]), torch.tensor([0]), torch.tensor([[1]])), batch)
    expected = {
        "class": 3 * 0.25 * math.log(2),  # the queries of the second prompt do not count
        "presence": (math.log(2) + 50) / 2,
        "l1": 0.6,
        "giou": 0.5,
        "mask_focal": 0.25 * math.log(2),
        "mask_dice": 1 - (2 * 4 + 1) / (4 + 8 + 1),
        "semantic": math.log(2),
        "semantic_dice": 1 - 9 / 13,
    }
    assert list(terms) == list(losses.WEIGHTS)
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, rel=1e-5), name
    assert losses.total(terms).item() == pytest.approx(sum(losses.WEIGHTS[n] * v for n, v in expected.items()))


def test_nothing_asked_for_is_no_division_by_zero(raw):
    arrays = batches.draw(range(2), WORD_IDS)
    arrays["asked"][:] = False
    model = Learner(raw, QUICK, "cpu")
    values = model.take(batches.upload(arrays, "cpu", 84, CELLS))
    assert values.isfinite().all()
    assert values[list(losses.WEIGHTS).index("l1")] == 0


# --- learning


def test_initial_boxes_cover_the_image():
    points = spread(40).sigmoid()
    assert points.min() > 0.03 and points.max() < 0.97
    assert {(int(x * 3), int(y * 3)) for x, y in points[:, :2].tolist()} == set(itertools.product(range(3), range(3)))


def test_outputs_are_those_of_inference(raw, batch):
    model = build(raw, 0, 84).eval()
    with torch.no_grad():
        ours = learner.forward(model, batch.pixels, batch.ids, batch.mask, batch.image_index)
        logits, presence, boxes, masks, semantic = model(
            batch.pixels, batch.ids, batch.mask, batch.image_index, torch.arange(8)
        )
    assert len(ours["logits"]) == 2
    torch.testing.assert_close(ours["logits"][-1], logits)
    torch.testing.assert_close(ours["presence"][-1], presence[:, 0])
    torch.testing.assert_close(ours["boxes"][-1], boxes)
    torch.testing.assert_close(ours["masks"][-1], masks)
    torch.testing.assert_close(ours["semantic"], semantic[:, 0])


def test_every_parameter_learns(raw, batch):
    model = Learner(raw, QUICK, "cpu")
    before = [p.detach().clone() for p in model.parameters]
    for _ in range(3):  # what stands behind a layer that begins at zero has no gradient in the first step
        model.take(batch)
    frozen = [
        name
        for (name, parameter), old in zip(model.model.named_parameters(), before, strict=True)
        if torch.equal(parameter, old)
    ]
    assert not frozen


def test_two_scenes_are_learnt(raw, batch):
    model = Learner(raw, QUICK, "cpu")
    weights = torch.tensor(list(losses.WEIGHTS.values()))
    values = torch.stack([model.take(batch) for _ in range(QUICK.steps)])
    assert values.isfinite().all()
    total = values[:, :-1] @ weights
    assert total[-5:].mean() < 0.6 * total[:3].mean()
    for name in ("class", "presence", "l1", "giou", "mask_dice", "semantic_dice"):
        column = values[:, list(losses.WEIGHTS).index(name)]
        assert column[-5:].mean() < 0.9 * column[:3].mean(), name


def test_autocast_stays_finite(raw, batch):
    model = Learner(raw, Settings(steps=20, batch=2, warmup=2, resolution=84), "cpu")
    assert model.precision == torch.bfloat16
    assert torch.stack([model.take(batch) for _ in range(4)]).isfinite().all()
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.model.parameters())


def test_the_learning_rate_rises_and_falls(raw):
    model = Learner(raw, Settings(steps=100, warmup=10, learning_rate=1.0, floor=0.1, resolution=84), "cpu")
    rates = []
    for model.step in range(101):
        rates.append(model.learning_rate())
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[55] == pytest.approx(0.55) and rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def run(raw, output, **options):
    return loop.train(raw, QUICK, output, log_every=1, validate_every=4, validation=2, **options)


def test_resuming_is_exact(raw, tmp_path):
    whole = run(raw, tmp_path / "whole", stop=4)
    run(raw, tmp_path / "parts", stop=2)
    parts = run(raw, tmp_path / "parts", stop=4, resume=True)
    assert parts.step == 4
    for ours, theirs in ((parts.model, whole.model), (parts.average, whole.average)):
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
    rows = [log.read(tmp_path / name / loop.LOG) for name in ("whole", "parts")]
    for a, b in zip(*rows, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}
    assert [row["step"] for row in rows[0]] == ["1", "2", "3", "4"]
    assert len(log.validations(rows[0])) == 1


def test_a_run_is_neither_overwritten_nor_mixed(raw, tmp_path):
    with pytest.raises(UserError, match="no state"):
        run(raw, tmp_path, resume=True)
    run(raw, tmp_path, stop=1)
    with pytest.raises(UserError, match="--resume"):
        run(raw, tmp_path, stop=1)
    other = Settings(**{**QUICK.__dict__, "learning_rate": 1e-4})
    with pytest.raises(UserError, match="learning_rate"):
        loop.train(raw, other, tmp_path, resume=True)
    (tmp_path / loop.STATE).write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot read"):
        run(raw, tmp_path, resume=True)


def test_a_time_limit_saves(raw, tmp_path):
    assert run(raw, tmp_path, seconds=0.0).step == 0
    assert run(raw, tmp_path, resume=True, stop=1).step == 1


def interrupt_after(step, monkeypatch):
    """Ctrl-C amid the step after this one, when a part of it is done."""
    take = Learner.take

    def interrupted(self, batch, meanwhile):
        if self.step == step:
            signal.raise_signal(signal.SIGINT)
        return take(self, batch, meanwhile)

    monkeypatch.setattr(Learner, "take", interrupted)


def test_ctrl_c_saves_a_whole_step_and_resuming_is_exact(raw, tmp_path, monkeypatch):
    whole, handler = run(raw, tmp_path / "whole", stop=3), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            run(raw, tmp_path / "parts", stop=3)
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.load(tmp_path / "parts" / loop.STATE, weights_only=True)["step"] == 2
    parts = run(raw, tmp_path / "parts", stop=3, resume=True)
    for (name, a), b in zip(parts.model.state_dict().items(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_second_ctrl_c_stops_at_once(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(Learner, "take", lambda *_: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt):
        run(raw, tmp_path)
    assert not (tmp_path / loop.STATE).exists()


def test_ctrl_c_in_a_terminal_leaves_the_workers_at_work():
    stream = batches.stream(0, 2, WORD_IDS, 1)
    next(stream)
    (worker,) = multiprocessing.active_children()
    held_back = int(re.search(r"SigBlk:\s*(\w+)", Path(f"/proc/{worker.pid}/status").read_text())[1], 16)
    assert held_back & 1 << signal.SIGINT - 1
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])  # here it is not
    os.kill(worker.pid, signal.SIGINT)
    seeds = [next(stream)["seed"].tolist() for _ in range(batches.AHEAD + 2)]
    stream.close()
    assert seeds[-1] == [10, 11]


def test_the_command_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    interrupt_after(0, monkeypatch)
    arguments = ["train", "--output", str(tmp_path), "--device", "cpu", "--batch", "1", "--workers", "0"]
    arguments += ["--resolution", "84", "--precision", "fp32"]
    assert main(arguments) == 130
    assert "interrupted; the same command with --resume goes on" in capsys.readouterr().err
    assert torch.load(tmp_path / loop.STATE, weights_only=True)["step"] == 1
    assert not (tmp_path / "sam3-nano").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--device", "tpu", "none of cpu, cuda"),
        ("--device", "cuda:x", "none of cpu, cuda"),
        ("--device", "cuda:99", "give --device cpu"),
        ("--batch", "0", "batch is 0: give at least 1"),
        ("--steps", "0", "steps is 0: give at least 1"),
        ("--stop", "0", "stop is 0: give at least 1"),
        ("--workers", "-1", "workers is -1: give at least 0"),
        ("--log-every", "0", "log-every is 0"),
        ("--learning-rate", "-1", "learning rate is -1.0: give one above 0"),
        ("--learning-rate", "nan", "learning rate is nan"),
        ("--resolution", "100", "try 98"),
        ("--limit-seconds", "nan", "limit-seconds is nan"),
        ("--limit-seconds", "1e-9", "over before the first step"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, capsys, option, value, message):
    output = tmp_path / "run"
    arguments = ["--output", str(output), "--device", "cpu", "--workers", "0", "--batch", "1", option, value]
    assert main(["train", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (output / "sam3-nano").exists() and (value == "1e-9" or not output.exists())


# --- validation


def test_scores_by_hand():
    """Three pairs: one of two objects found, one false alarm, one object with a mask of IoU 0.72."""
    presence = np.array([3.0, 2.0, 1.0])
    scores = np.array([[0.9, 0.1], [0.8, 0.1], [0.7, 0.6]])
    relevant = np.array([[1, 1], [0, 0], [0, 1]])
    iou = np.zeros((3, 2, 2))
    iou[0, 0, 0], iou[0, 1, 1], iou[2, 0, 1], iou[2, 1, 1] = 0.97, 0.9, 0.72, 0.3
    values = validate.score(presence, scores, iou, relevant)
    assert values["mask_iou"] == pytest.approx((0.97 + 0.72) / 2)
    assert values["f1_50"] == pytest.approx(2 * 2 / (4 + 3))
    # positives: 3 predictions, 3 objects; two hits up to IoU 0.70, one from 0.75 to 0.95
    assert values["pmf1"] == pytest.approx((5 * 4 / 6 + 5 * 2 / 6) / 10)
    assert values["presence_accuracy"] == pytest.approx(2 / 3)
    assert values["il_mcc"] == 0.0  # always "yes": no correlation
    assert validate.matthews(np.array([1, 1, 0, 0]) > 0, np.array([1, 1, 1, 0]) > 0) == pytest.approx(1 / math.sqrt(3))


def test_perfect_masks_score_perfectly(batch, raw):
    class Oracle(torch.nn.Module):
        def forward(self, pixels, ids, mask, image_index, text_index):
            relevant = batch.relevant
            masks = batch.masks[image_index].float() * 20 - 10
            boxes = batch.boxes[image_index]
            presence = relevant.any(1, keepdim=True).float() * 20 - 10
            return relevant.float() * 20 - 10, presence, boxes, masks, None

    values = validate.score(*validate.overlaps(Oracle(), batch))
    assert values == pytest.approx(dict.fromkeys(validate.NAMES, 1.0) | {"cgf1": 100.0})


# --- what is published


@pytest.fixture(scope="module")
def published(tmp_path_factory, raw):
    directory = tmp_path_factory.mktemp("published")
    model = run(raw, directory, stop=4)
    publish(model.average, raw, QUICK, directory / loop.LOG, directory / "sam3-nano", "a test's machine")
    return model.average, directory


def test_the_checkpoint_opens_everywhere_and_agrees(published, batch):
    average, directory = published
    checkpoint = directory / "sam3-nano"
    model = load_model(checkpoint)
    reference = Sam3Model.from_pretrained(checkpoint).eval()
    assert {p.dtype for p in reference.parameters()} == {torch.float32}
    for name, parameter in model.state_dict().items():
        torch.testing.assert_close(parameter, average.state_dict()[name].half().float(), rtol=0, atol=0)
    ids, mask = load_tokenizer(checkpoint).encode(["red circle", "large star"])
    ids, mask = torch.from_numpy(ids), torch.from_numpy(mask)
    with torch.inference_mode():
        ours = model(batch.pixels, ids, mask, torch.tensor([0, 1]), torch.tensor([0, 1]))
        theirs = reference(pixel_values=batch.pixels / 127.5 - 1, input_ids=ids, attention_mask=mask.long())
    for out, name in zip(ours, ("pred_logits", "presence_logits", "pred_boxes", "pred_masks"), strict=False):
        torch.testing.assert_close(out, getattr(theirs, name), rtol=1e-4, atol=1e-4)
    assert "SHA-256" in (checkpoint / "README.md").read_text()


def test_the_card_says_what_is_in_the_log(published):
    _, directory = published
    text = (directory / "sam3-nano" / "README.md").read_text()
    last = log.validations(log.read(directory / loop.LOG))[-1]
    assert "a test's machine" in text and "| learning_rate | 0.002 |" in text
    assert f"{last['val_presence_accuracy']:.4g}" in text
    assert "| steps | 4 of a schedule of 60 |" in text


def test_publishing_again_replaces(published, raw, tmp_path):
    average, directory = published
    shutil.copytree(directory / "sam3-nano", tmp_path / "x")
    (tmp_path / "x" / "old").touch()
    publish(average, raw, QUICK, directory / loop.LOG, tmp_path / "x", "cpu")
    assert not (tmp_path / "x" / "old").exists()
    assert (tmp_path / "x" / "model.safetensors").read_bytes() == (
        directory / "sam3-nano" / "model.safetensors"
    ).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_curve_draws_the_log(published):
    _, directory = published
    above, below = curve.draw(directory / loop.LOG).axes
    assert [len(line.get_xdata()) for line in above.lines] == [4, 4, 4]
    assert [line.get_xdata().tolist() for line in below.lines] == [[4.0]] * 4


def test_nano_is_small_enough():
    with torch.device("meta"):
        count = sum(p.numel() for p in Sam3Model(Sam3Config(**nano())).state_dict().values())
    assert 2 * count < 9.8e6
