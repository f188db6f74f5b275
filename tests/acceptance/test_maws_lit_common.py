"""MawsLiTModel passes the tests that every model in transformers has to pass."""

import copy
import unittest
from unittest.mock import patch

import hf_suite
import tiny_lit
import torch
from transformers.models.auto import modeling_auto
from transformers.testing_utils import torch_device

from maws_hf import MawsLiTConfig, MawsLiTModel

hf = hf_suite.load()

TEXT = {**tiny_lit.TEXT, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
VISION = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 40,
}


class TinyModels:
    """What the common tests call a model tester: a small configuration and a batch for it."""

    def __init__(self):
        self.is_training = True
        self.batch_size, self.seq_length, self.hidden_size, self.num_hidden_layers = 4, 9, 32, 2
        self.num_attention_heads = 4

    def get_config(self):
        return MawsLiTConfig(vision_config=dict(VISION), text_config=dict(TEXT), projection_dim=16)

    def prepare_config_and_inputs_for_common(self):
        input_ids = hf.ids_tensor([self.batch_size, self.seq_length], 90) + 3  # no padding among them
        return self.get_config(), {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": hf.floats_tensor([self.batch_size, 3, 16, 16]),
        }


def with_tiny_initialisation(config):
    config = copy.deepcopy(config)
    config.vision_config.initializer_range = config.text_config.initializer_range = 1e-10
    return config


class MawsLiTTest(hf.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (MawsLiTModel,)
    test_resize_embeddings = False
    has_attentions = False
    additional_model_inputs = ["pixel_values"]
    _is_composite = True

    def setUp(self):
        self.model_tester = TinyModels()
        # The suite's own helper takes every `*_std` for a scale of random weights; `image_std` describes pixels.
        patched = patch.object(hf.modeling, "_config_zero_init", with_tiny_initialisation)
        patched.start()
        self.addCleanup(patched.stop)
        for table in ("MODEL_MAPPING_NAMES", "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES"):
            patched = patch.dict(getattr(modeling_auto, table), {MawsLiTConfig.model_type: "MawsLiTModel"})
            patched.start()
            self.addCleanup(patched.stop)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs_dict = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        return {**inputs_dict, "return_loss": True} if return_labels else inputs_dict

    def test_hidden_states_output(self):
        # As in CLIP's tests: the model has two towers, and hands out the states of each.
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        outputs = MawsLiTModel(config).to(torch_device).eval()(**inputs, output_hidden_states=True)
        self.assertEqual([state.shape[1] for state in outputs.text_model_output.hidden_states], [9, 9, 9])
        self.assertEqual([state.shape[1] for state in outputs.vision_model_output.hidden_states], [17, 17, 17])

    @unittest.skip(reason="hidden states belong to the towers; skipped by every model of two towers")
    def test_retain_grad_hidden_states_attentions(self):
        pass

    def test_config(self):
        hf.ConfigTester(
            self, config_class=MawsLiTConfig, has_text_modality=False, common_properties=["projection_dim"]
        ).run_common_tests()
