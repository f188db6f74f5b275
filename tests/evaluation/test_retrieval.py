"""Recall, against counting by hand."""

import pytest
import torch
from tiny_lit import tiny_lit

from maws_hf.evaluation.retrieval import caption_retrieval, retrieval_scores


def recall_by_hand(similarity, right, k):
    """Share of the queries of which one of the first k candidates is right; equals stay in their order."""
    found = 0
    for query, values in enumerate(similarity.tolist()):
        ranked = sorted(range(len(values)), key=lambda candidate: (-values[candidate], candidate))
        found += any(right(query, candidate) for candidate in ranked[:k])
    return found / len(similarity)


@pytest.mark.parametrize(("seed", "ties"), [(seed, ties) for seed in range(5) for ties in (False, True)])
def test_recall_is_what_a_plain_loop_counts(seed, ties):
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randn(7, 4, generator=generator)
    text_of_image = torch.cat([torch.arange(7), torch.randint(7, (13,), generator=generator)])  # several images each
    images = texts[text_of_image] + torch.randn(20, 4, generator=generator)
    if ties:
        texts, images = texts.sign(), images.sign()
    scores = retrieval_scores(images, texts, text_of_image, ks=(1, 2, 5))
    similarity = images @ texts.T
    for k in (1, 2, 5):
        to_text = recall_by_hand(similarity, lambda image, text: text_of_image[image] == text, k)
        to_image = recall_by_hand(similarity.T, lambda text, image: text_of_image[image] == text, k)
        assert scores["image_to_text"][f"recall@{k}"] == pytest.approx(to_text)
        assert scores["text_to_image"][f"recall@{k}"] == pytest.approx(to_image)
    assert (scores["pairs"], scores["captions"], scores["chance@1"]) == (20, 7, 1 / 7)


def test_equal_similarities_are_no_success_for_all():
    scores = retrieval_scores(torch.ones(4, 2), torch.ones(4, 2), torch.arange(4), ks=(1, 3))
    assert scores["image_to_text"] == {"recall@1": 0.25, "recall@3": 0.75}
    assert scores["text_to_image"] == {"recall@1": 0.25, "recall@3": 0.75}


def test_more_candidates_wanted_than_there_are_is_everything():
    scores = retrieval_scores(torch.eye(2), -torch.eye(2), torch.arange(2))
    assert scores["image_to_text"] == {"recall@1": 0.0, "recall@5": 1.0}


def test_a_random_choice_succeeds_by_chance():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2000, 8, generator=generator), torch.randn(20, 8, generator=generator)
    scores = retrieval_scores(images, texts, torch.arange(2000) % 20)
    assert scores["image_to_text"]["recall@1"] == pytest.approx(scores["chance@1"], abs=0.02)  # 4 deviations


@pytest.mark.parametrize("at_once", [1, 3, 256])
def test_captions_of_a_model_are_scored_as_its_logits_say(at_once, monkeypatch):
    monkeypatch.setattr("maws_hf.evaluation.retrieval.CAPTIONS_AT_ONCE", at_once)
    torch.manual_seed(0)
    model = tiny_lit().eval()
    captions = [[0, 5, 6, 2], [0, 7, 2], [0, 5, 6, 2], [0, 8, 9, 10, 2], [0, 11, 2]]
    features = torch.randn(5, model.config.vision_config.hidden_size)
    scores = caption_retrieval(model, features, captions)
    assert (scores["pairs"], scores["captions"]) == (5, 4)  # the first and the third are the same words
    similarity = []
    for caption in (captions[0], captions[1], captions[3], captions[4]):
        outputs = model(input_ids=torch.tensor([caption]), vision_features=features)
        similarity.append(outputs.logits_per_image[:, 0] / model.logit_scale.exp())
    similarity = torch.stack(similarity, dim=1)
    own = [0, 1, 0, 2, 3]
    by_hand = recall_by_hand(similarity, lambda image, text: own[image] == text, 1)
    assert scores["image_to_text"]["recall@1"] == by_hand
    by_hand = recall_by_hand(similarity.T, lambda text, image: own[image] == text, 1)
    assert scores["text_to_image"]["recall@1"] == by_hand
