"""Greedy and beam generation of a plain T5 with the same random weights, in seconds a text."""

from collections.abc import Callable
import importlib.util
from pathlib import Path
import tempfile

import numpy as np

from benchmarks.isolated import require_torch
from benchmarks.measure import Context, Samples, in_turn, timed
from benchmarks.sizes import get_config
from moemoe_jax.errors import UserError

_TEXTS, _LENGTH, _TOKENS = 8, 64, 32  # in a batch, of the longest text, of an answer
_EOS, _PAD = 1, 0

Generate = Callable[[], np.ndarray]


def against(context: Context, peer: str, beams: int) -> Samples:
    """Generates answers of 32 tokens, of which none ends early, to 8 texts of 32 to 64 tokens."""
    require_torch()
    if peer == "ctranslate2" and importlib.util.find_spec("ctranslate2") is None:
        raise UserError("ctranslate2 is not installed: pip install ctranslate2")
    model = _torch_t5(context.size)
    texts = _texts(model.config.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        ours = _ours(folder, texts, beams)
        if peer == "transformers":
            theirs = _transformers(model, texts, beams)
        else:
            theirs = _ctranslate2(model, texts, beams, context.threads, Path(folder, "ct2"))
        equal = np.mean(ours() == theirs())
        costs = in_turn(timed(ours, per=_TEXTS), timed(theirs, per=_TEXTS), context.repetitions)
    return Samples("s a text", *costs, f"{equal:.0%} of the ids are equal")


def _texts(vocabulary: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    texts = rng.integers(2, vocabulary, (_TEXTS, _LENGTH)).astype(np.int32)
    ends = np.linspace(_LENGTH // 2, _LENGTH, _TEXTS).astype(int)
    for row, end in zip(texts, ends, strict=True):
        row[end - 1], row[end:] = _EOS, _PAD
    return texts


def _torch_t5(size: str):
    """A T5 of transformers with random weights, in the shape that the size's text model has."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    mapping = get_config(size)
    text = mapping.model.text
    config = transformers.T5Config(
        vocab_size=mapping.data.vocab_rows,
        d_model=text.d_model,
        d_kv=text.d_kv,
        d_ff=text.d_ff,
        num_heads=text.num_heads,
        num_layers=text.num_layers,
        decoder_start_token_id=_PAD,
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.shared.weight[_EOS] = 0.0  # scores of 0 are never the highest
    return model


def _ours(folder: str, texts: np.ndarray, beams: int) -> Generate:
    from flax import nnx
    import jax
    import jax.numpy as jnp

    from moemoe_jax.inference.beam import best_answers
    from moemoe_jax.interop.loading import load_text

    graph, params = nnx.split(load_text(folder))
    asked = jnp.ones((len(texts), 1), bool)

    @jax.jit
    def generate(params, texts):
        model = nnx.merge(graph, params)
        fused = model.fuse(model.encode(texts), texts)
        return best_answers(model, fused, None, asked, _TOKENS, beams=beams).ids[:, 0, 0]

    return lambda: np.asarray(generate(params, texts))


def _transformers(model, texts: np.ndarray, beams: int) -> Generate:
    import torch

    from benchmarks.peer import DEVICE

    model, given = model.to(DEVICE), torch.from_numpy(texts).long().to(DEVICE)

    @torch.inference_mode()
    def generate():
        ids = model.generate(
            input_ids=given,
            attention_mask=given != _PAD,
            max_new_tokens=_TOKENS,
            num_beams=beams,
            do_sample=False,
        )
        return _filled([row[1:] for row in ids.tolist()])

    return generate


def _ctranslate2(model, texts: np.ndarray, beams: int, threads: int, folder: Path) -> Generate:
    """Converts the model, with numbers for names of its tokens, as there is no tokenizer."""
    import ctranslate2
    from ctranslate2.converters.transformers import T5Loader
    import torch

    names = [str(number) for number in range(model.config.vocab_size)]
    with torch.no_grad():
        spec = T5Loader().get_model_spec(model)
        spec.register_source_vocabulary(names)
        spec.register_target_vocabulary(names)
        spec.config.eos_token, spec.config.unk_token = str(_EOS), "2"
        spec.config.bos_token = spec.config.decoder_start_token = str(_PAD)
        spec.validate()
        spec.optimize(quantization="float32")
        folder.mkdir()
        spec.save(str(folder))
    translator = ctranslate2.Translator(
        str(folder), device="cpu", compute_type="float32", inter_threads=1, intra_threads=threads
    )
    given = [[names[token] for token in row if token != _PAD] for row in texts]

    def generate():
        found = translator.translate_batch(
            given, beam_size=beams, max_decoding_length=_TOKENS, length_penalty=1.0
        )
        return _filled([[int(token) for token in answer.hypotheses[0]] for answer in found])

    return generate


def _filled(answers: list[list[int]]) -> np.ndarray:
    """Answers as int [B, L], padded."""
    return np.array([(answer + [_PAD] * _TOKENS)[:_TOKENS] for answer in answers])
