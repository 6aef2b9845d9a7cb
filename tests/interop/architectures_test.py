"""Configs: what follows from them, and that whatever is not implemented is refused by name."""

import json

import numpy as np
import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.interop import hf_config
from moemoe_jax.interop.text_config import text_model
from moemoe_jax.interop.vision_config import Normalisation, normalisation, vision_config
from moemoe_jax.interop.weights import open_weights, write_weights
from moemoe_jax.nn.swinv2 import SwinV2Config

T5 = {"model_type": "t5", "vocab_size": 8, "d_model": 4, "num_layers": 2}
SWITCH = {"model_type": "switch_transformers", "num_layers": 4, "num_sparse_encoder_layers": 2}
SWIN = {"model_type": "swinv2", "image_size": 256, "window_size": 8}
TABLE = np.arange(32, dtype=np.float32).reshape(8, 4)


def folder(path, config, **tensors):
    tensors = tensors or {"shared.weight": TABLE}
    described = [(name, array.shape, array.dtype) for name, array in tensors.items()]
    write_weights(path / "weights", config, described, tensors.get)
    return open_weights(path / "weights")


@pytest.mark.parametrize(
    ("config", "untied", "tied_scaled"),
    [
        ({}, False, (True, True)),
        ({"tie_word_embeddings": False}, True, (False, False)),  # Flan, as Google has it
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, True, (False, False)),
        ({"tie_word_embeddings": False}, False, (True, False)),
        ({"tie_word_embeddings": True}, True, (False, True)),
        ({"model_type": "mt5"}, True, (False, False)),
        ({"model_type": "mt5"}, False, (True, False)),
        ({"model_type": "umt5"}, True, (False, True)),  # as transformers 5 saves and computes it
        ({"model_type": "umt5", "tie_word_embeddings": False}, True, (False, False)),
    ],
)
def test_tensors_tell_the_tie_and_configs_the_scale(tmp_path, config, untied, tied_scaled):
    # A head that equals the table is a tied one, though the file holds it.
    head = {"lm_head.weight": TABLE + 1 if untied else TABLE}
    found = text_model(folder(tmp_path, T5 | config, **{"shared.weight": TABLE}, **head))
    text = found.config.text
    assert (text.tie_word_embeddings, text.scales_logits) == tied_scaled
    assert text.per_layer_bias == (found.kind == "umt5")
    assert text.activation == ("relu" if found.kind == "t5" else "gated-gelu")


def test_a_switch_transformer_is_a_t5_with_top_1_mixtures(tmp_path):
    config = text_model(folder(tmp_path, SWITCH)).config
    assert (config.encoder_moe, config.decoder_moe) == (
        (1, 3),
        (0, 1, 2, 3),
    )  # 4 // 2 = 2, 4 // 3 = 1
    assert (config.moe.top_k, config.moe.gate, config.moe.noise) == (1, "softmax_topk", "jitter")
    assert config.moe.capacity_factor is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bart"}, r"model_type 'bart'; implemented: t5, mt5, umt5, switch"),
        ({"model_type": None}, "model_type None"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj 'gated-silu'; implemented: relu"),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, "dense_act_fn 'gelu'; only"),
        ({"d_model": "4"}, "d_model '4'; it must be a whole number from 1 on"),
        ({"d_model": 4.0}, "d_model 4.0"),
        ({"num_layers": 0}, "num_layers 0"),
        ({"num_heads": True}, "num_heads True"),
        ({"relative_attention_num_buckets": 30}, "relative_buckets is 30"),
        ({"layer_norm_epsilon": -1.0}, "layer_norm_epsilon -1.0"),
        ({"pad_token_id": 3}, "pad_token_id 3; only 0 is implemented"),
        ({"decoder_start_token_id": 1}, "decoder_start_token_id 1"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder False"),
        ({"quantization_config": {"bits": 8}}, "quantization_config .*quantised weights"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings 'no'; it must be true or false"),
        (SWITCH | {"router_bias": True}, "router_bias True; only False"),
        (SWITCH | {"router_dtype": "bfloat16"}, "router_dtype 'bfloat16'"),
        (SWITCH | {"dense_act_fn": "gelu"}, "dense_act_fn 'gelu'"),
        (SWITCH | {"router_jitter_noise": 0.5}, "router_jitter_noise 0.5; implemented: 0 and"),
    ],
)
def test_a_text_setting_that_is_not_implemented_is_named(tmp_path, change, message):
    with pytest.raises(UserError, match=f"weights/config.json.*{message}") as error:
        text_model(folder(tmp_path, T5 | change))
    assert "\n" not in str(error.value)


def test_a_swinv2_of_any_size(tmp_path):
    sizes = {"depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "embed_dim": 128}
    window = {"window_size": 16, "pretrained_window_sizes": [12, 12, 12, 6]}
    config = vision_config(folder(tmp_path, SWIN | sizes | window | {"patch_size": [4, 4]}))
    assert (config.width, config.window_size, config.patch_size) == (1024, 16, 4)
    assert config.pretrained_window_sizes == (12, 12, 12, 6)
    assert config.stage_window(3) == (8, 0)


def test_pretrained_windows_of_stages_that_a_swinv2_does_not_have_are_not_read(tmp_path):
    fewer = {"depths": [2, 2], "num_heads": [3, 6], "pretrained_window_sizes": [8, 4, 0, 0]}
    assert vision_config(folder(tmp_path, SWIN | fewer)).pretrained_window_sizes == (8, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "swin"}, "model_type 'swin'; implemented: swinv2"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'; only 'gelu'"),
        ({"use_absolute_embeddings": True}, "use_absolute_embeddings True"),
        ({"num_channels": 4}, "num_channels 4"),
        ({"image_size": [256, 192]}, r"image_size \[256, 192\]; it must be the side of a square"),
        ({"depths": "2,2"}, "depths '2,2'; it must be a list"),
        ({"depths": [2, 2]}, "depths, heads and pretrained_window_sizes have"),
        ({"num_heads": [5, 6, 12, 24]}, "heads that divide channels"),
    ],
)
def test_a_vision_setting_that_is_not_implemented_is_named(tmp_path, change, message):
    with pytest.raises(UserError, match=f"weights/config.json.*{message}"):
        vision_config(folder(tmp_path, SWIN | change))


def test_an_image_model_that_transformers_has_no_class_for_is_not_described():
    assert hf_config.vision_config(SwinV2Config())["model_type"] == "swinv2"
    with pytest.raises(hf_config.NoClassError, match="absolute_positions, and Swinv2Model has"):
        hf_config.vision_config(SwinV2Config(absolute_positions=True))


GOOD = {
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.2, 0.1],
    "size": {"height": 8, "width": 8},
}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, Normalisation((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))),
        ({"size": 8}, Normalisation((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))),
        ({"do_normalize": False}, Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
        ({"size": 9}, "size 9; the model's images have 8 pixels"),
        ({"size": {"height": 8, "width": 9}}, "the model's images have 8 pixels"),
        ({"image_mean": [0.5]}, "image_mean .*three numbers"),
        ({"image_std": [0.2, 0.0, 0.1]}, "image_std .*positive"),
        ({"rescale_factor": 1.0}, "rescale_factor 1.0"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"do_rescale": False}, "do_rescale False"),
    ],
)
def test_images_are_normalised_as_the_file_says(tmp_path, change, found):
    assert normalisation(tmp_path, 8) is None
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(GOOD | change))
    if isinstance(found, Normalisation):
        assert normalisation(tmp_path, 8) == found
        return
    with pytest.raises(UserError, match=f"preprocessor_config.json has .*{found}"):
        normalisation(tmp_path, 8)
