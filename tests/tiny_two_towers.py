"""Small two-tower models and a tokenizer that cuts words into bytes and pairs of them."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    XLMRobertaConfig,
)

PAD, UNKNOWN, BEGIN, END = range(4)
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SPECIAL = {"bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": PAD}
VISION = {**SMALL, "image_size": 16, "patch_size": 8}
POSITIONS = 60


def tiny_tokenizer(**options) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["a photo of a red disc", "a drawing of a blue bar"], trainer)
    ends = [("<s>", BEGIN), ("</s>", END)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **options)


def tiny_two_towers(kind: str) -> PreTrainedModel:
    """`clip`, `siglip`, or `bert` and `xlm-roberta` beside a ViT; random weights, with which every token matters."""
    text = {**SMALL, **SPECIAL, "vocab_size": 300, "max_position_embeddings": POSITIONS}
    if kind == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12))
    elif kind == "siglip":
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
    else:
        text_config = {"bert": BertConfig, "xlm-roberta": XLMRobertaConfig}[kind](**text)
        vision_config = ViTConfig(**VISION)
        config = VisionTextDualEncoderConfig.from_vision_text_configs(vision_config, text_config, projection_dim=12)
        model = VisionTextDualEncoderModel(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.3)
    return model.eval()
