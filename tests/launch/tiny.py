"""A config that trains in seconds on one core: for tests that run the command line."""

from configs import base


def get_config(phase="dense"):
    config = base.get_config()

    text = config.model.text
    text.d_model, text.d_kv, text.num_heads, text.d_ff = 16, 8, 2, 16
    text.num_layers, text.num_decoder_layers = 1, 2
    vision = config.model.vision
    vision.embed_dim, vision.depths, vision.heads = 8, (1,), (2,)
    vision.pretrained_window_sizes = (0,)
    config.model.moe.num_experts = 2

    data = config.data
    data.source = "catalogue:products=24,image_size=16"
    data.image_size, data.text_length, data.answer_length = 16, 16, 4
    data.tokenizer_vocab_size = 400
    data.products_per_batch, data.questions_per_product = 4, 2
    data.augment.flip, data.augment.word_dropout = True, 0.1
    config.answer.products_per_batch = 8

    config.optimizer.warmup_steps = 1
    config.train.steps, config.train.log_every = 2, 1
    config.train.eval_products, config.train.samples = 1, 1
    if phase == "text":
        del data.sources.image
    return base.experts_only(config) if phase == "experts" else config
