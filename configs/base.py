"""What the experiments share: all settings with their defaults, and the practical recipe."""

from moemoe_jax.experiment import default_config


def get_config():
    """A MoEMoE small enough to train from random values on a few cores.

    The recipe is a practical one: Muon, warm-up, cosine decay, clipping, and a moving average of
    the parameters for answering. `paper_recipe` has the paper's.
    """
    config = default_config()

    text = config.model.text
    text.d_model, text.d_kv, text.num_heads, text.d_ff = 128, 32, 4, 384
    text.num_layers = text.num_decoder_layers = 2
    text.activation = "gated-gelu"
    text.dropout = 0.1

    vision = config.model.vision
    vision.patch_size, vision.embed_dim = 4, 48
    vision.depths, vision.heads = (2, 2), (3, 6)
    vision.pretrained_window_sizes = (0, 0)
    vision.window_size = 4
    vision.drop_path = 0.1

    # The context does not hold the question, so a product is encoded once for all its questions;
    # the decoder is told the question by its start token.
    config.model.question_start = True
    # A pooled question gives one weight a source, so it need not be padded to the length of a text;
    # and where a text has ended, the image stands alone, which is where its details are learned.
    config.data.question_length, config.model.fusion.gate = 16, "pooled"
    config.model.fusion.padding = "zero"
    config.model.moe.num_experts, config.model.moe.top_k = 8, 2

    optimizer = config.optimizer
    optimizer.name, optimizer.schedule = "muon", "cosine"
    optimizer.learning_rate, optimizer.warmup_steps = 2e-3, 100
    optimizer.weight_decay, optimizer.clip_norm = 0.01, 1.0
    optimizer.b2, optimizer.ema_decay = 0.98, 0.998
    # At full rate the gate turns a source off before the model has learned to read it.
    optimizer.rate_scale = {"gate": 0.1}
    config.loss.align_weight = 0.1
    return config


def paper_recipe(config):
    """Sets the paper's training: Adam at 1e-3, x 0.2 after epochs 6 and 9 of 10, eq 8 as it is."""
    optimizer = config.optimizer
    optimizer.name, optimizer.schedule = "adam", "step"
    optimizer.learning_rate, optimizer.warmup_steps = 1e-3, 0
    optimizer.step_epochs, optimizer.step_factor = (6, 9), 0.2
    optimizer.weight_decay, optimizer.clip_norm, optimizer.ema_decay = 0.0, 0.0, 0.0
    optimizer.rate_scale = {}
    config.train.epochs = 10
    config.loss.align_weight, config.loss.aux_weight = 1.0, 0.1
    config.data.products_per_batch = 32
    return config


def experts_only(config, init_from=""):
    """Turns odd decoder layers into mixtures, upcycled from `init_from`, and trains only those."""
    config.model.moe_layers.decoder = "odd"
    config.train.trainable = "experts"
    config.optimizer.rate_scale = {}  # of parts that are frozen now
    config.init.work_dir = init_from
    return config
