"""Models of transformers with random weights, saved as their writers save them, and their answers.

Shapes: B texts, K tokens of a text, L tokens of an answer.
"""

import json

import numpy as np
import torch
import transformers

TINY = {
    "vocab_size": 100,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_heads": 4,
    "num_layers": 2,  # transformers 5 generates only where both sides have as many layers
    "num_decoder_layers": 2,
    "decoder_start_token_id": 0,
}
GATED = {"feed_forward_proj": "gated-gelu"}
# name: (class prefix, what differs from TINY, whether the head is untied)
TEXTS = {
    "t5": ("T5", {}, False),
    "flan": ("T5", GATED | {"tie_word_embeddings": False}, True),
    "mt5": ("MT5", {"d_kv": 12}, True),
    "mt5 with a tied head": ("MT5", {}, False),
    "umt5": ("UMT5", {"relative_attention_num_buckets": 16}, True),
    "switch": (
        "SwitchTransformers",
        {
            "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 1,
            "num_experts": 3,
        },
        False,
    ),
}
VISION = {
    "image_size": 64,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "pretrained_window_sizes": [0, 0],
    "drop_path_rate": 0.0,
}
VISIONS = {
    "swinv2": {},
    "swinv2 fine-tuned at another window": {"depths": [1, 1], "pretrained_window_sizes": [6, 3]},
    "swinv2 whose last window is its map": {
        "image_size": 32,
        "depths": [1, 2],
        "window_size": 8,
        "qkv_bias": False,
    },
}


def randomize_(model, seed):
    """Draws weights that all show in the output; scores stay mild, so that rounding stays small."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("logit_scale"):
                weight.uniform_(1.0, 2.3, generator=generator)
            elif weight.ndim == 1:
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
            else:
                spread = 0.5 if "relative_attention_bias" in name else weight[0].numel() ** -0.5
                spread *= 4.0 if "router" in name else 1.0  # decided, and not by rounding
                spread = 0.5 if name == "shared.weight" else spread
                spread *= 2.0 if name == "lm_head.weight" else 1.0  # logits as a trained model has
                spread *= model.config.d_kv**-0.5 if name.endswith(".q.weight") else 1.0
                weight.normal_(0.0, spread, generator=generator)
    return model.eval()


def text_model(prefix, settings, untied, seed=0):
    """A whole text model; `untied` gives it a head of its own."""
    config = getattr(transformers, f"{prefix}Config")(**settings)
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config)
    if untied:
        # transformers 5 builds every T5 tied and unties it when a checkpoint says so.
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    return randomize_(model, seed)


def save_text(name, folder, **changes):
    """Saves a model of `TEXTS` into a folder; returns it."""
    prefix, settings, untied = TEXTS[name]
    model = text_model(prefix, TINY | settings | changes, untied)
    model.save_pretrained(folder)
    return model


def vision_model(settings, seed=0, kind="Swinv2Model"):
    return randomize_(getattr(transformers, kind)(transformers.Swinv2Config(**settings)), seed)


def save_vision(folder, kind="Swinv2Model", seed=0, **changes):
    """Saves a SwinV2 with its preprocessor_config.json; returns the model."""
    settings = VISION | changes
    model = vision_model(settings, seed, kind)
    model.save_pretrained(folder)
    side = settings["image_size"]
    document = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.25, 0.2, 0.1],
        "image_processor_type": "ViTImageProcessor",
        "rescale_factor": 1 / 255,
        "size": {"height": side, "width": side},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(document))
    return model


def ids(lengths, width, vocabulary, seed=0):
    """Token ids [B, width]: each row so long, ending with </s>, and padded."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(3, vocabulary, (len(lengths), width)).astype(np.int32)
    for row, length in zip(rows, lengths, strict=True):
        row[length - 1], row[length:] = 1, 0
    return rows


def tensor(array):
    return torch.tensor(np.asarray(array), dtype=torch.long)


def hidden_states(model, texts):
    with torch.no_grad():
        found = model.get_encoder()(tensor(texts), attention_mask=tensor(texts != 0))
    return found.last_hidden_state.numpy()


def scores(model, texts, answers):
    """Logits [B, L, V] of answers [B, L]; with gradients."""
    shifted = np.pad(answers[:, :-1], ((0, 0), (1, 0)))
    found = model(
        tensor(texts), attention_mask=tensor(texts != 0), decoder_input_ids=tensor(shifted)
    )
    return found.logits


def loss(model, texts, answers):
    """Mean cross-entropy over the real tokens of the answers; with gradients."""
    flat = scores(model, texts, answers).flatten(0, 1)
    return torch.nn.functional.cross_entropy(flat, tensor(answers).flatten(), ignore_index=0)


def greedy(model, texts, length):
    """Greedy ids [B, length], padded behind </s>."""
    with torch.no_grad():
        found = model.generate(
            tensor(texts),
            attention_mask=tensor(texts != 0),
            max_new_tokens=length,
            do_sample=False,
            num_beams=1,
            pad_token_id=0,
            eos_token_id=1,
        )[:, 1:].numpy()
    return np.pad(found, ((0, 0), (0, length - found.shape[1]))).astype(np.int32)
