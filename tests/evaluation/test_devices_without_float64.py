"""Apple's GPUs have no float64, and raise where one is made: scores and heads do without there, or move first."""

import pytest
import torch

from maws_hf.evaluation import metrics
from maws_hf.evaluation.features import LabelledFeatures
from maws_hf.evaluation.linear_probe import PROTOCOLS, linear_probe
from maws_hf.evaluation.retrieval import retrieval_scores
from maws_hf.evaluation.zero_shot import zero_shot_accuracy


class OnAppleGPU(torch.Tensor):
    """As one there: what is computed with it is there, too, until `cpu()`, and nothing can be float64."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        if function is torch.Tensor.cpu:
            return result.as_subclass(torch.Tensor)
        if isinstance(result, cls) and result.dtype == torch.float64:
            raise TypeError("MPS has no float64")
        return result


class NamedSo(OnAppleGPU):
    """Which also says where it is; torch, here without such a device, can make nothing new on it."""

    device = torch.device("mps")


def there(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(OnAppleGPU)


GENERATOR = torch.Generator().manual_seed(0)
SCORES = torch.randn(40, 8, generator=GENERATOR)
LABELS = torch.randint(8, (40,), generator=GENERATOR)
POSITIVES = torch.randint(2, (40, 8), generator=GENERATOR, dtype=torch.bool)


def test_the_stand_in_refuses_float64_as_the_device_does():
    features = there(torch.ones(2))
    with pytest.raises(TypeError):
        (features > 0).double()
    with pytest.raises(TypeError):
        features.to(torch.float64)
    assert type(features.cpu().double()) is torch.Tensor


@pytest.mark.parametrize(
    "score",
    [
        lambda on: metrics.top_k_accuracy(on(SCORES), on(LABELS), 3),
        lambda on: metrics.mean_per_class_accuracy(on(SCORES), on(LABELS)),
        lambda on: metrics.score_classification(on(SCORES), on(LABELS)),
        lambda on: retrieval_scores(on(SCORES), on(SCORES[:8] + SCORES[1:9]), on(LABELS)),
        lambda on: zero_shot_accuracy(on(SCORES), on(SCORES[:8]), on(LABELS)).top1_per_class.tolist(),
    ],
    ids=["top k", "mean per class", "classification", "retrieval", "zero-shot"],
)
def test_scores_there_are_those_of_the_processor(score):
    assert score(there) == score(lambda tensor: tensor)


def test_average_precision_there_is_that_of_the_processor():
    found = metrics.average_precision(SCORES.as_subclass(NamedSo), POSITIVES.as_subclass(NamedSo))
    assert found.tolist() == metrics.average_precision(SCORES, POSITIVES).tolist()


def test_a_linear_probe_there_is_that_of_the_processor():
    def probe(on):
        def split(rows):
            return LabelledFeatures(on(SCORES[rows]), on(LABELS[rows]), num_classes=8)

        return linear_probe(split(slice(0, 30)), split(slice(30, 40)), PROTOCOLS["sgd"])

    found, expected = probe(there), probe(lambda tensor: tensor)
    torch.testing.assert_close(found.head.weight, expected.head.weight)
    assert found.test == expected.test
