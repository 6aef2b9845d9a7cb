r"""Greedy and beam generation of a plain T5 against transformers, in turn in one process.

    python -m benchmarks.decode
    python -m benchmarks.decode --texts=32 --tokens=32 --beams=4

Both have the same random weights (of T5-small's shape, float32) and the same texts of different
lengths. Random weights hardly ever end an answer, so all answers have `--tokens` tokens. Compiling
is not measured, nor is the first run of either.
"""

from collections.abc import Callable, Sequence
import statistics
import tempfile
import time

from absl import app, flags

flags.DEFINE_integer("texts", 8, "Texts in a batch.")
flags.DEFINE_integer("length", 64, "Tokens of the longest text.")
flags.DEFINE_integer("tokens", 32, "Tokens of an answer.")
flags.DEFINE_integer("beams", 4, "Beams of the second row.")
flags.DEFINE_integer("repeats", 5, "Timed runs of each.")
flags.DEFINE_integer("layers", 6, "Layers of encoder and decoder; T5-small has 6.")
flags.DEFINE_integer("seed", 0, "Of weights and texts.")

HEADER = ("generation", "transformers s", "moemoe_jax s", "faster", "equal ids")


def main(argv: Sequence[str]) -> None:
    """Measures and prints the table."""
    del argv
    import numpy as np

    args = flags.FLAGS
    theirs = torch_t5(args.layers, args.seed)
    rng = np.random.default_rng(args.seed)
    texts = rng.integers(2, 32000, (args.texts, args.length)).astype(np.int32)
    for row, end in zip(
        texts, rng.integers(args.length // 2, args.length, len(texts)), strict=True
    ):
        row[end], row[end + 1 :] = 1, 0
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = jax_generators(folder, texts, args.tokens)
    rows = [HEADER]
    for beams in (1, args.beams):
        name = "greedy" if beams == 1 else f"{beams} beams"
        rows.append(
            (name, *compare(torch_generator(theirs, texts, args.tokens, beams), ours(beams)))
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"{args.texts} texts, {args.tokens} tokens an answer, median of {args.repeats} (range)")
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def compare(theirs: Callable, ours: Callable) -> tuple[str, ...]:
    """The cells of one row: both times, their ratio, and the share of ids that are equal."""
    first, second = theirs(), ours()  # not timed: compiles, fills caches
    width = min(first.shape[1], second.shape[1])
    equal = (first[:, :width] == second[:, :width]).mean()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(flags.FLAGS.repeats):
        for run, taken in zip((theirs, ours), times, strict=True):
            begun = time.perf_counter()
            run()
            taken.append(time.perf_counter() - begun)
    ratio = statistics.median(times[0]) / statistics.median(times[1])
    return *map(_spread, times), f"{ratio:.2f}x", f"{equal:.1%}"


def _spread(times: list[float]) -> str:
    return f"{statistics.median(times):.3f} ({min(times):.3f}-{max(times):.3f})"


def torch_t5(layers: int, seed: int):
    """A T5-small of transformers with random weights."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=32128, num_layers=layers, num_decoder_layers=layers, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def torch_generator(model, texts, tokens: int, beams: int) -> Callable:
    """Returns a function that generates with transformers, ids [B, <= L] without the start."""
    import torch

    given = torch.from_numpy(texts).long()
    mask = given != 0

    @torch.inference_mode()
    def run():
        ids = model.generate(
            input_ids=given,
            attention_mask=mask,
            max_new_tokens=tokens,
            num_beams=beams,
            do_sample=False,
        )
        return ids[:, 1:].numpy()

    return run


def jax_generators(folder: str, texts, tokens: int) -> Callable[[int], Callable]:
    """Loads the same weights; returns what makes a generating function for a number of beams."""
    from flax import nnx
    import jax
    import jax.numpy as jnp
    import numpy as np

    from moemoe_jax.inference.beam import best_answers
    from moemoe_jax.interop.loading import load_text

    graph, params = nnx.split(load_text(folder))
    asked = jnp.ones((len(texts), 1), bool)

    def of(beams: int) -> Callable:
        @jax.jit
        def generate(params, texts):
            model = nnx.merge(graph, params)
            fused = model.fuse(model.encode(texts), texts)
            return best_answers(model, fused, None, asked, tokens, beams=beams).ids[:, 0, 0]

        return lambda: np.asarray(generate(params, texts))

    return of


if __name__ == "__main__":
    app.run(main)
