import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from tiny import draw_image, tiny_config

from maws_hf import MawsViTForImageClassification
from maws_hf.data.sources import open_stream
from maws_hf.data.targets import find_labels
from maws_hf.evaluation.classification import classify, score_targets
from maws_hf.processing import EvalTransform, decode_image

NAMES = ["a", "b", "c"]


def corpus(folder, kind, labels):
    """Shards of three rows; the image of the second row is no image."""
    folder.mkdir(exist_ok=True)
    features = Features({"image": ImageFeature(), "label": kind})
    for shard in range(-(-len(labels) // 3)):
        rows = range(3 * shard, min(3 * shard + 3, len(labels)))
        images = [{"bytes": b"no image" if row == 1 else draw_image(row), "path": f"{row}.png"} for row in rows]
        content = {"image": images, "label": [labels[row] for row in rows]}
        Dataset.from_dict(content, features=features).to_parquet(folder / f"test-{shard:05d}.parquet")
    return open_stream(str(folder), split="test")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MawsViTForImageClassification(tiny_config(num_labels=3)).eval()


@pytest.mark.parametrize("workers", [0, 2])
def test_scores_are_the_models_and_what_has_no_label_or_no_image_is_left_out(model, workers, tmp_path):
    labels = [0, 1, -1, 2, 1, 0, 2]
    dataset = corpus(tmp_path, ClassLabel(names=NAMES), labels)
    transform = EvalTransform(32, "square")
    reader = find_labels(dataset.features, "label")
    found = classify(model, dataset, transform, reader, batch_size=2, num_workers=workers)
    kept = [0, 3, 4, 5, 6]
    pixels = torch.stack([transform(decode_image(draw_image(row))) for row in kept])
    expected = {labels[row]: [] for row in kept}
    for row, logits in zip(kept, model(pixels).logits, strict=True):
        expected[labels[row]].append(logits)
    assert (len(found.scores), found.skipped) == (5, 1)
    for label, logits in expected.items():  # workers hand their shards over in turn
        mine = found.scores[found.targets[:, label]]
        theirs = torch.stack(logits)
        torch.testing.assert_close(mine.sort(dim=0).values, theirs.sort(dim=0).values.detach(), rtol=0, atol=1e-6)


def test_batches_without_any_label_and_nulls_are_passed_over(model, tmp_path):
    dataset = corpus(tmp_path, ClassLabel(names=NAMES), [-1, None, -1, -1, None, 2])
    found = classify(model, dataset, EvalTransform(32), find_labels(dataset.features, "label"), batch_size=2)
    assert found.targets.tolist() == [[False, False, True]]


def test_classes_of_another_order_are_told_by_name(model, tmp_path):
    for name, names, labels in (("one", NAMES, [0, 1, 2, 2]), ("other", NAMES[::-1], [2, 1, 0, 0])):
        dataset = corpus(tmp_path / name, ClassLabel(names=names), labels)
        reader = find_labels(Features({"label": ClassLabel(names=NAMES)}), "label")
        found = classify(model, dataset, EvalTransform(32), reader)
        assert found.targets.int().argmax(dim=1).tolist() == [0, 2, 2], name


def test_a_label_that_is_no_class_is_named_with_its_image(model, tmp_path):
    dataset = corpus(tmp_path, Value("int64"), [0, 1, 7])
    reader = find_labels(dataset.features, "label", num_labels=3)
    with pytest.raises(ValueError, match=r"^2\.png: label 7 in label is not in 0\.\.2"):
        classify(model, dataset, EvalTransform(32), reader)


def test_bf16_scores_are_not_rounded_to_bfloat16(model, tmp_path):
    dataset = corpus(tmp_path, ClassLabel(names=NAMES), [0, 1, 2])
    scores = classify(model, dataset, EvalTransform(32), find_labels(dataset.features, "label"), bf16=True).scores
    assert not torch.equal(scores, scores.bfloat16().float())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_costs_its_images_and_no_others(model, workers, tmp_path):
    dataset = corpus(tmp_path, ClassLabel(names=NAMES), [0, 1, 2, 0, 1, 2])
    damaged = tmp_path / "test-00001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    reader = find_labels(dataset.features, "label")
    found = classify(model, dataset, EvalTransform(32), reader, num_workers=workers)
    assert found.targets.int().argmax(dim=1).tolist() == [0, 2]


def test_a_split_without_rows_gives_none(model, tmp_path):
    dataset = corpus(tmp_path, ClassLabel(names=NAMES), [0, 1, 2])
    found = classify(model, dataset.take(0), EvalTransform(32), find_labels(dataset.features, "label"), num_workers=2)
    assert (found.scores.shape, found.targets.shape) == ((0, 3), (0, 3))


def test_the_mode_of_the_model_comes_back(model, tmp_path):
    dataset = corpus(tmp_path, ClassLabel(names=NAMES), [0])
    model.train()
    classify(model, dataset, EvalTransform(32), find_labels(dataset.features, "label"))
    assert model.training
    model.eval()


def test_lists_of_labels_are_scored_by_average_precision(tmp_path, model):
    dataset = corpus(tmp_path, List(ClassLabel(names=NAMES)), [[0], [1], [], [0, 2], [1]])
    found = classify(model, dataset, EvalTransform(32), find_labels(dataset.features, "label"))
    assert found.targets.tolist() == [[True, False, False], [True, False, True], [False, True, False]]
    # The closed form for three images: precision at each positive, in the order of the scores.
    expected = []
    for scores, positives in zip(found.scores.T.numpy(), found.targets.T.numpy(), strict=True):
        ordered = positives[np.argsort(-scores)]
        expected.append(np.mean((np.cumsum(ordered) / np.arange(1, 4))[ordered]))
    assert score_targets(found.scores, found.targets, True)["mAP"] == pytest.approx(np.mean(expected))


def test_single_labels_are_scored_by_the_first_and_the_first_five_predictions():
    scores = torch.arange(7.0).repeat(4, 1)
    targets = torch.eye(7, dtype=torch.bool)[[6, 2, 1, 6]]
    assert score_targets(scores, targets, False) == {"top1": 0.5, "top5": 0.75}


def test_dropout_is_off_meanwhile(tmp_path):
    dataset = corpus(tmp_path, ClassLabel(names=NAMES), [0, 1, 2])
    torch.manual_seed(0)
    dropping = MawsViTForImageClassification(tiny_config(num_labels=3, hidden_dropout_prob=0.5)).train()
    reader = find_labels(dataset.features, "label")
    scores = classify(dropping, dataset, EvalTransform(32), reader).scores
    torch.testing.assert_close(scores, classify(dropping.eval(), dataset, EvalTransform(32), reader).scores)


def test_classes_that_no_image_has_are_left_out_of_the_mean():
    scores = torch.tensor([[3.0, 1.0, 0.0], [2.0, 2.0, 0.0], [1.0, 3.0, 0.0]])
    targets = torch.tensor([[True, True, False], [False, False, False], [True, True, False]])
    assert score_targets(scores, targets, True) == {"mAP": pytest.approx((1 + 2 / 3) / 2)}
